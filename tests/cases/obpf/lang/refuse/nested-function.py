# error 10:5 a function inside probe is refused
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    def inner(a):
        return a
    m[0] = inner(1)
