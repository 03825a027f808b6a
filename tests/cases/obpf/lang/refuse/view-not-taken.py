# error 5:17 teacher is a view that probe does not take
hook("on_kd_step")
m = map.array(1)
def probe(student):
    m[0] = mean(teacher)
