# error 8:5 cka takes 2 views, got 1
hook("on_kd_step")
m = map.array(8)
figures = map.results("cka")


def probe(student, teacher, labels, hs, ht):
    cka(hs, into=figures)
