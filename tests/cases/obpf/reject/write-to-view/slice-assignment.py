# A slice.
# expect: E8-SYNTAX line=5
hook("on_forward:*")
def probe(x):
    x[0:2] = 0.0
