# Row 0 of what may be empty.
# expect: E8-VERIFY:bounds line=6
hook("on_forward:*")
m = map.array(1)
def probe(x):
    m[0] = sum(x[0])
