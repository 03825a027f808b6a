"""What every verb gets: the run directory, the output format, and the one way to print.

Responsible for: the global options' values, opening a session with the runtime, and data on stdout against messages on stderr.
Refuses: colour off a terminal, anything but data on stdout.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from syscalls.client import Client

FORMATS: Final = ("table", "wide", "json", "jsonl", "name")
TIMEOUT_DEFAULT_S: Final = 30.0


@dataclass
class Table:
    """Rows for people. `columns` maps keys of the rows to headings; those in `wide` show with `-o wide` only; `key` names a row."""

    rows: Sequence[Mapping[str, Any]]
    columns: Mapping[str, str]
    wide: Sequence[str] = ()
    key: str = "name"
    empty: str = "nothing"


@dataclass
class Context:
    """The values of the global options, and what verbs do with them."""

    run_option: str | None = None
    output: str = "table"
    timeout_option_s: float | None = None
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    shared: Client | None = field(default=None, repr=False)

    @property
    def run(self) -> Path:
        """The run directory; it need not exist."""
        from syscalls.rundir import resolve_run

        return resolve_run(self.run_option)

    @property
    def timeout_s(self) -> float:
        """How long one answer may take."""
        return TIMEOUT_DEFAULT_S if self.timeout_option_s is None else self.timeout_option_s

    @property
    def color(self) -> bool:
        """Whether stdout may carry colour."""
        return self._may_color(sys.stdout.isatty())

    @property
    def color_err(self) -> bool:
        """Whether stderr may carry colour and movement."""
        return self._may_color(sys.stderr.isatty())

    def _may_color(self, terminal: bool) -> bool:
        return terminal and not self.no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A session with the runtime of `run`; E3-DOWN when there is none. In the shell all verbs share one."""
        if self.shared is not None:
            yield self.shared
            return
        from recuros import connect, listens

        with connect(self.run, timeout_s=self.timeout_s) as client:
            try:
                yield client  # type: ignore[misc]  # Peer.__enter__ is typed as Peer
            except RecurosError as error:
                if error.code == "E124-TIMEOUT" and not listens(self.run):
                    raise RecurosError(
                        "E3-GONE",
                        f"the runtime in {self.run} went away before it answered",
                        hint="recuros logs; recuros boot resumes",
                    ) from error
                raise

    def confirm(self, question: str, what: str, yes: bool) -> None:
        """Ask on a terminal before something is destroyed; elsewhere E2-USAGE unless `yes` was given."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise RecurosError("E2-USAGE", f"{what}, and there is no terminal to ask on", hint="add --yes")
        import click

        click.confirm(question, abort=True, err=True)

    def message(self, text: str) -> None:
        """A line for the person, on stderr; nothing with --quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def emit(self, doc: Mapping[str, Any], table: Table | str | None = None) -> None:
        """Print one document in the chosen format. `table` is its form for people: rows, or finished text.

        jsonl prints a line a row, name prints each row's key; without rows both fall back to the whole document.
        """
        if (
            self.output == "json"
            or (self.output in ("jsonl", "name") and not isinstance(table, Table))
            or table is None
        ):
            _write(json.dumps(plain(doc), indent=2 if sys.stdout.isatty() else None))
        elif isinstance(table, str):
            _write(table)
        elif self.output == "jsonl":
            for row in table.rows:
                _write(json.dumps(plain(row)))
        elif self.output == "name":
            for row in table.rows:
                _write(str(row.get(table.key, "")))
        else:
            _write("\n".join(format_rows(table, wide=self.output == "wide")))

    def changed(self, schema: str, answer: Mapping[str, Any], what: str) -> None:
        """Print what a change did: its ledger sequence number and the step from which it holds."""
        seq, step = int(answer.get("seq", -1)), int(answer.get("step", -1))
        if answer.get("dry_run"):
            when = f"at step {step}" if step >= 0 else "at the next window"
            self.emit({"schema": schema, **answer}, f"{what}: would be accepted, effective {when}; nothing was changed")
            return
        where = f"effective at step {step}" if step >= 0 else "effective at the next window"
        record = f"ledger seq {seq}" if seq >= 0 else "no ledger record"
        self.emit({"schema": schema, **answer}, f"{what}: {record}, {where}")


def _write(text: str) -> None:
    if text:
        print(text, flush=True)


def plain(value: Any) -> Any:
    """As JSON data: bytes become hex, a float that JSON cannot hold becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ",".join(cell(v) for v in value) or "-"
    if isinstance(value, Mapping):
        return " ".join(f"{k}={cell(v)}" for k, v in value.items()) or "-"
    return str(value)


def format_rows(table: Table, *, wide: bool) -> list[str]:
    """Aligned columns; numbers to the right."""
    if not table.rows:
        return [table.empty]
    keys = [key for key in table.columns if wide or key not in table.wide]
    body = [[cell(row.get(key)) for key in keys] for row in table.rows]
    right = [all(isinstance(row.get(key), int | float | None) for row in table.rows) for key in keys]
    head = [table.columns[key] for key in keys]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(keys))]
    lines = []
    for line in [head, *body]:
        cells = [
            text.rjust(w) if to_right else text.ljust(w) for text, w, to_right in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def no_such(what: str, name: str, known: Sequence[str]) -> RecurosError:
    """E4-NOENT with the names there are, nearest first."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3) or list(known)[:8]
    return RecurosError("E4-NOENT", f"no {what} is called {name!r}; there are: {', '.join(close) or 'none'}")
