"""The few changes that a page may ask for when the dashboard was started with --allow-steer.

Responsible for: an explicit list of them, each a syscall with checked arguments; the operator's rights and the ledger do the rest,
as for any other operator. Refuses: anything that is not in the list, and arguments that the page had no field for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from syscalls.client import Client
from syscalls.errors import RecurosError

REASON_CHARS_MAX: Final = 200
FROM: Final = "dashboard"

Act = Callable[[Client, Mapping[str, Any], str], dict[str, Any]]


def _pause(client: Client, args: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return client.interrupt(kind="pause", reason=reason)


def _resume(client: Client, args: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return client.interrupt(kind="resume", reason=reason)


def _snapshot(client: Client, args: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return client.rl_snapshot(name=_text(args, "name"))


def _temperature(client: Client, args: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return client.rl_set_kd(temperature=_number(args, "temperature"))


def _detach(client: Client, args: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return client.rl_detach_probe(id=int(_number(args, "id")))


ACTIONS: Final[dict[str, tuple[Act, tuple[str, ...]]]] = {
    "pause": (_pause, ()),
    "resume": (_resume, ()),
    "snapshot": (_snapshot, ("name",)),
    "temperature": (_temperature, ("temperature",)),
    "detach": (_detach, ("id",)),
}


def act(client: Client, asked: Any) -> dict[str, Any]:
    """Do `{"action": NAME, "args": {...}, "reason": TEXT}` and return what the kernel answered; E2-USAGE for anything else."""
    if not isinstance(asked, dict) or not isinstance(asked.get("args", {}), dict):
        raise RecurosError("E2-USAGE", "a change is a map with action, args and reason")
    name, args, reason = asked.get("action"), asked.get("args", {}), asked.get("reason", "")
    if not isinstance(name, str) or name not in ACTIONS:
        raise RecurosError("E2-USAGE", f"no action is called {name!r:.80}", hint=f"there are: {', '.join(ACTIONS)}")
    if not isinstance(reason, str) or len(reason) > REASON_CHARS_MAX:
        raise RecurosError("E2-LIMIT", f"a reason is text of at most {REASON_CHARS_MAX} characters")
    function, columns = ACTIONS[name]
    if set(args) != set(columns):
        raise RecurosError(
            "E2-USAGE", f"{name} takes {', '.join(columns) or 'nothing'}, got {sorted(map(str, args))!r:.80}"
        )
    return function(client, args, f"{FROM}: {reason}" if reason else FROM)


def _text(args: Mapping[str, Any], name: str) -> str:
    value = args[name]
    if not isinstance(value, str) or not value.strip() or len(value) > REASON_CHARS_MAX:
        raise RecurosError("E2-USAGE", f"{name} must be text of 1 to {REASON_CHARS_MAX} characters, got {value!r:.80}")
    return value.strip()


def _number(args: Mapping[str, Any], name: str) -> float:
    value = args[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecurosError("E2-USAGE", f"{name} must be a number, got {value!r:.80}")
    return float(value)
