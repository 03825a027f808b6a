# error 8:5 m does not fit the figures of cka: it needs 7 cells for each site
hook("on_kd_step")
m = map.array(8)
figures = map.results("cka")


def probe(student, teacher, labels, hs, ht):
    cka(hs, ht, into=m)
