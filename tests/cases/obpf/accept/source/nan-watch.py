# The first step that has a NaN.
hook("on_forward:*")
r = map.ring(16)


def probe(x):
    n = count_nonfinite(x)
    if n > 0:
        r.emit(site, float(n))
