# Key 8 of 8.
# expect: E8-VERIFY:map-key line=6
hook("on_forward:*")
m = map.array(8)
def probe(x):
    m[8] = 1.0
