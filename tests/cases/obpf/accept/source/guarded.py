# The third row, if there is one.
hook("on_forward:*")
m = map.array(1)


def probe(x):
    if 2 < x.shape[0]:
        m[0] = mean(x[2])
