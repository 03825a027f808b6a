"""What `recuros learner interrupt` sends for the kinds that the Observer considers.

Responsible for: a request's body from the command line's words. Refuses: words that do not belong to the kind, numbers that are none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from syscalls import limits
from syscalls.errors import RecurosError

KINDS: Final = ("data", "constraint", "objective")


def body_of(kind: str, file: str | None, words: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """(body, data) of a request."""
    takes = {"data": ("file",), "constraint": ("allow", "forbid", "implies", "weight"), "objective": ("settings",)}[
        kind
    ]
    given = {name for name, value in {"file": file, **words}.items() if value not in (None, "", ())}
    for name in sorted(given - set(takes)):
        option = "a FILE" if name == "file" else f"--{'set' if name == 'settings' else name}"
        raise RecurosError("E2-USAGE", f"{kind} takes no {option}", hint="recuros learner interrupt --help")
    if kind == "data":
        return _data(file)
    if kind == "objective":
        return _settings(words["settings"]), b""
    body: dict[str, Any] = {name: _classes(name, words[name]) for name in ("allow", "forbid") if words[name]}
    if words["implies"]:
        body["implies"] = [_implied(text) for text in words["implies"]]
    if words["weight"] is not None:
        body["weight"] = words["weight"]
    return body, b""


def _data(file: str | None) -> tuple[dict[str, Any], bytes]:
    if not file:
        raise RecurosError("E2-USAGE", "data needs a FILE", hint="recuros learner interrupt data new.jsonl")
    path = Path(file)
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if 0 < size <= limits.INTERRUPT_PAGE_BYTES_MAX else b""
    except OSError as error:
        raise RecurosError(
            "E2-DATA", f"{path} cannot be read: {error.strerror}", hint="give a JSONL or CSV file"
        ) from error
    if not raw:
        raise RecurosError(
            "E2-LIMIT",
            f"{path} has {size} bytes; 1 to {limits.INTERRUPT_PAGE_BYTES_MAX} are taken at a time",
            hint="split it: each interrupt adds to the ones before",
        )
    return {"name": path.name[-200:]}, raw


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    if not pairs:
        raise RecurosError("E2-USAGE", "objective needs --set NAME=VALUE", hint="--set mix=0.8 --set cka=0.2")
    body = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            body[name.replace("-", "_")] = float(text)
        except ValueError:
            raise RecurosError("E2-USAGE", f"--set {pair}: {text!r} is no number", hint="--set mix=0.8") from None
    return body


def _classes(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RecurosError("E2-USAGE", f"--{name} {text!r} is no list of classes", hint=f"--{name} 0,1,2") from None


def _implied(text: str) -> list[Any]:
    label, sign, classes = text.partition("=")
    if not sign or not label.isdecimal():
        raise RecurosError("E2-USAGE", f"--implies {text!r} is no LABEL=CLASSES", hint="--implies 7=1,7")
    return [int(label), _classes("implies", classes)]
