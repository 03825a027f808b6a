# i + 1 in a loop over the rows.
# expect: E8-VERIFY:bounds line=7
hook("on_forward:*")
m = map.array(1)
def probe(x):
    for i in range(x.shape[0]):
        m[0] += sum(x[i + 1])
