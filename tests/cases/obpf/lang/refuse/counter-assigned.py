# error 11:9 i counts the loop of line 10 and cannot be changed inside it
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(3):
        i = i + 1
