# error 3:1 rms is already a function of the language
hook("on_kd_step")
rms = map.array(3)
def probe():
    pass
