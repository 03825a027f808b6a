# error 3:1 a probe is not async
hook("on_kd_step")
async def probe():
    pass
