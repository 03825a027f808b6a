# error 1:1 the file names no hook
m = map.array(8)
def probe(x):
    pass
