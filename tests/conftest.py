"""What holds for every test: how long Hypothesis takes to think of an input says nothing about the code under test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("recuros", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("recuros")
