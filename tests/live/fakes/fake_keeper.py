"""A dataset server that maps the page it is told to, and lets go of it or does not."""

from __future__ import annotations

from typing import Any

from fake_dataset import FakeDataset

from syscalls.pages import ReadPage
from syscalls.serve import Kernel, serve


class Keeper(FakeDataset):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.handlers["split"] = self.split
        self.kept: list[ReadPage] = []

    def split(self, name: str) -> dict[str, Any]:
        what, _, slot = name.partition(": ")
        if not slot:
            return {"page": self.page()}
        page = self.kernel.map(int(slot))
        if what == "keep":
            self.kept.append(page)
        else:
            page.close()
        return {"page": 0}


if __name__ == "__main__":
    raise SystemExit(serve("dataset", Keeper))
