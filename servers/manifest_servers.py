"""The tables of processes and of who may speak to them: operators near and far, servers, their mailboxes.

Responsible for: what one such table may hold by itself. Refuses: what every table does. What tables must agree on is `servers.manifest`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from servers.manifest_table import Milliseconds, Table
from syscalls import limits


class Operator(Table):
    """What whoever holds the operator's socket may do."""

    rights: list[str]
    """What whoever opens the operator's socket may do."""


class Remote(Table):
    """Operators on other machines, by CURVE over TCP; nobody when `listen` is empty."""

    listen: Annotated[str, Field(pattern=r"^$|^[^\s/]+:(\*|\d{1,5})$")] = ""
    """HOST:PORT to listen at, such as `127.0.0.1:7600`; the port `*` takes a free one, which the status names."""
    allow: list[Annotated[str, Field(min_length=40, max_length=40)]] = []
    """Public keys that are let in, as `recuros remote key` prints them. They get the operator's rights."""


class Mailbox(Table):
    """Bounds of a server's mailbox, and what happens at them."""

    messages: Annotated[int, Field(ge=1, le=65_536)] = limits.MAILBOX_MESSAGES_DEFAULT
    """Bound in messages."""
    bytes: Annotated[int, Field(ge=4_096, le=1 << 30)] = limits.MAILBOX_BYTES_DEFAULT
    """Bound in bytes."""
    policy: Literal["reject", "block", "drop-oldest"] = "reject"
    """When it is full: refuse the call, let its caller wait, or (`gpu` only) refuse the oldest question for gauges."""


class Server(Table):
    """One server process."""

    entry: str
    """A package with a `__main__`."""
    cls: Annotated[Literal["edf", "fair"], Field(alias="class")]
    """`edf`: the lane with reserved windows, one server. `fair`: the background."""
    rank: Annotated[int, Field(ge=0, le=1_000)]
    """A server calls servers of strictly lower rank."""
    rights: list[str] = []
    """What the kernel lets it do."""
    calls: list[str] = []
    """Servers it may call."""
    direct: list[str] = []
    """Of these, the servers that it reaches over a direct channel; the kernel grants it, hands it over and takes it back."""
    restart: Literal["never", "always", "snapshot"] = "always"
    """`snapshot`: from the last committed state."""
    weight: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Share of the background's time."""
    mailbox: Mailbox = Mailbox()
    """Where calls wait for it."""
    budget_ms: Milliseconds | None = None
    """CPU time that a fair server has reserved for its jobs in each period; absent: its weight's share. The learner's is `[window]`."""
    period_ms: Milliseconds | None = None
    """How often the budget is given. Reserved servers share one background slot, and boot refuses what does not fit it."""
    deadline_ms: Milliseconds | None = None
    """From its wake to the end of its budget; absent: the period."""
    overrun: Literal["rollback", "throttle", "postpone", "degrade", "kill"] | None = None
    """What happens when the budget is used up, see docs/design/overrun.md. Absent: the learner `rollback`, others `throttle`."""
    config: dict[str, Any] = {}
    """Handed to the server as it is."""
