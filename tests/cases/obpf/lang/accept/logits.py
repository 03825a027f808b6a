# temperature-free figures of both models' logits
hook("on_kd_step", every=5)
figures = map.array(8)
angle = map.log2()


def probe(student, teacher):
    n = min(student.shape[0], 64)
    margin = 0.0
    for i in range(n):
        top = max(student[i])
        margin += top - lse(student[i])
        angle.add(1.0 - cosine(student[i], teacher[i]))
    figures[0] += margin
    figures[1] += mean(kl_logits(teacher, student))
    figures[2] += mean(entropy_logits(student))
    figures[3] += mean(entropy_logits(teacher))
    figures[4] += sum(1 for i in range(n) if argmax(student[i]) == argmax(teacher[i]))
    figures[5] = temperature if not isnan(temperature) else 1.0
    figures[6] += 1
