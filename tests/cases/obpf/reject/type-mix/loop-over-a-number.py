# A loop over a number.
# expect: E8-SYNTAX line=6
hook("on_forward:*")
m = map.array(1)
def probe(x):
    for i in 5:
        m[0] += 1.0
