# error 13:9 a loop has no else
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(9):
        m[0] += 1
    else:
        m[1] = 1
