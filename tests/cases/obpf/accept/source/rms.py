# Root mean square of each layer.
hook("on_forward:*")
m = map.array(1, per_site=True)


def probe(x):
    m[0] = rms(x)
