"""Packets with descriptors on a Unix socket, and who is at its other end.

Responsible for: receiving without waiting, and what fits a packet. Refuses: descriptors beyond the room for four; the host's kernel
closes those.
"""

from __future__ import annotations

import array
import socket
from typing import Any, Final

import msgpack

REPORT_BYTES_MAX: Final = 128 << 10
"""A packet holds at least so much, with the default buffers of any Linux."""
PART_BYTES_MAX: Final = 1 << 10


def shortened(event: dict[str, Any]) -> dict[str, Any]:
    """A report that fits a packet: a status that does not goes without its largest parts, and names them."""
    if "status" not in event or len(msgpack.packb(event)) <= REPORT_BYTES_MAX:
        return event
    status = {k: v for k, v in event["status"].items() if len(msgpack.packb(v)) <= PART_BYTES_MAX}
    return {**event, "status": {**status, "left_out": sorted(set(event["status"]) - set(status))}}


def peer(conn: socket.socket) -> tuple[int, int]:
    """The pid and the uid of the process that connected."""
    credentials = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little"), int.from_bytes(credentials[4:8], "little")


def receive(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """One packet and its descriptors (`socket.recv_fds` of Python 3.11 ignores its flags); BlockingIOError when there is none."""
    fds = array.array("i")
    room = socket.CMSG_LEN(4 * fds.itemsize)
    data, ancillary, _, _ = sock.recvmsg(size, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    return data, list(fds)
