# error 8:12 cka runs outside the step and gives no value here
hook("on_kd_step")
m = map.array(8)
figures = map.results("cka")


def probe(student, teacher, labels, hs, ht):
    m[0] = cka(hs, ht)
