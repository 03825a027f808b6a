# Every pair of rows.
# expect: E8-VERIFY:cost line=6
hook("on_forward:*")
m = map.array(1)
def probe(x):
    for i in range(x.shape[0]):
        for j in range(x.shape[0]):
            m[0] += dot(x[i], x[j])
