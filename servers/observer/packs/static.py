"""The control: constants. It looks at the same evidence and never changes anything."""

from __future__ import annotations

from servers.observer.policy import Decision, Evidence, Numbers, Pack


def decide(_evidence: Evidence, _numbers: Numbers) -> Decision:
    """No change."""
    return Decision()


PACK = Pack("static", decide, {})
