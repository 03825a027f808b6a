"""What holds for every test.

How long Hypothesis takes to think of an input says nothing about the code under test. And Ctrl-C must reach the programs that tests
start, also where the tests themselves were started in the background, with SIGINT ignored: children inherit that over exec.
"""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("recuros", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("recuros")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
