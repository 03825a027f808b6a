"""The ABI: numbers, rights, messages, limits, wire format, pages, client stubs, server loop.

Everything that the kernel and its servers must agree on is in this package and nowhere else. It imports the standard
library, pyzmq and msgpack only.
"""
