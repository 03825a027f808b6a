# error 2:1 hook() takes one string
hook(1)
def probe():
    pass
