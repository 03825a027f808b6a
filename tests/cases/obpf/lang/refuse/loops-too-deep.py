# error 14:21 loops are nested 5 deep here, those inside mean(f(x)) included; the li
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for a in range(2):
        for b in range(2):
            for c in range(2):
                for d in range(2):
                    m[0] += mean(rms(x))
