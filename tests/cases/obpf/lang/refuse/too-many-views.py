# error 17:5 too many live values: 9 views, 8 registers; alive there: r0, r1, r2, r
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    r0 = x[0]
    r1 = x[1]
    r2 = x[2]
    r3 = x[3]
    r4 = x[4]
    r5 = x[5]
    r6 = x[6]
    r7 = x[7]
    r8 = x[8]
    m[0] = sum(r0)
    m[0] = sum(r1)
    m[0] = sum(r2)
    m[0] = sum(r3)
    m[0] = sum(r4)
    m[0] = sum(r5)
    m[0] = sum(r6)
    m[0] = sum(r7)
    m[0] = sum(r8)
