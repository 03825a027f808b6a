# share of weights kept, row by row, into a histogram
hook("on_prune")
kept = map.linear(0, 1, 10)
rows = map.hash(32)


def probe(mask, param):
    n = mask.shape[0]
    for i in range(n):
        share = mean(mask[i])
        kept.add(share)
        if share == 0.0:
            rows[i] = norm(param[i])
        elif share < 0.1:
            rows[i] += 1
        else:
            pass
