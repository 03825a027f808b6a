# error 10:5 `assert` is refused: a probe cannot stop the step
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    assert step
