# error 3:17 no asynchronous helper 'pca'
hook("on_kd_step")
m = map.results("pca")
def probe():
    pass
