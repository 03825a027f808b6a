"""A learner that lends the dataset server two pages and takes both back: the first one is let go of, the second one is kept."""

from __future__ import annotations

from typing import Any

from fake_learner import FakeLearner

from syscalls.pages import WritePage
from syscalls.serve import serve


class Lender(FakeLearner):
    lent = False

    def window(self, grant: dict[str, Any]) -> None:
        if grant["window"] == 3 and not self.lent and not self.hung.exists():
            self.lent = True
            self.hung.touch()  # once in this run
            for what in ("let go", "keep"):
                page = WritePage(64)
                handle = self.kernel.offer(page)
                slot = self.kernel.syscall("cap_derive", cap=handle, rights=["map"], to="dataset")["slot"]
                self.kernel.call("dataset.split", name=f"{what}: {slot}")
                assert self.kernel.syscall("cap_revoke", cap=handle)["removed"] == 1
                self.kernel.release(handle)
                page.close()
        super().window(grant)


if __name__ == "__main__":
    raise SystemExit(serve("learner", Lender))
