# error 10:5 `with` is refused: a probe opens nothing
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    with x:
        pass
