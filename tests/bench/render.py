"""docs/benchmarks.md from the rows of the parts.

Rows lie in docs/bench/PART.jsonl, so that the page can be made again anywhere; a part that was run here (build/bench/PART.jsonl)
is copied there first. What a reader must know of a run that no row says stands beside it, in docs/bench/PART.txt. Responsible
for: showing every row, missed targets included. Refuses: rows of another form.

    make bench PART=render
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tests.bench._rows import BUILD, ROOT

KEPT = ROOT / "docs" / "bench"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Every figure here comes from the command named above its table, which writes one JSON line a row; `make bench PART=render` makes this
page of those lines (kept in `docs/bench/`). A ratio is against the peer named in its row, run in turns with it on the same
machine. Value: the median of n; spread: its quartiles. A spread wider than a row's distance from its target means that the row
is not settled, whatever the verdict says; the A/A control shows how wide the machine alone makes it. Load is the one-minute
average before the run: what other processes on the machine took.
"""
VERDICTS = {None: "", True: "met", False: "**missed**"}


def bring() -> None:
    """Take over what was measured here."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for path in sorted(BUILD.glob("*.jsonl")):
        (KEPT / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in sorted(KEPT.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if rows:
            parts.append(section(path.stem, rows))
            remarks = path.with_suffix(".txt")
            if remarks.exists():
                parts.append(remarks.read_text(encoding="utf-8"))
    return "\n".join(parts)


def section(part: str, rows: list[dict[str, Any]]) -> str:
    """A part: where the figures come from, what was missed, the table, the notes."""
    first = rows[0]
    facts = [first.get("date"), first.get("machine"), _seeds(first), _load(first)]
    judged = [row for row in rows if row["met"] is not None]
    missed = [row["row"] for row in judged if not row["met"]]
    unresolved = sum(not row.get("resolved", True) for row in rows)
    lines = [
        f"## {part}",
        "",
        f"`{first.get('command', f'make bench PART={part}')}`: {'; '.join(str(f) for f in facts if f)}.",
        "",
        f"{len(judged) - len(missed)} of {len(judged)} targets met"
        + (f"; {unresolved} not resolved" if unresolved else "")
        + (f"; missed: {'; '.join(missed)}." if missed else "."),
        "",
        "| row | value | target | | spread | n | peer |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for row in rows:
        mark = ""
        if row.get("note"):
            notes.append(row["note"])
            mark = f" ({len(notes)})"
        cells = [
            row["row"] + mark,
            f"{_value(row['value'])} {row.get('unit') or ''}".strip(),
            row["target"],
            VERDICTS[row["met"]] if row.get("resolved", True) else "not resolved",
            _spread(row["spread"]),
            row.get("n"),
            row["peer"],
        ]
        lines.append("| " + " | ".join("" if c is None else str(c).replace("|", "\\|") for c in cells) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1)), ""]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _spread(spread: Any) -> str:
    return f"{spread[0]:g} to {spread[1]:g}" if isinstance(spread, list) else str(spread or "")


def _seeds(row: dict[str, Any]) -> str:
    seeds = row.get("seeds")
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""


def _load(row: dict[str, Any]) -> str:
    return f"load {row['load_before']:g}" if "load_before" in row else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is that of docs/bench")
    options, _ = parser.parse_known_args()
    if options.check:
        raise SystemExit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE}: run make bench PART=render")
    bring()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} of {', '.join(sorted(p.stem for p in KEPT.glob('*.jsonl')))}")


if __name__ == "__main__":
    main()
