# error 10:9 a probe has no strings
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    s = f"{step}"
