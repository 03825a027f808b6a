# error 8:13 cka takes a view of rank 2, this is a view of rank 1
hook("on_kd_step")
m = map.array(8)
figures = map.results("cka")


def probe(student, teacher, labels, hs, ht):
    cka(hs, labels, into=figures)
