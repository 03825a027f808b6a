"""What every server does to itself before it imports its own code.

Responsible for: dying with the supervisor, being unreadable to its siblings (dumpable = 0 closes /proc/PID/mem,
ptrace and process_vm_writev to the same uid), gaining no privilege later, and holding no Linux capability. Refuses:
to go on when one of these cannot be set, since a server that only believes it is confined is worse than one that does
not start.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
DUMP_SIGNAL: Final = signal.SIGUSR1
"""Makes a server write the stacks of its threads into its log; the supervisor sends it before it kills one that does not answer."""
_CAP_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> int:
    """prctl(2); raises OSError with the errno."""
    result: int = _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")
    return result


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL this process when its parent dies; exits at once if that has already happened."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid and os.getppid() != parent_pid:
        os._exit(1)


def drop_capabilities() -> None:
    """Empty the bounding, permitted, effective and inheritable sets (does nothing for a user who has none)."""
    cap = 0
    while True:
        try:
            held = prctl(PR_CAPBSET_READ, cap)
        except OSError:
            break  # EINVAL: past the last capability that this kernel knows
        if held:
            try:
                prctl(PR_CAPBSET_DROP, cap)
            except PermissionError:
                break  # without CAP_SETPCAP the bounding set stays, and no_new_privs makes it useless
        cap += 1
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")


def harden() -> None:
    """All of the above, in the order that keeps each step permitted. The parent's pid comes in RECUROS_PARENT."""
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    die_with_parent(int(os.environ.get("RECUROS_PARENT", "0")))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    drop_capabilities()
    prctl(PR_SET_DUMPABLE, 0)
    # Threads of numerical libraries are fixed before any of them is imported; a lane is one core.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
