# error 1:1 the file has no `def probe(...):`
hook("on_kd_step")
