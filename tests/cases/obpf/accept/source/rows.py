# Norms of rows, by size.
hook("on_forward:*")
h = map.log2()


def probe(x):
    for i in range(x.shape[0]):
        h.add(norm(x[i]))
