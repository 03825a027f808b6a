# error 11:5 `while` is refused: it may never end, so the cost of a firing could no
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    s = 0
    while True:
        break
