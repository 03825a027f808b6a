"""The documentation against what it speaks of: commands, links, the status map, the table of windows, and pages made from code."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from console import gen
from console import main as console
from console.context import Context
from kernel import config, core
from kernel import status as status_module
from kernel.events import Boot
from kernel.state import Turn
from kernel.window import TRANSITIONS, WindowState
from servers import manifest as manifests

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def typed() -> Iterator[tuple[str, str]]:
    """(page, command line) for each `$ ` line of the console blocks."""
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in re.findall(r"^\$ (.+)$", block, re.MULTILINE):
                for part in re.split(r" (?:\||&&|;) ", line):
                    if part.startswith("recuros "):
                        yield name_of(page), part


def spoken() -> Iterator[tuple[str, str]]:
    """(page, text) for each `recuros ...` in running text."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for span in re.findall(r"`(recuros [^`]+)`", text):
            yield name_of(page), span


def parse(words: list[str]) -> None:
    """Parse a command line without running it; a click error says what is wrong."""
    context = console.cli.make_context("recuros", words, obj=Context())
    command: click.Command = console.cli
    rest = [*context._protected_args, *context.args]
    while isinstance(command, click.Group):
        name, inner, rest = command.resolve_command(context, rest)
        assert inner is not None
        assert name is not None
        context = inner.make_context(name, rest, parent=context)
        command = inner
        rest = [*context._protected_args, *context.args]


@pytest.mark.parametrize(("page", "line"), sorted(set(typed())))
def test_a_command_in_the_docs_parses(page: str, line: str) -> None:
    parse(shlex.split(re.split(r" [<>] ", line)[0])[1:])


def test_a_verb_that_the_docs_speak_of_exists() -> None:
    paths = {path for path, _ in gen.verbs()}
    known = paths | {path.split()[0] for path in paths}
    for page, span in spoken():
        words = [word for word in span.split()[1:] if re.fullmatch(r"[a-z]+", word)]
        if not words or span.split()[1].isupper():
            continue
        assert words[0] in known, f"{page}: `{span}`"
        if words[0] not in paths and len(words) > 1:
            assert " ".join(words[:2]) in paths, f"{page}: `{span}`"


def test_every_verb_is_on_the_reference_page() -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    for path, command in gen.verbs():
        assert f"\n## {path}\n" in page
        assert command.help
        assert command.help in page


@pytest.mark.parametrize(("page", "make"), [("commands.md", gen.commands), ("errors.md", gen.errors)])
def test_a_page_that_is_made_is_up_to_date(page: str, make: object) -> None:
    assert callable(make)
    assert (REFERENCE / page).read_text(encoding="utf-8") == make(), "run: python -m console.gen"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index)}
    missing = [name_of(p) for p in PAGES if "docs" in p.parts and p.name != "README.md" and p not in listed]
    assert not missing


def booted_status(run: Path) -> dict[str, object]:
    """The status map of a kernel that has taken its first step."""
    document = manifests.boot_document(manifests.load(manifests.app_path("digits")), run, run, detached=False)
    state, _ = core.step(None, Boot(config.parse(document), "0" * 16, 1, {}), 1)
    return status_module.status(Turn(state, 1))


def test_every_key_of_the_status_is_documented(tmp_path: Path) -> None:
    page = (REFERENCE / "status.md").read_text(encoding="utf-8")
    first = page.split("\n`phase`:\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", first, re.MULTILINE)) == booted_status(tmp_path).keys()
    tree = ast.parse(Path(status_module.__file__).read_text(encoding="utf-8"))
    literals = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    keys = {key.value for node in literals for key in node.keys if isinstance(key, ast.Constant)}
    assert not {key for key in keys if f"`{key}`" not in page}


def test_the_diagram_of_a_window_is_its_table() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^ +([A-Z_]+) --> ([A-Z_]+)$", page, re.MULTILINE))
    assert drawn == {(a.name, b.name) for a, following in TRANSITIONS.items() for b in following}
    assert {name for pair in drawn for name in pair} == {state.name for state in WindowState}
