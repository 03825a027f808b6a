# error 3:1 the function is called main
hook("on_kd_step")
def main():
    pass
