# error 3:1 this cannot stand outside the function
hook("on_kd_step")
exit()
def probe():
    pass
