# error 10:17 character U+202E cannot be seen by a reader
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = 1  # ‮
