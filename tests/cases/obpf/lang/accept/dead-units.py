# columns of an activation that are nowhere above zero
hook("on_forward:student/blocks.*", every=25)
units = map.array(per_site=True, fields=("dead", "of"))


def probe(x):
    dead = 0
    for j in range(x.shape[1]):
        dead += count_gt(x[:, j], 0.0) == 0
    units["dead"] += dead
    units["of"] += x.shape[1]
