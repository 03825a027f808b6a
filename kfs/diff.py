"""What differs between two snapshots, tensor by tensor.

Responsible for: walking two trees together, so that equal subtrees are never read, and one row for each path that differs.
Refuses: arithmetic. numpy is not allowed here, and summing millions of items without it takes minutes; so the caller passes the
function that compares two tensors (the console's is `console.tensors.compare`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kfs.store import Store, Stored
from kfs.tell import Tell, counted, silent


@dataclass(frozen=True, slots=True)
class Change:
    """How two tensors of one dtype and shape differ.

    `changed`: items whose bits differ. `l2`, `max_abs`: norms of b - a over the items where both are finite (None where the dtype
    has no arithmetic here). `not_finite`: changed items of which one side is no finite number.
    """

    items: int
    changed: int
    l2: float | None
    max_abs: float | None
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A path that differs. `status`: changed, added, removed, or reshaped (another dtype or shape)."""

    path: str
    status: str
    before: str = ""
    after: str = ""
    form: str = ""
    change: Change | None = None


Compare = Callable[[Stored, Stored], Change]


def diff(store: Store, a: str, b: str, compare: Compare, *, prefix: str = "", tell: Tell = silent) -> Iterator[Row]:
    """Rows for every path below `prefix` that differs, in the order of paths; two equal snapshots give none."""
    left, right = ({p: i for p, i in store.snapshot(root).items() if p.startswith(prefix)} for root in (a, b))
    paths = sorted({*left, *right})
    for path in counted(paths, "paths", len(paths), tell):
        before, after = left.get(path, ""), right.get(path, "")
        if before == after:
            continue
        if not before or not after:
            found = store.entry(after or before)[1]
            yield Row(path, "added" if after else "removed", before, after, _form(found.dtype, found.shape))
            continue
        yield _compared(store, path, before, after, compare)


def _compared(store: Store, path: str, before: str, after: str, compare: Compare) -> Row:
    old, new = store.get(before), store.get(after)
    forms = _form(old.dtype, old.shape), _form(new.dtype, new.shape)
    if forms[0] != forms[1]:
        return Row(path, "reshaped", before, after, f"{forms[0]} -> {forms[1]}")
    return Row(path, "changed", before, after, forms[1], compare(old, new))


def _form(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}{list(shape)}"
