# error 2:6 on_kd_step fires once per event and takes no glob, got 'blocks.*'
hook("on_kd_step:blocks.*")
def probe():
    pass
