# error 10:20 a bound of range must be a whole number, this is a float
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(2.5):
        pass
