# A round for each step.
# expect: E8-VERIFY:trips line=6
hook("on_forward:*")
m = map.array(1)
def probe(x):
    for i in range(step):
        m[0] += 1.0
