# A float as an index.
# expect: E8-SYNTAX line=6
hook("on_forward:*")
m = map.array(1)
def probe(x):
    m[0] = sum(x[0.5])
