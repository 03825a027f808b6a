# error 10:5 `try` is refused: nothing in a probe raises
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    try:
        m[0] = 1
    except ValueError:
        pass
