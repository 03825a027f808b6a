"""The `recuros` command.

Responsible for: the list of verbs, and turning every way a verb can end into a line on stderr and an exit status. Imports
nothing that a verb does not need: `recuros ps` loads neither pydantic nor rich, and no verb of a client loads torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from console.context import Context
from console.verb import Lazy, ReaderGoneError, add_globals
from syscalls.errors import RecurosError

INTERRUPTED: Final = 130
VERBS: Final[dict[str, tuple[str, str, str]]] = {
    "boot": ("console.verbs.boot", "boot", "Start a runtime, or resume the one of this run directory."),
    "halt": ("console.verbs.runtime", "halt", "Drain, commit and stop the runtime."),
    "status": ("console.verbs.runtime", "status", "The whole runtime at a glance."),
    "ps": ("console.verbs.runtime", "ps", "The processes: kernel and servers."),
    "top": ("console.verbs.top", "top", "Servers, lanes, windows and probes as they move."),
    "wait": ("console.verbs.runtime", "wait", "Wait until a condition holds."),
    "tour": ("console.verbs.tour", "tour", "The first five minutes: see it work, and see it fail well."),
    "doctor": ("console.verbs.doctor", "doctor", "Check that this host can run a runtime."),
    "config": ("console.verbs.config", "config", "Settings and manifests: show them with their origins, check them."),
    "logs": ("console.verbs.logs", "logs", "What the processes wrote."),
    "explain": ("console.verbs.explain", "explain", "What a code means, or why an object is as it is."),
    "report": ("console.verbs.report", "report", "What a run directory holds, from its ledger."),
    "learner": ("console.verbs.learner", "learner", "Pause, steer, prune and calibrate the learner."),
    "swap": ("console.verbs.learner", "swap", "Make the student the teacher."),
    "snapshot": ("console.verbs.snapshot", "snapshot", "Name, list, inspect and restore snapshots."),
    "sched": ("console.verbs.sched", "sched", "The replay reservation and its admission."),
    "probe": ("console.verbs.probe", "probe", "Attach, read and detach probes."),
    "cap": ("console.verbs.cap", "cap", "Capabilities: who may do what."),
    "remote": ("console.verbs.remote", "remote", "Operators on other machines: keys, and where they connect."),
    "kfs": ("console.verbs.kfs", "kfs", "The ledger and the store: log, show, verify."),
    "nexus": ("console.verbs.nexus", "nexus", "From many teachers to one stand-alone student bundle."),
    "replay": ("console.verbs.replay", "replay", "Do windows and policies again, and compare bit for bit."),
    "bench": ("console.verbs.bench", "bench", "How fast this host is at what a runtime does."),
    "dash": ("console.verbs.dash", "dash", "The dashboard, in a browser on this machine."),
    "syscall": ("console.verbs.syscall", "syscall", "Any syscall by name."),
    "shell": ("console.verbs.shell", "shell", "The same verbs over one connection."),
    "completion": ("console.verbs.completion", "completion", "Completion for bash, zsh and fish."),
}


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        print(f"recuros {version('recuros')}")
        ctx.exit()


cli = Lazy(
    "recuros",
    table=VERBS,
    help="RecurOS: a runtime for models that keep learning, under oversight.",
    no_args_is_help=True,
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Version and exit."
        )
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
add_globals(cli, hidden=False)


def run(argv: Sequence[str], context: Context | None = None) -> int:
    """Run one command line and return its exit status. Errors go to stderr here and nowhere else."""
    try:
        result = cli.main(list(argv), prog_name="recuros", standalone_mode=False, obj=context or Context.configured())
        return result if isinstance(result, int) else 0
    except RecurosError as error:
        _complain(str(error))
        return error.exit_status
    except click.exceptions.NoArgsIsHelpError as error:
        _complain(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        inner = getattr(error, "ctx", None)
        path = inner.command_path if inner is not None else "recuros"
        _complain(str(RecurosError("E2-USAGE", error.format_message(), hint=f"{path} --help")))
        return 2
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except (BrokenPipeError, ReaderGoneError):
        # The reader has what it wanted. What is still buffered must not raise a second time when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        return  # nobody is left to read it; the exit status says it


def main() -> None:
    """The console script; for a shell's completion it answers with candidates instead."""
    how = os.environ.get("_RECUROS_COMPLETE")
    sys.exit(_complete(how) if how else run(sys.argv[1:]))


def _complete(how: str) -> int:
    from console.complete import answer

    try:
        print("\n".join(answer(cli, how, " ".join(sys.argv[1:]))))
    except (RecurosError, OSError, KeyboardInterrupt):
        return 1  # a key press is no place for messages
    return 0


if __name__ == "__main__":
    main()
