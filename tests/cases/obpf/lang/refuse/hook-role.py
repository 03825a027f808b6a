# error 2:6 no role 'judge' in hook 'on_forward:judge/blocks.*'; roles: student, t
hook("on_forward:judge/blocks.*")
def probe(x):
    pass
