"""A dataset server that lies where it is asked to: `split("lie: WHAT")` is answered with WHAT, over the channel or through the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fake_dataset import FakeDataset

from syscalls import abi, wire
from syscalls.serve import Kernel, serve

SPLIT = abi.METHOD_BY_NAME["dataset.split"].nr


def reply(number: int, payload: list[Any]) -> bytes:
    return wire.encode(wire.Reply(number, True, payload))


DIRECT: dict[str, Callable[[int], bytes]] = {
    "a wrong type": lambda n: reply(n, ["not a page"]),
    "too many columns": lambda n: reply(n, [0, 0, 0]),
    "no columns": lambda n: reply(n, []),
    "another call's answer": lambda n: reply(n + 7, [0]),
    "a page that did not come": lambda n: reply(n, [1]),
    "a call": lambda n: wire.encode(wire.Call(n, SPLIT, 1, ["train"])),
    "noise": lambda n: b"\xc1" * 40,
    "a nest": lambda n: b"\x91" * 60,
}
"""Frames in place of the answer to call n."""
KERNEL: dict[str, Callable[[int], list[bytes]]] = {
    "a wrong type": lambda n: [reply(n, ["not a page"])],
    "no columns": lambda n: [reply(n, [])],
    "a page of nobody": lambda n: [reply(n, [987_654])],
    "its own capability": lambda n: [reply(n, [1])],
    "an unknown error": lambda n: [wire.encode(wire.Reply(n, False, ["E0-NOBODY", "made up", "", {}]))],
    "half an error": lambda n: [wire.encode(wire.Reply(n, False, ["E1-NO"]))],
    "another call's answer first": lambda n: [reply(n + 100_000, [0]), reply(n, [0])],
    "two answers": lambda n: [reply(n, [0]), reply(n, [0])],
}


class LyingDataset(FakeDataset):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.handlers["split"] = self.split
        self.lie = ""
        self.honest, kernel.answer = kernel.answer, self.answer  # type: ignore[method-assign]

    def split(self, name: str) -> dict[str, Any]:
        what = name.removeprefix("lie: ")
        if what == name:
            return {"page": self.page()}
        if not self.kernel.direct_caller:
            self.lie = what
            return {"page": 0}
        call = self.kernel._direct._serving
        assert call is not None
        if what == "a page that is no page":
            fd = os.memfd_create("unsealed")
            call.channel.end.send(reply(call.frame.id, [1]), [fd])
            os.close(fd)
        elif what == "two answers":
            call.channel.end.send(reply(call.frame.id, [0]), [])
        elif what == "a giant":
            call.channel.end._sock.sendall(b"\xff\xff\xff\x7f" + bytes(1000))
        else:
            call.channel.end.send(DIRECT[what](call.frame.id), [])
        return {"page": 0}  # and the honest answer after it

    def answer(self, request: wire.Deliver, values: dict[str, Any]) -> None:
        """The answer to a delivery of the kernel."""
        lie, self.lie = self.lie, ""
        if not lie:
            self.honest(request, values)
            return
        for data in KERNEL[lie](request.id):
            self.kernel._socket.send(data)


if __name__ == "__main__":
    raise SystemExit(serve("dataset", LyingDataset))
