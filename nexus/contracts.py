"""Retention contracts: the one source of every threshold.

Responsible for: reading `retention_contracts.md`, whose first table with the right columns is the contract; nothing else in a
run says what is good enough. Refuses: a page without the table, unknown columns, a capability twice, fractions and counts
outside their limits, metrics that do not exist; each names the line.

    | capability | metric       | retain | chance | items |
    |------------|--------------|--------|--------|-------|
    | code       | byte-accuracy| 0.97   | 0      | 400   |

`retain`: share of the teacher's score, above chance, that the student must keep. `items`: how many test items at least.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from syscalls.errors import RecurosError

COLUMNS: Final = ("capability", "metric", "retain", "chance", "items")
METRICS: Final = ("exact-match", "byte-accuracy", "choice-accuracy")
RETAIN_DEFAULT: Final = 0.97
RETAIN_MAX: Final = 1.5
ITEMS_MIN: Final = 400
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,47}\Z")


@dataclass(frozen=True)
class Contract:
    """What one capability must keep."""

    capability: str
    metric: str
    retain: float
    chance: float
    items: int


def load(path: Path) -> dict[str, Contract]:
    """The contracts of a page; E2-MANIFEST names the file when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refuse(
            str(path), f"cannot be read: {error}", "give a Markdown page with the table of contracts"
        ) from error
    return parse(text, str(path))


def parse(text: str, where: str) -> dict[str, Contract]:
    """Read the table. `where` names the page in errors."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _cells(line) == list(COLUMNS)), -1)
    if start < 0:
        found = next((_cells(line) for line in lines if line.strip().startswith("|")), [])
        raise _refuse(
            where,
            f"no table has the columns {' | '.join(COLUMNS)}"
            + (f"; the first has {' | '.join(found)}" if found else ""),
            "write them in this order, in lower case",
        )
    contracts: dict[str, Contract] = {}
    for number, line in enumerate(lines[start + 1 :], start=start + 2):
        if not line.strip().startswith("|"):
            break
        cells = _cells(line)
        if number == start + 2 and all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            continue
        contract = _row(cells, f"{where}:{number}")
        if contract.capability in contracts:
            raise _refuse(f"{where}:{number}", f"capability {contract.capability!r} has a contract already", "keep one")
        contracts[contract.capability] = contract
    if not contracts:
        raise _refuse(where, "the table of contracts is empty", "one row a capability")
    return contracts


def check_names(contracts: Mapping[str, Contract], capabilities: Mapping[str, str], where: str) -> None:
    """Every contract names a capability and every capability (name -> metric) has its contract, on the same metric."""
    for name, contract in contracts.items():
        if name not in capabilities:
            raise _refuse(where, f"the contract {name!r} names no capability", f"there are: {', '.join(capabilities)}")
        if contract.metric != capabilities[name]:
            raise _refuse(
                where,
                f"the contract of {name!r} is on {contract.metric}, its data are scored by {capabilities[name]}",
                f"write {capabilities[name]}",
            )
    missing = sorted(set(capabilities) - set(contracts))
    if missing:
        raise _refuse(
            where, f"capability {missing[0]!r} has no contract", f"add a row, retain {RETAIN_DEFAULT} by default"
        )


def _cells(line: str) -> list[str]:
    text = line.strip()
    if not (text.startswith("|") and text.endswith("|")):
        return []
    return [cell.strip() for cell in text[1:-1].split("|")]


def _row(cells: list[str], where: str) -> Contract:
    if len(cells) != len(COLUMNS):
        raise _refuse(where, f"{len(cells)} cells where {len(COLUMNS)} are expected", " | ".join(COLUMNS))
    name, metric, retain, chance, items = cells
    if not _NAME.match(name):
        raise _refuse(where, f"capability {name!r:.60} is no name", "lower case, digits and hyphens")
    if metric not in METRICS:
        raise _refuse(where, f"metric {metric!r:.60} is unknown", f"one of {', '.join(METRICS)}")
    return Contract(
        name,
        metric,
        _number(retain, "retain", 0.01, RETAIN_MAX, where),
        _number(chance, "chance", 0.0, 0.99, where),
        int(_number(items, "items", ITEMS_MIN, 1e9, where)),
    )


def _number(text: str, column: str, low: float, high: float, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise _refuse(where, f"{column} = {text!r:.40} is not a number in [{low:g}, {high:g}]", "correct that cell")
    return value


def _refuse(where: str, what: str, hint: str) -> RecurosError:
    return RecurosError("E2-MANIFEST", f"{where}: {what}", hint=hint)
