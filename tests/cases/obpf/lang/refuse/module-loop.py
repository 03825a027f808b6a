# error 3:1 this cannot stand outside the function
hook("on_kd_step")
for i in range(3):
    pass
def probe():
    pass
