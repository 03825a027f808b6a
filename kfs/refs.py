"""What a person calls a snapshot: an id or its beginning, a name, a window, a record, or the last one.

Responsible for: one reading of such a text, the same wherever a verb takes a snapshot. Refuses: texts that mean nothing or two
things (E4-NOENT, E2-USAGE), naming all the forms.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

from kfs.at import state_at
from kfs.records import RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

LAST: Final = "last"
FORMS: Final = (
    "a snapshot's id or its beginning (b3:2f9a51c0), a name given by `recuros snapshot create`, w12 (what window 12 "
    "committed), a record's number (the state as of then; -1: the newest), or last"
)
_WINDOW: Final = re.compile(r"w(\d+)\Z")
_NUMBER: Final = re.compile(r"-?\d+\Z")


def resolve(store: Store, text: str) -> str:
    """The root id of the snapshot that `text` means. A name wins over the other forms, then a number that the ledger has."""
    named = _named(store, text)
    if named:
        return named
    if text == LAST:
        return _at(store, store.size - 1, text)
    if match := _WINDOW.match(text):
        return _of_window(store, int(match[1]))
    if _NUMBER.match(text) and -store.size <= int(text) < store.size:
        return _at(store, int(text), text)
    try:
        return store.resolve(text)
    except RecurosError as e:
        close = difflib.get_close_matches(text, [name for name in names(store) if name], n=3)
        near = f"; did you mean: {', '.join(close)}?" if close else ""
        raise RecurosError(e.code, f"{text!r:.80} names no snapshot: {e.message}{near}", hint=f"give {FORMS}") from e


def names(store: Store) -> dict[str, str]:
    """Every name that was given to a snapshot, with the snapshot that it means now."""
    return {
        r.args["name"]: r.result_snap
        for r in store.records()
        if r.kind is RecordKind.SNAPSHOT and r.result_snap is not None
    }


def _named(store: Store, text: str) -> str:
    found = ""
    for r in store.records():
        if r.kind is RecordKind.SNAPSHOT and r.args["name"] == text and r.result_snap is not None:
            found = r.result_snap
    return found


def _at(store: Store, seq: int, text: str) -> str:
    snapshot = state_at(store, seq).snapshot if store.size else ""
    if not snapshot:
        raise RecurosError(
            "E4-NOENT", f"no window is committed as of {text!r}", hint="recuros kfs log --kind window.commit"
        )
    return snapshot


def _of_window(store: Store, window: int) -> str:
    found = ""
    for r in store.records():
        if r.kind is RecordKind.WINDOW_COMMIT and r.args["window"] == window:
            found = r.result_snap or ""
    if not found:
        raise RecurosError("E4-NOENT", f"window {window} is not committed", hint="recuros kfs log --kind window.commit")
    return found
