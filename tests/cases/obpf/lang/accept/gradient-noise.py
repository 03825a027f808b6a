# mean and spread of each parameter's gradient, and how much of it is dead
hook("on_grad:student/**", every=10)
per = map.array(per_site=True, fields=("sum", "sumsq", "dead", "firings"))
NONE = 1e-12


def probe(grad, param):
    rows, cols = grad.shape
    per["firings"] += 1
    per["sum"] += mean(grad)
    per["sumsq"] += sumsq(grad) / grad.size
    dead = 0
    for g in grad:
        if absmax(g) <= NONE:
            dead += 1
    per["dead"] += dead / max(rows, 1)
    del_ratio = norm(grad) / norm(param) if norm(param) > 0.0 else 0.0
    per.raise_to("dead", del_ratio * 0.0)
