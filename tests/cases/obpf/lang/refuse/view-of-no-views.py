# error 3:11 on_snapshot has no view 'x'
hook("on_snapshot")
def probe(x):
    pass
