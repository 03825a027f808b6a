"""What could be typed next: verbs, options, their choices, and the ids that are live in the run directory.

Responsible for: candidates for the word under the cursor, for the shells' completion and for `recuros shell`. Refuses: to fail or to
take long; whatever cannot be asked within a second gives no candidates. Paths are left to the shell.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from console.context import Context
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from console.verb import Lazy

VARIABLE: Final = "_RECUROS_COMPLETE"
LIVE_TIMEOUT_S: Final = 1.0
Candidates = Iterable[tuple[str, str]]


def line(root: Lazy, text: str, context: Context) -> list[tuple[str, str]]:
    """Candidates (word, what it is) for the last word of a command line whose first word is the program."""
    words, incomplete = split(text)
    return candidates(root, words[1:], incomplete, context)


def split(text: str) -> tuple[list[str], str]:
    """The finished words and the one under the cursor, by the quoting rules of POSIX shells; an open quote is part of the latter."""
    for closed in ("", "'", '"'):
        lexer = shlex.shlex(text + closed, posix=True, punctuation_chars=False)
        lexer.whitespace_split, lexer.commenters = True, ""
        try:
            words = list(lexer)
        except ValueError:
            continue
        if not closed and (not text or text[-1].isspace()):
            return words, ""
        return words[:-1], words[-1] if words else ""
    return [], ""


def candidates(root: Lazy, words: list[str], incomplete: str, context: Context) -> list[tuple[str, str]]:
    """Candidates after `words`; an option's value where the last of them is an option that wants one."""
    ctx, rest = _walk(root, words, context)
    command = ctx.command
    waiting = _wants_value(command, words)
    found: Candidates
    if waiting is not None:
        found = _values(ctx, waiting, incomplete)
    elif incomplete.startswith("-"):
        found = [
            (flag, param.help or "")
            for param in command.params
            if isinstance(param, click.Option)
            for flag in param.opts
            if flag.startswith("--")
        ]
        found = [*found, ("--help", "Show the help page.")]
    elif isinstance(command, click.Group):
        if rest:
            return []  # a word before this one is no verb
        table = getattr(command, "table", {})
        names = command.list_commands(ctx)
        found = [(n, table[n][2] if n in table else (command.commands[n].help or "").partition(".")[0]) for n in names]
    else:
        found = _values(ctx, _argument(command, rest), incomplete)
    return [(word, about) for word, about in found if word.startswith(incomplete)]


def _walk(root: Lazy, words: list[str], context: Context) -> tuple[click.Context, list[str]]:
    """Parse leniently as far as it goes: the innermost command's context, and the words that are its arguments."""
    ctx = root.make_context("recuros", list(words), obj=context, resilient_parsing=True)
    rest = [*ctx._protected_args, *ctx.args]
    while isinstance(ctx.command, click.Group) and rest:
        below = ctx.command.get_command(ctx, rest[0])
        if below is None:
            break
        ctx = below.make_context(rest[0], rest[1:], parent=ctx, resilient_parsing=True)
        given = [ctx.params.get(p.name or "") for p in below.params if isinstance(p, click.Argument)]
        rest = [*ctx._protected_args, *ctx.args] if isinstance(below, click.Group) else [str(v) for v in given if v]
    return ctx, rest


def _wants_value(command: click.Command, words: list[str]) -> click.Option | None:
    last = words[-1] if words else ""
    for param in command.params:
        if isinstance(param, click.Option) and last in param.opts and not param.is_flag:
            return param
    return None


def _argument(command: click.Command, rest: list[str]) -> click.Parameter | None:
    """The argument that comes next; the last one where it takes several."""
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    if not arguments:
        return None
    if len(rest) < len(arguments):
        return arguments[len(rest)]
    return arguments[-1] if arguments[-1].nargs == -1 else None


def _values(ctx: click.Context, param: click.Parameter | None, incomplete: str) -> Candidates:
    if param is None:
        return []
    if isinstance(param.type, click.Choice):
        return [(str(choice), "") for choice in param.type.choices]
    path = " ".join(ctx.command_path.split()[1:])
    source = SOURCES.get((path, param.name or "")) or SOURCES.get(("", param.name or ""))
    if source is None:
        return []
    context = ctx.find_object(Context) or Context()
    with contextlib.suppress(RecurosError, OSError, KeyError, ValueError):
        return source(context, incomplete)
    return []


# --- where live names come from ---------------------------------------------------------------------------------------------


def _client(context: Context) -> Any:
    if context.shared is not None:
        return contextlib.nullcontext(context.shared)
    from recuros import connect

    return connect(context.run, timeout_s=LIVE_TIMEOUT_S)


def _probe_ids(context: Context, incomplete: str) -> Candidates:
    with _client(context) as client:
        rows = client.status()["status"]["probes"]
    return [(str(row["id"]), f"{row['prog']} at {row['hook']}") for row in rows]


def _servers(context: Context, incomplete: str) -> Candidates:
    with _client(context) as client:
        return [(row["name"], row["state"]) for row in client.status()["status"]["servers"]]


def _objects(context: Context, incomplete: str) -> Candidates:
    found = [("runtime", "the whole runtime"), ("windows", "counts of windows")]
    with contextlib.suppress(RecurosError):
        found += [(f"server/{name}", about) for name, about in _servers(context, "")]
        found += [(f"probe/{number}", about) for number, about in _probe_ids(context, "")]
    return found


def _conditions(context: Context, incomplete: str) -> Candidates:
    return [(text, "") for text in ("running", "done", "ready", "committed>=", "generation>=", "restarts>=", "fired>=")]


def _hooks(context: Context, incomplete: str) -> Candidates:
    with _client(context) as client:
        sites = client.probe_list()["sites"]
    names = [site["site"] if isinstance(site, dict) else str(site) for site in sites]
    return [(name, "") for name in names]


def _programs(context: Context, incomplete: str) -> Candidates:
    from probes.catalogue import BUILTINS, PREFIX

    found = [(PREFIX + b.name, b.doc) for b in BUILTINS.values()]
    with contextlib.suppress(RecurosError), _client(context) as client:
        found += [(row["digest"], row["name"]) for row in client.probe_programs()["programs"]]
    return found


def _loaded(context: Context, incomplete: str) -> Candidates:
    found = list(_probe_ids(context, incomplete))
    return found + [(word, about) for word, about in _programs(context, incomplete) if word.startswith("sha256:")]


def _snapshots(context: Context, incomplete: str) -> Candidates:
    from kfs import refs
    from kfs.store import Store

    with Store.open_reader(context.run / "store") as store:
        found = [(name, root[:19]) for name, root in refs.names(store).items() if name]
    return [*found, ("last", "the last committed state")]


def _kinds(context: Context, incomplete: str) -> Candidates:
    from kfs.records import RecordKind

    return [(kind.value, "") for kind in RecordKind]


def _syscalls(context: Context, incomplete: str) -> Candidates:
    from syscalls import abi

    return [(row.name, row.doc) for row in abi.SYSCALLS]


def _rights(context: Context, incomplete: str) -> Candidates:
    from syscalls import abi

    given, comma, _ = incomplete.rpartition(",")
    return [(f"{given}{comma}{name}", "") for name in abi.RIGHT_NAMES if name not in given.split(",")]


def _apps(context: Context, incomplete: str) -> Candidates:
    from servers import apps

    folder = os.path.dirname(apps.__file__)
    names = sorted(name.removesuffix(".toml") for name in os.listdir(folder) if name.endswith(".toml"))
    return [(name, "packaged app") for name in names if name != "base"]


def _logs(context: Context, incomplete: str) -> Candidates:
    return [(path.stem, "") for path in sorted((context.run / "log").glob("*.log"))]


def _explained(context: Context, incomplete: str) -> Candidates:
    from syscalls.errors import CODES

    found = [(f"{kind}/", "") for kind in ("window", "snapshot", "policy", "probe", "server", "seq")]
    with contextlib.suppress(RecurosError):
        found += [(word, about) for word, about in _objects(context, "") if "/" in word]
    return [*found, *CODES.items()]


def _interrupts(context: Context, incomplete: str) -> Candidates:
    return [("pause", "grant no more windows"), ("resume", "go on"), ("stop", "drain and halt")]


Source = Callable[[Context, str], Candidates]
SOURCES: Final[dict[tuple[str, str], Source]] = {
    ("boot", "app"): _apps,
    ("config show", "manifest"): _apps,
    ("config check", "manifest"): _apps,
    ("wait", "what"): _objects,
    ("wait", "condition"): _conditions,
    ("explain", "what"): _explained,
    ("logs", "server"): _logs,
    ("syscall", "name"): _syscalls,
    ("learner interrupt", "kind"): _interrupts,
    ("snapshot show", "snap"): _snapshots,
    ("snapshot restore", "snap"): _snapshots,
    ("probe attach", "program"): _programs,
    ("probe attach", "hook"): _hooks,
    ("probe detach", "id"): _probe_ids,
    ("probe detach", "probe_id"): _probe_ids,
    ("probe stats", "id"): _probe_ids,
    ("probe stats", "probe_id"): _probe_ids,
    ("probe trace", "id"): _probe_ids,
    ("probe trace", "probe_id"): _probe_ids,
    ("probe show", "what"): _loaded,
    ("probe dump", "what"): _loaded,
    ("", "principal"): _servers,
    ("", "rights"): _rights,
    ("kfs log", "kind"): _kinds,
    ("kfs log", "snapshot"): _snapshots,
    ("kfs ls", "snapshot"): _snapshots,
    ("kfs export", "snapshot"): _snapshots,
    ("kfs checkout", "snap"): _snapshots,
    ("kfs diff", "a"): _snapshots,
    ("kfs diff", "b"): _snapshots,
}

# --- for the shells ---------------------------------------------------------------------------------------------------------

BASH: Final = """\
# Completion of recuros for bash: put `eval "$(recuros completion bash)"` into ~/.bashrc.
_recuros() {
    local line="${COMP_LINE:0:COMP_POINT}" cut=""
    [[ "$COMP_WORDBREAKS" == *:* ]] && cut=":"
    local IFS=$'\\n'
    COMPREPLY=($(_RECUROS_COMPLETE="bash$cut" recuros "$line" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == */ ]]; then compopt -o nospace; fi
}
complete -o default -F _recuros recuros
"""
ZSH: Final = """\
#compdef recuros
# Completion of recuros for zsh: put `eval "$(recuros completion zsh)"` after compinit in ~/.zshrc.
_recuros() {
    local -a found
    local word about
    while IFS=$'\\t' read -r word about; do
        found+=("${word//:/\\\\:}:$about")
    done < <(_RECUROS_COMPLETE=zsh recuros "$LBUFFER" 2>/dev/null)
    if (( $#found )); then _describe -V recuros found; else _files; fi
}
compdef _recuros recuros
"""
FISH: Final = """\
# Completion of recuros for fish: recuros completion fish > ~/.config/fish/completions/recuros.fish
function __recuros
    env _RECUROS_COMPLETE=fish recuros (commandline -cp) 2>/dev/null
end
complete -c recuros -f -a '(__recuros)'
complete -c recuros -n 'not count (__recuros) >/dev/null' -F
"""
SCRIPTS: Final = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def answer(root: Lazy, how: str, text: str) -> list[str]:
    """The lines that a shell's script reads: a word each, for zsh and fish with what it is.

    `bash:` says that the shell breaks words at colons and replaces only what follows the last one.
    """
    found = line(root, text, Context.configured())
    if how.startswith("bash"):
        typed = split(text)[1]
        skip = typed.rindex(":") + 1 if how.endswith(":") and ":" in typed else 0
        return [word[skip:] if skip or not _odd(word) else shlex.quote(word) for word, _ in found]
    return [f"{word}\t{about.partition(chr(10))[0]}" for word, about in found]


def _odd(word: str) -> bool:
    return any(c in word for c in " *?[]{}()&|;<>$'\"\\`")
