"""The dashboard: a loopback web server over one run directory.

Responsible for: the parts of `recuros dash`. `guard` decides who is let in, `feed` follows the ledger, `runtime` follows the gauges of a
running kernel, `queries` reads the store, `actions` steers where that was allowed, `app` binds them to addresses, `serve` runs them.
`static` is what the browser gets, whole: nothing is fetched from elsewhere. Needs the extra `dash` (starlette, uvicorn).
"""
