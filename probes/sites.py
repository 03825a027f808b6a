"""Hook names: what a probe may be attached to, and how a hook string selects sites.

Responsible for: the grammar `KIND[:[ROLE/]GLOB]`, matching a glob against dotted module or parameter names, and the error
that says what does exist. Pure and torch-free, so the kernel parses with the same code as the learner.
Refuses: unknown kinds and roles, a glob on a hook that has no sites of its own, a glob that matches nothing.

Globs are matched by name component: `*` is any run of characters inside one component, `**` also crosses dots, `?` is
one character of a component, `[a-c]` a class. `blocks.*` is each block; `blocks.**` also everything inside them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from syscalls.errors import RecurosError

# Kind of hook -> what its glob ranges over; None: the hook fires once per event and takes no glob.
KINDS: dict[str, str | None] = {
    "on_forward": "layer",
    "on_attention": "layer",
    "on_grad": "parameter",
    "on_kd_step": None,
    "on_snapshot": None,
    "on_prune": None,
}
ROLES = ("student", "teacher")
HOOK_CHARS_MAX = 256
NEAREST_MAX = 8


@dataclass(frozen=True, slots=True)
class Hook:
    """A parsed hook string. `role` and `glob` are empty for hooks that fire once per event."""

    kind: str
    role: str = ""
    glob: str = ""

    def __str__(self) -> str:
        return site_name(self.kind, self.role, self.glob) if self.glob else self.kind


def site_name(kind: str, role: str = "", name: str = "") -> str:
    """The canonical name of one site, for example `on_forward:student/blocks.0` or `on_kd_step`."""
    return f"{kind}:{role}/{name}" if name else kind


def parse(text: str) -> Hook:
    """Parse a hook string; a hook over layers or parameters without a glob selects all of them in the student.

    Raises RecurosError E4-HOOK naming what exists.
    """
    if len(text) > HOOK_CHARS_MAX:
        raise RecurosError("E4-HOOK", f"hook of {len(text)} characters exceeds the limit of {HOOK_CHARS_MAX}")
    kind, colon, selector = text.partition(":")
    if kind not in KINDS:
        raise RecurosError(
            "E4-HOOK", f"no hook named {kind!r}; hooks: {', '.join(nearest(kind, KINDS))}", hint=_usage(kind)
        )
    if KINDS[kind] is None:
        if colon:
            raise RecurosError("E4-HOOK", f"{kind} fires once per event and takes no glob, got {selector!r}", hint=kind)
        return Hook(kind)
    role, slash, glob = selector.partition("/")
    if not slash:
        role, glob = ROLES[0], selector
    if role not in ROLES:
        raise RecurosError(
            "E4-HOOK", f"no role {role!r} in hook {text!r}; roles: {', '.join(ROLES)}", hint=_usage(kind)
        )
    if colon and not glob:
        raise RecurosError("E4-HOOK", f"hook {text!r} has an empty glob", hint=_usage(kind))
    return Hook(kind, role, glob or "**")


def matches(glob: str, name: str) -> bool:
    """Whether `glob` selects the dotted `name` as a whole."""
    return _pattern(glob).fullmatch(name) is not None


def select(hook: Hook, names: Sequence[str]) -> list[str]:
    """The names that `hook` selects, in their given order; E4-HOOK with the nearest names when there are none."""
    found = [name for name in names if matches(hook.glob, name)]
    if found:
        return found
    what = KINDS[hook.kind]
    if not names:
        if hook.kind == "on_grad":
            why, hint = (
                f"no parameter of the {hook.role} is trained now",
                "recuros status names the phase; try when one trains it",
            )
        else:
            why, hint = f"the {hook.role} has no {hook.kind} site", "recuros probe ls --sites"
        raise RecurosError("E4-HOOK", f"{hook} matches nothing: {why}", hint=hint)
    close = nearest(hook.glob, names)
    raise RecurosError(
        "E4-HOOK",
        f"{hook} matches none of the {len(names)} {what} sites of the {hook.role}; nearest: {', '.join(close)}",
        hint=f"{site_name(hook.kind, hook.role, close[0])}, or {hook.kind}:{hook.role}/** for all",
        details={"nearest": close, "sites": len(names)},
    )


def nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """At most NEAREST_MAX of `names`, most similar to `wanted` first; always at least one when there is one."""
    ranked = list(names)
    close = difflib.get_close_matches(wanted, ranked, n=NEAREST_MAX, cutoff=0.3)
    return (close + [name for name in ranked if name not in close])[:NEAREST_MAX]


@lru_cache(maxsize=512)
def _pattern(glob: str) -> re.Pattern[str]:
    out = []
    for token in re.findall(r"\*\*|\*|\?|\[[^\]./]+\]|.", glob, flags=re.DOTALL):
        if token == "**":
            out.append(".*")
        elif token == "*":
            out.append("[^.]*")
        elif token == "?":
            out.append("[^.]")
        elif len(token) > 1:
            out.append(_character_class(token[1:-1]))
        else:
            out.append(re.escape(token))
    return re.compile("".join(out), flags=re.DOTALL)


def _character_class(body: str) -> str:
    """A class such as `a-c3` or `!0`; an inverted range is taken literally instead of failing inside `re`."""
    negate = "^" if body.startswith("!") else ""
    body = body[1:] if negate else body
    parts = re.findall(r"(.)-(.)|(.)", body, flags=re.DOTALL)
    chars = []
    for low, high, single in parts:
        if single:
            chars.append(re.escape(single))
        elif low <= high:
            chars.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            chars.append(f"{re.escape(low)}\\-{re.escape(high)}")
    return f"[{negate}{''.join(chars)}]" if chars else re.escape("[!]")


def _usage(kind: str) -> str:
    if kind in KINDS and KINDS[kind] is not None:
        return f"{kind}:[student/|teacher/]GLOB over {KINDS[kind]} names, for example {kind}:student/blocks.*"
    return "HOOK[:[ROLE/]GLOB], for example on_kd_step or on_forward:student/blocks.*"
