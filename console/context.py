"""What every verb gets: the run directory, the output format, and the one way to print.

Responsible for: the global options' values, opening a session with the runtime, and data on stdout against messages on stderr.
Refuses: colour off a terminal, anything but data on stdout.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from console import settings
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from syscalls.client import Client

TIMEOUT_DEFAULT_S: Final = 30.0
SHRUNK_CHARS_MIN: Final = 8
BOLD, RED, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[0m"


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
    settings: Mapping[str, settings.Value] = field(default_factory=dict, repr=False)
    flags: dict[str, str] = field(default_factory=dict, repr=False)
    """Attributes that were given on the command line, with the flag."""

    @classmethod
    def configured(cls) -> Context:
        """From files and the environment; E2-USAGE when a file is wrong."""
        found = settings.load()
        return cls(output=found["output"].value, no_color=not found["color"].value, settings=found)

    def for_line(self) -> Context:
        """What one line of a shell begins with: the same settings and connection, and flags of its own."""
        return replace(self, flags=dict(self.flags))

    @property
    def run(self) -> Path:
        """The run directory; it need not exist."""
        from syscalls.rundir import resolve_run

        kept = self.settings.get("run")
        return resolve_run(self.run_option or (str(kept.value) if kept else None))

    @property
    def timeout_s(self) -> float:
        """How long one answer may take."""
        if self.timeout_option_s is not None:
            return self.timeout_option_s
        kept = self.settings.get("timeout")
        return float(kept.value) if kept else TIMEOUT_DEFAULT_S

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
        if (kept := self.settings.get("remote")) and kept.value:
            from syscalls.client import Client
            from syscalls.remote import load_card

            card = load_card(Path(kept.value).expanduser())
            with Client(self.run, timeout_s=self.timeout_s, card=card) as client:
                yield client  # type: ignore[misc]  # Peer.__enter__ is typed as Peer
            return
        from recuros import WATCH_MARKER, connect, listens

        if (self.run / WATCH_MARKER).exists():
            raise RecurosError(
                "E3-DOWN",
                f"{self.run} is what recuros.watch records of a script, which has no kernel to ask",
                hint="recuros probe ls | stats | dump, kfs, snapshot ls | show, report and dash read it",
            )
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

    def progress(self, title: str) -> AbstractContextManager[Callable[[str, int, int], None]]:
        """Progress on stderr of what takes longer than two seconds; call what is given with (what, done, total; 0: unknown)."""
        from console.progress import progress

        as_json = self.output in ("json", "jsonl")
        return progress(title, moving=self.color_err, quiet=self.quiet, as_json=as_json)

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
            lines = format_rows(table, wide=self.output == "wide", chars_max=_chars_max(self.output))
            if self.color and table.rows:
                lines[0] = f"{BOLD}{lines[0]}{PLAIN}"
            _write("\n".join(lines))

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


def _chars_max(output: str) -> int | None:
    """How wide a table may be: a terminal's width, unless `wide` was asked for. Pipes and files get everything."""
    if output == "wide" or not sys.stdout.isatty():
        return None
    import shutil

    return max(20, shutil.get_terminal_size((0, 0)).columns) if shutil.get_terminal_size((0, 0)).columns else None


def format_rows(table: Table, *, wide: bool, chars_max: int | None = None) -> list[str]:
    """Aligned columns; numbers to the right. Beyond `chars_max` the widest texts are shortened, with a mark where they end."""
    if not table.rows:
        return [table.empty]
    keys = [key for key in table.columns if wide or key not in table.wide]
    body = [[cell(row.get(key)) for key in keys] for row in table.rows]
    right = [all(isinstance(row.get(key), int | float | None) for row in table.rows) for key in keys]
    head = [table.columns[key] for key in keys]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(keys))]
    if chars_max is not None:
        widths = _shrunk(widths, right, chars_max)
    lines = []
    for line in [head, *body]:
        cells = [
            text.rjust(w) if to_right else _cut(text, w).ljust(w)
            for text, w, to_right in zip(line, widths, right, strict=True)
        ]
        lines.append(_cut("  ".join(cells).rstrip(), chars_max))
    return lines


def _shrunk(widths: list[int], right: list[bool], chars_max: int) -> list[int]:
    """Take from the widest texts, never from numbers, and from nothing below a few characters."""
    widths = list(widths)
    while (over := sum(widths) + 2 * (len(widths) - 1) - chars_max) > 0:
        texts = [i for i, to_right in enumerate(right) if not to_right and widths[i] > SHRUNK_CHARS_MIN]
        if not texts:
            break
        widest = max(texts, key=lambda i: widths[i])
        second = max((widths[i] for i in texts if i != widest), default=SHRUNK_CHARS_MIN)
        widths[widest] -= max(1, min(over, widths[widest] - max(second, SHRUNK_CHARS_MIN)))
    return widths


def _cut(text: str, chars: int | None) -> str:
    return text if chars is None or len(text) <= chars else text[: max(0, chars - 1)] + "…"


def no_such(what: str, name: str, known: Sequence[str]) -> RecurosError:
    """E4-NOENT with the names there are, nearest first."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3) or list(known)[:8]
    return RecurosError("E4-NOENT", f"no {what} is called {name!r}; there are: {', '.join(close) or 'none'}")
