# while has no bound.
# expect: E8-SYNTAX line=6
hook("on_forward:*")
m = map.array(1)
def probe(x):
    while True:
        m[0] += 1.0
