# A view plus a number.
# expect: E8-SYNTAX line=6
hook("on_forward:*")
m = map.array(1)
def probe(x):
    m[0] = x + 1.0
