# error 26:5 too many live values: 18 floats, 16 registers; alive there: a0, a1, a1
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    a0 = mean(x) * 0.5
    a1 = mean(x) * 1.5
    a2 = mean(x) * 2.5
    a3 = mean(x) * 3.5
    a4 = mean(x) * 4.5
    a5 = mean(x) * 5.5
    a6 = mean(x) * 6.5
    a7 = mean(x) * 7.5
    a8 = mean(x) * 8.5
    a9 = mean(x) * 9.5
    a10 = mean(x) * 10.5
    a11 = mean(x) * 11.5
    a12 = mean(x) * 12.5
    a13 = mean(x) * 13.5
    a14 = mean(x) * 14.5
    a15 = mean(x) * 15.5
    a16 = mean(x) * 16.5
    m[0] = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11 + a12 + a13 + a14 + a15 + a16
