# error 4:1 probe takes no decorator and no annotation
hook("on_kd_step")
@cache
def probe():
    pass
