# error 3:11 parameters have no annotation
hook("on_kd_step")
def probe(student: int):
    pass
