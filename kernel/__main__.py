"""`python -m kernel`: the kernel process. Started by the supervisor, with the boot document on stdin."""

from __future__ import annotations

import os
import platform
import secrets
import socket
import sys

from kernel.loop import Loop
from syscalls import harden, hostsched, wire
from syscalls.errors import RecurosError


def main() -> int:
    """Run until the runtime stops; an internal error is reported to the launcher before the process dies."""
    harden.die_with_parent(int(os.environ.get("RECUROS_PARENT", "0")))
    harden.prctl(harden.PR_SET_NO_NEW_PRIVS, 1)
    harden.prctl(harden.PR_SET_DUMPABLE, 0)
    control = socket.socket(fileno=int(os.environ["RECUROS_CONTROL"]))
    doc = wire.unpack(sys.stdin.buffer.read())
    environment = {
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": platform.machine(),
        "system": platform.release(),
    }
    try:
        loop = Loop(doc, control)
    except RecurosError as error:
        control.send(_report({"event": "failed", "error": error.to_wire()}))
        return 1
    policy, why = hostsched.OTHER, "the manifest says so"
    if doc.get("kernel_scheduler") == "deadline":
        policy, why = hostsched.ask()  # after the loop's threads: they are ordinary ones
    kernel = {"scheduler": policy, "scheduler_note": why, **({"remote": loop.remote_at} if loop.remote_at else {})}
    return loop.run(secrets.token_hex(8), {**environment, "kernel": kernel})


def _report(event: dict[str, object]) -> bytes:
    import msgpack

    data: bytes = msgpack.packb(["report", event])
    return data


if __name__ == "__main__":
    raise SystemExit(main())
