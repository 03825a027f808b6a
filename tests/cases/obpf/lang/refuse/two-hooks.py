# error 3:1 the file names a hook twice
hook("on_kd_step")
hook("on_prune")
def probe():
    pass
