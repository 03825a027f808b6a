"""What the command line is set to, and by whom: flag > environment > project > user > default.

Responsible for: the settings, their names in files and in the environment, and where each value comes from. Project: the nearest
`recuros.toml` from the working directory upward. User: `$XDG_CONFIG_HOME/recuros/config.toml`, else `~/.config/recuros/config.toml`.
Refuses: unknown names and values that do not fit, with the file and the nearest name (E2-USAGE). Without a file it reads none, and
imports nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from syscalls.errors import RecurosError

FORMATS: Final = ("table", "wide", "json", "jsonl", "name")
PROJECT_FILE: Final = "recuros.toml"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a path")
    return value


def _maybe(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a path, or empty")
    return value


def _format(value: Any) -> str:
    if value not in FORMATS:
        raise ValueError(f"one of {', '.join(FORMATS)}")
    return str(value)


def _seconds(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number < 1e9:
        raise ValueError("a number of seconds above 0")
    return number


def _switch(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise ValueError("true or false")
    return found


@dataclass(frozen=True)
class Setting:
    """A setting: its name in files, in the environment and on the command line, its default, and what it is for."""

    name: str
    variable: str
    flag: str
    default: Any
    read: Callable[[Any], Any]
    doc: str


SETTINGS: Final = (
    Setting("run", "RECUROS_RUN", "--run", ".recuros", _text, "run directory"),
    Setting("output", "RECUROS_OUTPUT", "-o", "table", _format, "form of the data on stdout"),
    Setting("timeout", "RECUROS_TIMEOUT", "--timeout", 30.0, _seconds, "seconds to wait for an answer"),
    Setting("color", "RECUROS_COLOR", "--no-color", True, _switch, "colour on a terminal; NO_COLOR in the environment wins"),
    Setting("remote", "RECUROS_REMOTE", "", "", _maybe, "file of a remote operator; empty: a runtime of this machine"),
    Setting("history", "RECUROS_HISTORY", "", True, _switch, "whether `recuros shell` keeps its history in the user's state directory"),
)  # fmt: skip
BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True)
class Value:
    """A setting's value and where it comes from: "default", "flag --run", "environment RECUROS_RUN", or a file's path."""

    value: Any
    origin: str


def user_file() -> Path:
    """The user's own file; it need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "recuros" / "config.toml"


def project_file() -> Path | None:
    """The nearest `recuros.toml` from here upward."""
    try:
        here = Path.cwd()
    except OSError:  # the working directory was removed
        return None
    return next((file for folder in (here, *here.parents) if (file := folder / PROJECT_FILE).is_file()), None)


def files() -> Iterator[Path]:
    """The files that are there, the stronger one last."""
    try:
        mine = user_file()
    except RuntimeError:  # no home directory
        mine = None
    if mine is not None and mine.is_file():
        yield mine
    theirs = project_file()
    if theirs is not None:
        yield theirs


def load() -> dict[str, Value]:
    """Every setting as files and environment have it; E2-USAGE names the file, the name and the value."""
    found = {setting.name: Value(setting.default, "default") for setting in SETTINGS}
    for path in files():
        found.update(_of_file(path))
    for setting in SETTINGS:
        text = os.environ.get(setting.variable)
        if text:
            found[setting.name] = Value(_read(setting, text, setting.variable), f"environment {setting.variable}")
    if os.environ.get("NO_COLOR"):
        found["color"] = Value(False, "environment NO_COLOR")
    return found


def _of_file(path: Path) -> dict[str, Value]:
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecurosError("E2-USAGE", f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecurosError("E2-USAGE", f"{path} is not TOML: {error}", hint="recuros config check") from error
    found = {name: Value(_read(_known(name, path), value, str(path)), str(path)) for name, value in table.items()}
    if "run" in found:  # as seen from the file, wherever the command is typed
        found["run"] = Value(str(path.parent / Path(found["run"].value).expanduser()), str(path))
    return found


def _known(name: str, path: Path) -> Setting:
    if name not in BY_NAME:
        import difflib

        close = difflib.get_close_matches(name, BY_NAME, n=1) or [", ".join(BY_NAME)]
        raise RecurosError("E2-USAGE", f"{path}: there is no setting {name!r}; did you mean {close[0]}?")
    return BY_NAME[name]


def _read(setting: Setting, value: Any, where: str) -> Any:
    try:
        return setting.read(value)
    except ValueError as error:
        raise RecurosError("E2-USAGE", f"{where}: {setting.name} = {value!r:.80} must be {error}") from None


def rows(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    """One row a setting, for `recuros config show`."""
    return [
        {"name": s.name, "value": values[s.name].value, "origin": values[s.name].origin, "what": s.doc}
        for s in SETTINGS
    ]
