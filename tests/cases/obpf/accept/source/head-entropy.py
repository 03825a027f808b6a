# Entropy of each head.
hook("on_attention:*")
m = map.array(32, per_site=True)


def probe(attn):
    for h in range(attn.shape[1]):
        m[h] = entropy(attn[:, h])
