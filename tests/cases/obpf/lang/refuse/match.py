# error 10:5 `match` is refused
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    match step:
        case 1:
            pass
