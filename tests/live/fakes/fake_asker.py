"""An observer that asks a lying dataset server, over its channel and through the kernel, and between two lies asks it honestly.

What came of each goes to RUN/asked.json.
"""

from __future__ import annotations

import json
from typing import Any

from fake_lying_dataset import DIRECT, KERNEL
from fake_observer import FakeObserver, outcome

from syscalls import abi
from syscalls.errors import RecurosError
from syscalls.serve import serve

SPLIT = abi.METHOD_BY_NAME["dataset.split"]
OVER_THE_CHANNEL = (*DIRECT, "a page that is no page", "two answers", "a giant")


class Asker(FakeObserver):
    def trace(self, window: int, page: int, **rest: Any) -> None:
        report = self.report.with_name("asked.json")
        if window >= 3 and not report.exists():
            found = {"direct": self.over_the_channel(), "kernel": self.through_the_kernel()}
            report.with_suffix(".part").write_text(json.dumps(found))
            report.with_suffix(".part").rename(report)
        super().trace(window, page, **rest)

    def over_the_channel(self) -> dict[str, list[str]]:
        """What the lie came to, and what an honest question after it."""
        ask = lambda name: self.kernel.call("dataset.split", name=name)  # noqa: E731
        return {lie: [outcome(lambda lie=lie: ask(f"lie: {lie}")), self.honest()] for lie in OVER_THE_CHANNEL}

    def honest(self) -> str:
        try:
            return self.split()
        except RecurosError as error:  # the second of two answers came while this one was under way
            if error.code != "E3-GONE":
                raise
            return self.split()

    def split(self) -> str:
        handle = int(self.kernel.call("dataset.split", name="train")["page"])
        source = self.kernel.map(handle)
        size = source.size
        source.close()
        self.kernel.release(handle)
        return f"{'direct' if handle < 0 else 'kernel'} {size}"

    def relayed(self, name: str) -> Any:
        args = {"endpoint": self.kernel.caps["dataset"], "method": SPLIT.nr, "args": [name]}
        return SPLIT.check_reply(self.kernel.syscall("call", **args)["reply"])

    def through_the_kernel(self) -> dict[str, str]:
        return {lie: outcome(lambda lie=lie: self.relayed(f"lie: {lie}")) for lie in KERNEL}


if __name__ == "__main__":
    raise SystemExit(serve("observer", Asker))
