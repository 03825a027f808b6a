# The last row, Python's way.
# expect: E8-VERIFY:bounds line=7
hook("on_forward:*")
m = map.array(1)
def probe(x):
    i = -1
    m[0] = sum(x[i])
