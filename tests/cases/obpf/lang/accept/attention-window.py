# attention on the last four keys, for each of the first heads
hook("on_attention:student/**", every=20)
heads = map.array(64, per_site=True, label="head")


def probe(attn):
    b, h, q, k = attn.shape
    for head in range(h):
        if head >= 64:
            continue
        one = attn[:, head]
        total = 0.0
        for i in range(b):
            for row in one[i]:
                total += sum(row[max(len(row) - 4, 0) : len(row)])
        heads[head] += total / max(b * q, 1)
