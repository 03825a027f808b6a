"""The shell on a terminal: live prompt, completion of live ids, history.

Responsible for: everything of `recuros shell` that needs prompt_toolkit. Refuses: to wait for a runtime that does not answer; the
prompt then says `busy`, or `down` where there is none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from console import complete
from console.context import Context
from console.verbs.shell import LEAVE, connect, drop
from syscalls.errors import RecurosError

FRESH_S: Final = 0.5
ASK_TIMEOUT_S: Final = 1.0
OWN_WORDS: Final = {"watch": "watch [-n S] [-c COUNT] VERB ...", "help": "the help page of a verb"} | dict.fromkeys(
    LEAVE, "leave the shell"
)
FLAGS: Final = (("r", "read-trace"), ("s", "steer"), ("t", "attach-probe"), ("x", "interrupt"))


class Prompt:
    """`L0@1204 gen3 [rstx]> `: the learner's step, its generation, and which rights the session has; asked twice a second at most."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._text = ""
        self._asked = 0.0
        self._rights = ("", "")  # of which session, and its flags

    def __call__(self) -> str:
        """The prompt as it is now."""
        now = time.monotonic()
        if not self._text or now - self._asked >= FRESH_S:
            self._text = self._ask()
            self._asked = time.monotonic()
        return self._text

    def stale(self) -> None:
        """Ask anew before the next line."""
        self._text = ""

    def _ask(self) -> str:
        connect(self._ctx)
        client = self._ctx.shared
        if client is None:
            return "down> "
        try:
            status = client.syscall("status", timeout_s=ASK_TIMEOUT_S)["status"]
            if self._rights[0] != client.principal:
                caps = client.syscall("cap_list", timeout_s=ASK_TIMEOUT_S)["caps"]
                self._rights = (client.principal, flags(caps))
        except RecurosError as error:
            if error.code == "E124-TIMEOUT":
                return "busy> "
            drop(self._ctx)
            return "down> "
        return f"L0@{step_of(status)} gen{status.get('generation', 0)} [{self._rights[1]}]> "


def flags(caps: list[dict[str, Any]]) -> str:
    """The rights of a session in four letters, a dash for each that it lacks."""
    held = {right for cap in caps for right in cap.get("rights", [])}
    return "".join(letter if right in held else "-" for letter, right in FLAGS)


def step_of(status: dict[str, Any]) -> int:
    """Steps of the last staged state, and those of the running window on top."""
    staged = status.get("metrics", {}).get("step", 0)
    return int(staged) + int(status.get("window", {}).get("step", 0) or 0)


class _Completer(Completer):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What the command line's completion gives, and the shell's own words."""
        from console.main import cli

        words, incomplete = complete.split("recuros " + document.text_before_cursor)
        words = words[1:]
        if words[:1] in (["watch"], ["help"]):
            words = words[1:]
            while words[:1] in (["-n"], ["-c"]):
                words = words[2:]
        found = complete.candidates(cli, words, incomplete, self._ctx)
        if not words:
            found = [*found, *((w, about) for w, about in OWN_WORDS.items() if w.startswith(incomplete))]
        for word, about in found:
            yield Completion(word, start_position=-len(incomplete), display_meta=about)


def history_file() -> Path:
    """Where typed lines are kept."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "recuros" / "history"


def _history(ctx: Context) -> History:
    kept = ctx.settings.get("history")
    if kept is None or not kept.value:
        return InMemoryHistory()
    try:
        path = history_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except (OSError, RuntimeError) as error:
        ctx.message(f"history is not kept: {error}")
        return InMemoryHistory()
    return FileHistory(str(path))


class Session:
    """A terminal session."""

    def __init__(self, ctx: Context) -> None:
        self._prompt = Prompt(ctx)
        self._session: PromptSession[str] = PromptSession(
            history=_history(ctx),
            completer=_Completer(ctx),
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            refresh_interval=FRESH_S,
        )

    def prompt(self) -> str:
        """The next line."""
        self._prompt.stale()
        return self._session.prompt(self._prompt)


def open_session(ctx: Context) -> Session:
    """A session on the terminal of this process."""
    return Session(ctx)
