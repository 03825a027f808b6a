# error 12:13 `return` is refused here: it may only end an `if` of the function's ow
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    if step:
        if site:
            return
        m[0] = 1
    m[1] = 1
