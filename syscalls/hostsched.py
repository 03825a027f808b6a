"""The host's scheduler for one process: SCHED_DEADLINE where it is permitted.

Responsible for: asking for it by sched_setattr(2) (glibc of this age has no wrapper), and saying in a sentence why not. Refuses: to
pretend; without the privilege, under a restricted set of CPUs or without bandwidth left the process stays where it was.

The budget is small and reclaims what nobody else reserved (SCHED_FLAG_RECLAIM), so a busy kernel process is not held back on an idle
machine; threads that it starts are ordinary ones (SCHED_FLAG_RESET_ON_FORK), without which it could start none.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

SCHED_DEADLINE: Final = 6
RESET_ON_FORK: Final = 0x01
RECLAIM: Final = 0x02
RUNTIME_NS: Final = 2_000_000
PERIOD_NS: Final = 10_000_000
NAME: Final = f"SCHED_DEADLINE {RUNTIME_NS / 1e6:g} of {PERIOD_NS / 1e6:g} ms"
OTHER: Final = "SCHED_OTHER"
SYS_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345}


class _Attr(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def ask() -> tuple[str, str]:
    """Put the calling thread under SCHED_DEADLINE: the policy in force and, where that is not it, why.

    The host grants it only to a thread that may run on every CPU, so its affinity is widened first, and put back where it is refused.
    """
    number = SYS_SCHED_SETATTR.get(platform.machine())
    if number is None:
        return OTHER, f"the number of sched_setattr on {platform.machine()} is not known here"
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        _set(
            number,
            _Attr(
                ctypes.sizeof(_Attr), SCHED_DEADLINE, RESET_ON_FORK | RECLAIM, 0, 0, RUNTIME_NS, PERIOD_NS, PERIOD_NS
            ),
        )
    except (OSError, ValueError) as error:
        os.sched_setaffinity(0, before)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return OTHER, f"SCHED_DEADLINE was refused: {reason}"
    return NAME, ""


def _set(number: int, attr: _Attr) -> None:
    if ctypes.CDLL(None, use_errno=True).syscall(number, 0, ctypes.byref(attr), 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def permitted() -> tuple[bool, str]:
    """Whether `ask` would succeed here: tried on the calling thread, which is put back."""
    before, cpus = os.sched_getscheduler(0), os.sched_getaffinity(0)
    policy, why = ask()
    if policy == OTHER:
        return False, why
    os.sched_setscheduler(0, before & ~os.SCHED_RESET_ON_FORK, os.sched_param(0))
    os.sched_setaffinity(0, cpus)
    return True, ""
