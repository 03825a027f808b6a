# Rows of one pair counted by the logits.
# expect: E8-VERIFY:bounds line=7
hook("on_kd_step")
m = map.array(1)
def probe(student, hs):
    for i in range(student.shape[0]):
        m[0] += sum(hs[i])
