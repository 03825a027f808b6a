"""Rows of a benchmark: median, quartiles, target, verdict; one JSON line each in build/bench/PART.jsonl and a table on stdout.

Responsible for: the form of a row and the file of a part. Refuses: a verdict without a target, a median of nothing.
"""

from __future__ import annotations

import json
import operator
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench"
SIGNS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt}


@dataclass
class Rows:
    """The rows of one part. `context` goes into each of them: date, machine and whatever the part adds (seeds, pairs)."""

    part: str
    command: str
    context: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "command": self.command,
            **self.context,
        }

    def add(  # one keyword a column
        self,
        row: str,
        values: Sequence[float] | float | bool | str,
        target: str = "",
        *,
        unit: str = "",
        peer: str = "",
        note: str = "",
        resolved: bool = True,
    ) -> None:
        """A row. Several values become their median, with the quartiles as spread; `target` reads like ">= 0.95".

        `resolved`: False where the control spreads too far for a verdict; there is then none.
        """
        spread: list[float] | None = None
        value: float | bool | str
        count = 1
        if isinstance(values, Sequence) and not isinstance(values, str):
            value, count = _round(statistics.median(values)), len(values)
            if count > 1:
                low, _, high = statistics.quantiles(values, n=4, method="inclusive")
                spread = [_round(low), _round(high)]
        else:
            value = _round(values) if isinstance(values, float) else values
        self.rows.append(
            {
                "row": row,
                "value": value,
                "target": target or None,
                "met": _met(value, target) if resolved else None,
                **({} if resolved else {"resolved": False}),
                "spread": spread,
                "peer": peer or None,
                "unit": unit,
                "n": count,
                "note": note,
                **self.context,
            }
        )
        print(_line(self.rows[-1]), flush=True)

    def write(self) -> Path:
        """build/bench/PART.jsonl, replaced as a whole."""
        BUILD.mkdir(parents=True, exist_ok=True)
        path = BUILD / f"{self.part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        print(f"{len(self.rows)} rows in {path.relative_to(ROOT)}")
        return path


def machine() -> str:
    """What the numbers were taken on."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def _met(value: float | bool | str, target: str) -> bool | None:
    if not target:
        return None
    sign, _, limit = target.partition(" ")
    if limit in ("True", "False"):
        return value is (limit == "True")
    return bool(SIGNS[sign](value, float(limit)))


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _line(row: dict[str, Any]) -> str:
    verdict = {None: "", True: "met", False: "MISSED"}[row["met"]] or ("" if row.get("resolved", True) else "?")
    spread = "" if row["spread"] is None else f"[{row['spread'][0]:g}, {row['spread'][1]:g}] n={row['n']}"
    return f"{row['row']:<78} {row['value']!s:>9} {row['unit']:<8} {row['target'] or '':<9} {verdict:<6} {spread}"
