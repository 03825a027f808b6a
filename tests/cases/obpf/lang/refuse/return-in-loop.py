# error 12:13 `return` is refused here: it may only end an `if` of the function's ow
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(3):
        if i:
            return
