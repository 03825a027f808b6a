# The first 100 rows of what may have fewer.
# expect: E8-VERIFY:bounds line=7
hook("on_forward:*")
m = map.array(1)
def probe(x):
    for i in range(100):
        m[0] += sum(x[i])
