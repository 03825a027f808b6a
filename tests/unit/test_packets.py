"""Packets between kernel and supervisor: whatever an operator made large, the last report fits one."""

from __future__ import annotations

import socket

import msgpack

from kernel import packets


def test_a_status_that_no_packet_holds_goes_without_its_largest_parts_and_names_them() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    status = {"state": "done", "directives": [["constrain", {"classes": list(range(200_000))}]], "seed": 1}
    event = {"event": "halted", "status": status}
    data = msgpack.packb(packets.shortened(event))
    assert len(data) <= packets.REPORT_BYTES_MAX
    here.send(data)
    got, fds = packets.receive(there, 1 << 20)
    assert msgpack.unpackb(got)["status"] == {"state": "done", "seed": 1, "left_out": ["directives"]}
    assert fds == []
    small = {"event": "halted", "status": {"state": "done"}}
    assert packets.shortened(small) is small
    here.close()
    there.close()
