# error 11:5 `del` is refused: variables and maps last as long as the firing and th
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    s = 1
    del s
