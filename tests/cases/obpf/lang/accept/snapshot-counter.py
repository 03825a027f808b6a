# a hook without views
hook("on_snapshot")
steps = map.ring(16)
last = map.array(2)


def probe():
    if firing == 0:
        last[0] = step
        return
    gap = step - int(last[0])
    last[0] = step
    steps.emit(gap, gap / 2)
