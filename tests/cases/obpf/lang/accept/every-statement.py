"""Every statement and operator once."""
hook("on_forward:teacher/**", every=2)
cells = map.array(4)
table = map.hash(16)
bins = map.linear(-1.0, 1.0, 8, per_site=True)
events = map.ring()
LIMIT = -0.5
ON = True


def probe(x):
    "a docstring of its own"
    a = step + 1 - 2 * 3 // 4 % 5
    a &= 255
    a |= 1
    a ^= 2
    a = -(+a) if ON else ~a
    b = 1.5 / 2 + LIMIT
    b *= 2
    b -= b**2 + b**3
    c = a < 3 <= b or not (a != 4 and a > 5) and b >= 0.25
    n, w = x.shape
    if c:
        if n > 0 and w > 1:
            first = x[0]
            b = min(first[1], b)
            for v in first:
                b = max(b, v, 0.0)
    elif not c:
        cells[1] -= 1
    else:
        pass
    for i in range(1, 3):
        for j in range(i):
            cells[j] += i
    cells[0] = b
    cells[3] *= 0.5
    cells.inc(2)
    table[a] += int(b) + bool(b) + len(x)
    table.raise_to(site, floor(b))
    bins.add(clip(exp(-abs(b)), -1, 1.0))
    events.emit(a, log(sqrt(sumsq(x))) if isfinite(b) else inf)
    cells[2] += mean(std(row) for row in x if len(row) > 1) + sum(x[0:2]) + x[...].size
