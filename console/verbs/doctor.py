"""`recuros doctor`: can this host run a runtime, and what is in force here?

Responsible for: one line a fact, each with the way out where something is missing. Refuses: nothing is an error merely because it would be
nicer otherwise: a missing GPU or real-time class is information.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from console.context import Context, Table
from console.verb import verb
from syscalls import hostsched
from syscalls.errors import RecurosError

PYTHON_MIN: Final = (3, 11)
FREE_BYTES_MIN: Final = 1 << 30
SHM_BYTES_MIN: Final = 64 << 20
REQUIRED: Final = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "pyzmq",
    "msgpack",
    "scikit-learn",
    "numpy",
    "psutil",
    "nvidia-ml-py",
    "blake3",
    "cryptography",
    "pydantic",
    "click",
    "rich",
    "prompt_toolkit",
)
POLICIES: Final = {
    0: "SCHED_OTHER",
    1: "SCHED_FIFO",
    2: "SCHED_RR",
    3: "SCHED_BATCH",
    5: "SCHED_IDLE",
    6: "SCHED_DEADLINE",
}
PR_CAPBSET_READ: Final = 23


@dataclass(frozen=True)
class Finding:
    """One line: `verdict` is ok, info or fail; `way_out` says what to do about a fail."""

    check: str
    verdict: str
    detail: str
    way_out: str = ""


@verb(
    "doctor",
    "Check that this host can run a runtime; exits 1 when something is missing.",
    examples=("recuros doctor", "recuros doctor --json", "recuros doctor --run /data/runs/first"),
    exits=(1,),
)
def doctor(ctx: Context) -> int:
    """Run every check and print one row each."""
    findings = [finding for check in CHECKS for finding in check(ctx)]
    rows = [{"check": f.check, "verdict": f.verdict, "detail": f.detail, "way_out": f.way_out} for f in findings]
    ok = all(f.verdict != "fail" for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{f.verdict:<5} {f.check:<14} {f.detail}")
        if f.verdict == "fail":
            lines.append(f"      {'':<14} try: {f.way_out}")
    text: Table | str = "\n".join(lines)
    if ctx.output in ("jsonl", "name"):
        text = Table(rows, {"check": "CHECK", "verdict": "VERDICT", "detail": "DETAIL"}, key="check")
    ctx.emit({"schema": "recuros.host.doctor/v1", "ok": ok, "checks": rows}, text)
    return 0 if ok else 1


def _python(_: Context) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= PYTHON_MIN
    yield Finding("python", "ok" if good else "fail", version, f"Python {'.'.join(map(str, PYTHON_MIN))} or newer")


def _packages(_: Context) -> Iterator[Finding]:
    missing = []
    for name in REQUIRED:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding(
            "packages", "fail", f"missing: {', '.join(missing)}", "make .venv, or install recuros with its dependencies"
        )
    else:
        yield Finding("packages", "ok", f"{len(REQUIRED)} present")
        yield Finding("torch", "ok", _torch_build())


def _torch_build() -> str:
    """The build as its distribution names it; importing torch would take two seconds."""
    version = metadata.version("torch")
    return version if "+" in version else f"{version} (build not named)"


def _cores(_: Context) -> Iterator[Finding]:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > 1:
        yield Finding("cores", "ok", f"{len(allowed)} usable; the learner's lane is cpu {allowed[-1]}")
    else:
        yield Finding("cores", "info", "1 usable: learner and background share it, and windows take longer")


def _shm(_: Context) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        yield Finding("/dev/shm", "info", f"not there ({error.strerror}); pages are memfds and do not need it")
        return
    left = [name for name in os.listdir("/dev/shm") if name.startswith("recuros")]
    detail = f"{free >> 20} MiB free" + (f"; left behind: {', '.join(left)}" if left else "")
    yield Finding("/dev/shm", "ok" if free >= SHM_BYTES_MIN and not left else "info", detail)


def _memfd(_: Context) -> Iterator[Finding]:
    from syscalls.pages import WritePage, check_seals

    try:
        page = WritePage(4096, "doctor")
    except OSError as error:
        yield Finding("memfd seals", "fail", f"cannot seal a page: {error.strerror}", "Linux 5.1 or newer")
        return
    size = check_seals(page.fd)
    page.close()
    yield Finding("memfd seals", "ok", f"a sealed page of {size} bytes was made")


def _peercred(_: Context) -> Iterator[Finding]:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        try:
            data = left.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError as error:
            yield Finding(
                "SO_PEERCRED", "fail", f"peers cannot be attested: {error.strerror}", "a Linux kernel with Unix sockets"
            )
            return
    pid, uid, _gid = struct.unpack("3i", data)
    good = (pid, uid) == (os.getpid(), os.getuid())
    yield Finding(
        "SO_PEERCRED",
        "ok" if good else "fail",
        f"pid {pid}, uid {uid}",
        "run outside this sandbox: it hides process ids",
    )


def _sockets(ctx: Context) -> Iterator[Finding]:
    from syscalls.rundir import make_socket_dir

    try:
        path = make_socket_dir(ctx.run)
    except RecurosError as error:
        yield Finding("socket dir", "fail", error.message, error.hint)
        return
    except OSError as error:
        yield Finding(
            "socket dir", "fail", f"{error.filename}: {error.strerror}", "set XDG_RUNTIME_DIR to a directory of yours"
        )
        return
    yield Finding("socket dir", "ok", str(path))
    with contextlib.suppress(OSError):  # not empty: a runtime uses it
        path.rmdir()


def _run_dir(ctx: Context) -> Iterator[Finding]:
    from recuros import holder

    there = ctx.run
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        yield Finding("run dir", "fail", f"{there} is not a directory", "name another run directory with --run")
        return
    free = shutil.disk_usage(there).free
    detail = f"{ctx.run}: {free / (1 << 30):.1f} GiB free"
    if not os.access(there, os.W_OK):
        yield Finding("run dir", "fail", f"{there} cannot be written", "name another run directory with --run")
    elif free < FREE_BYTES_MIN:
        yield Finding("run dir", "fail", detail, "free 1 GiB, or name another run directory with --run")
    else:
        yield Finding("run dir", "ok", detail)
    pid = holder(ctx.run)
    if pid is not None:
        yield Finding("runtime", "info", f"process {pid} runs one in {ctx.run}")


def _gpu(_: Context) -> Iterator[Finding]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield Finding("gpu", "info", f"no NVIDIA GPU ({error}); everything runs on the CPU")
        return
    try:
        for i in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(i)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            yield Finding("gpu", "ok", f"{pynvml.nvmlDeviceGetName(device)}, {memory.total >> 20} MiB")
    finally:
        pynvml.nvmlShutdown()


def _scheduler(ctx: Context) -> Iterator[Finding]:
    """What a kernel process would get here, tried on this one; and what the one of this run directory has."""
    policy = os.sched_getscheduler(0)
    named = POLICIES.get(policy & ~os.SCHED_RESET_ON_FORK, policy)
    yield Finding("scheduler", "info", f"servers run under {named}; deadlines are kept at micro-steps")
    granted, why = hostsched.permitted()
    here = f"{hostsched.NAME} is permitted" if granted else f"{why}; it would run under {hostsched.OTHER}"
    yield Finding("scheduler", "ok" if granted else "info", f"kernel process: {here}")
    with contextlib.suppress(RecurosError), ctx.client() as client:
        kernel = client.status()["status"]["kernel"]
        note = f" ({kernel['scheduler_note']})" if kernel.get("scheduler_note") else ""
        yield Finding("scheduler", "info", f"the running kernel process has {kernel['scheduler']}{note}")


def _confinement(_: Context) -> Iterator[Finding]:
    """Servers drop every capability and turn new privileges off; ask whether the kernel knows both calls, changing nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    known = libc.prctl(PR_CAPBSET_READ, 0, 0, 0, 0)
    if known < 0:
        yield Finding(
            "confinement", "fail", "the bounding set of capabilities cannot be read", "a Linux kernel with capabilities"
        )
    else:
        who = (
            "root: servers drop every capability"
            if os.geteuid() == 0
            else "an ordinary user: there is no capability to drop"
        )
        yield Finding("confinement", "ok", f"running as {who}")


def _lock(ctx: Context) -> Iterator[Finding]:
    """flock must work where the run directory lies; some network file systems lack it."""
    if not ctx.run.is_dir():
        return
    fd = os.open(ctx.run, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        yield Finding("flock", "ok", "held by another process")
    except OSError as error:
        yield Finding("flock", "fail", f"{ctx.run}: {error.strerror}", "put the run directory on a local file system")
    else:
        yield Finding("flock", "ok", "works in the run directory")
    finally:
        os.close(fd)


CHECKS: Final[tuple[Callable[[Context], Iterator[Finding]], ...]] = (
    _python,
    _packages,
    _cores,
    _shm,
    _memfd,
    _peercred,
    _sockets,
    _run_dir,
    _lock,
    _gpu,
    _scheduler,
    _confinement,
)
