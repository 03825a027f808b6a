# error 3:1 the parameters of probe are plain names of views
hook("on_kd_step")
def probe(student=1):
    pass
