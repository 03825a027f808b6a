"""How a verb is declared: its help page, the global options it takes on either side, and suggestions for a wrong name.

Responsible for: one shape of help for every verb (one line, synopsis, three examples, right, exit codes).
Refuses: unknown names, with the nearest ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import click
from click.core import ParameterSource

from console.context import Context
from console.settings import FORMATS

EXITS: Final[dict[int, str]] = {
    0: "ok",
    1: "answered no",
    2: "usage",
    3: "not running",
    4: "no such object",
    5: "capability denied",
    6: "admission refused",
    7: "deadline missed and rolled back",
    8: "verifier rejected",
    9: "integrity failure",
    75: "retry",
    124: "timeout",
    130: "interrupted",
}
GLOBALS_LINE: Final = (
    "Global options, before or after the verb: --run DIR, -o table|wide|json|jsonl|name, --json, --timeout S, "
    "-q, -v, --no-color"
)


class ReaderGoneError(Exception):
    """Whoever read stdout has what it wanted. Not an OSError: click makes exit status 1 of those before anybody else sees them."""


class Verb(click.Command):
    """A command whose help page is complete. `right`: what the caller must hold, "" for none."""

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), right: str = "", exits: Sequence[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.right = right
        self.exits = tuple(sorted({0, 2, *exits}))

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; a closed pipe is no failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line, synopsis, options, examples, right, exit codes."""
        formatter.write_text(self.help or "")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        self.format_options(ctx, formatter)
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
        with formatter.section("Right needed"):
            formatter.write_text(self.right or "none")
        with formatter.section("Exit codes"):
            formatter.write_text(", ".join(f"{code} {EXITS[code]}" for code in self.exits))
        formatter.write_paragraph()
        formatter.write_text(GLOBALS_LINE)


def verb(
    name: str, doc: str, *, examples: Sequence[str], right: str = "", exits: Sequence[int] = ()
) -> Callable[[Callable[..., Any]], Verb]:
    """Declare a verb. Its function takes the Context first and returns an exit status or None."""

    def declare(function: Callable[..., Any]) -> Verb:
        decorate = click.command(name, cls=Verb, help=doc, examples=examples, right=right, exits=exits)
        return decorate(click.pass_obj(function))

    return declare


def changes(*, dry_run: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb that changes something `--reason TEXT` and, where the kernel can tell, `--dry-run`."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        if dry_run:
            function = click.option("--dry-run", is_flag=True, help="Check, and change nothing.")(function)
        return click.option("--reason", default="", metavar="TEXT", help="Goes into the ledger.")(function)

    return declare


class Noun(click.Group):
    """A group of verbs that suggests the nearest name for a wrong one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with suggestions."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib  # only a wrong name needs it

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=3, cutoff=0.4)
            more = f"; did you mean: {', '.join(close)}?" if close else ""
            raise click.UsageError(f"no command is called {name!r}{more}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their first sentences, in full."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, first_sentence(command.help)) for name, command in self.commands.items()])


def first_sentence(text: str | None) -> str:
    """Up to the first full stop that ends one."""
    return (text or "").partition(". ")[0].removesuffix(".") + "."


def noun(name: str, doc: str) -> Noun:
    """A group of verbs under one noun."""
    return Noun(name, help=doc, no_args_is_help=True)


class Lazy(Noun):
    """The root: a table name -> (module, attribute, line of help); a module is imported when its verb is named."""

    def __init__(self, *args: Any, table: dict[str, tuple[str, str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table: what one does first comes first."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and give its options the global ones."""
        import importlib

        if cmd_name not in self.table:
            return None
        module, attribute, _ = self.table[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        add_globals(command, hidden=True)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in self.table.items()])


def add_globals(command: click.Command, *, hidden: bool) -> None:
    """Give a command, and every command below it, the global options; what it declares itself stays."""
    taken = {flag for param in command.params for flag in param.opts}
    for option in _global_options(hidden):
        if not taken.intersection(option.opts):
            command.params.append(option)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            add_globals(below, hidden=hidden)


def _global_options(hidden: bool) -> list[click.Option]:
    def remember(attribute: str, fixed: Any = None) -> Callable[[click.Context, click.Parameter, Any], Any]:
        def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
            given = param.name is not None and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
            if given:
                context = ctx.ensure_object(Context)
                setattr(context, attribute, value if fixed is None else fixed)
                context.flags[attribute] = param.opts[0]
            return value

        return callback

    def option(*names: str, attribute: str, fixed: Any = None, **settings: Any) -> click.Option:
        return click.Option(names, expose_value=False, hidden=hidden, callback=remember(attribute, fixed), **settings)

    return [
        option(
            "--run", "_run", attribute="run_option", metavar="DIR", help="Run directory [RECUROS_RUN, else ./.recuros]."
        ),
        option(
            "-o",
            "--output",
            "_output",
            attribute="output",
            type=click.Choice(FORMATS),
            help="Form of the data on stdout.",
        ),
        option("--json", "_json", attribute="output", fixed="json", is_flag=True, help="Same as -o json."),
        option(
            "--timeout",
            "_timeout",
            attribute="timeout_option_s",
            type=click.FloatRange(0.001),
            metavar="S",
            help="Seconds to wait for an answer [30].",
        ),
        option("-q", "--quiet", "_quiet", attribute="quiet", is_flag=True, help="No messages on stderr."),
        option("-v", "--verbose", "_verbose", attribute="verbose", is_flag=True, help="More messages on stderr."),
        option("--no-color", "_no_color", attribute="no_color", is_flag=True, help="No colour."),
    ]
