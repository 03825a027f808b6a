# error 8:5 cka needs the map that takes its figures
hook("on_kd_step")
m = map.array(8)
figures = map.results("cka")


def probe(student, teacher, labels, hs, ht):
    cka(hs, ht)
