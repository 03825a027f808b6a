# error 11:9 `break` is refused: loops run their full count, which is what the proo
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(9):
        break
