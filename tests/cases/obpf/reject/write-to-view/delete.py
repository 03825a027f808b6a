# Deleting a row.
# expect: E8-SYNTAX line=5
hook("on_forward:*")
def probe(x):
    del x[0]
