# The step as a key.
# expect: E8-VERIFY:map-key line=6
hook("on_forward:*")
m = map.array(8)
def probe(x):
    m[step] = 1.0
