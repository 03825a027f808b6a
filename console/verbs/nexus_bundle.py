"""`recuros nexus generate | verify`: use a bundle; no runtime is needed.

Responsible for: the verbs that work on a finished bundle. Refuses: opening a gate that the command line did not ask for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from console.context import Context
from console.verb import verb
from syscalls.errors import RecurosError

RIGHT = "none: it reads the bundle's files, and those need the file system's permission"
BUNDLE_EXITS = (4, 9)
PROMPT_BYTES_MAX = 16 << 20


def _bundle(function: Any) -> Any:
    return click.argument("bundle", type=click.Path(path_type=Path))(function)


_expect = click.option("--expect", default="", metavar="ID", help="Refuse a bundle whose id is another.")
_full = click.option("--full", is_flag=True, help="Hash every file, whatever an earlier verification found.")
_device = click.option("--device", default="cpu", show_default=True, help="Where torch is to run it.")


@verb(
    "generate",
    "What a bundle's student says after PROMPT; '-' reads the prompt from stdin.",
    examples=(
        "recuros nexus generate nexus_bundle_v1 'def add(a, b):'",
        "recuros nexus generate nexus_bundle_v1 '3 1 2' --capability sort --max-new-tokens 16",
        "recuros nexus generate nexus_bundle_v1 - --no-stream --json < prompt.txt",
    ),
    right=RIGHT,
    exits=(*BUNDLE_EXITS, 5),
)
@_bundle
@click.argument("prompt")
@click.option("--capability", metavar="NAME", help="Which adapter; the router chooses where none is named.")
@click.option("--enable-uncensored", is_flag=True, help="Open the gate of a gated capability, for this call.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token each time."
)
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from the likeliest of this mass only.")
@click.option("--seed", type=int, default=42, show_default=True, help="Of the draws.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Print while it comes.")
@_device
@_expect
@_full
def generate(
    ctx: Context,
    *,
    bundle: Path,
    prompt: str,
    capability: str | None,
    enable_uncensored: bool,
    stream: bool,
    device: str,
    expect: str,
    full: bool,
    **options: Any,
) -> None:
    """Load, generate, print."""
    from nexus.bundle.decode import Outcome
    from nexus.bundle.load import NexusModel

    text = _stdin() if prompt == "-" else prompt
    model = NexusModel.load(bundle, device, expect=expect, full=full)
    outcome = Outcome()
    pieces = model.generate(
        text, capability, stream=True, enable_uncensored=enable_uncensored, outcome=outcome, **options
    )
    if ctx.output not in ("table", "wide"):
        said = "".join(pieces)
        chosen = capability or model.route(text).capability
        doc = {"text": said, "capability": chosen, "finish": outcome.finish, "prompt_tokens": outcome.prompt_tokens}
        ctx.emit(
            {
                "schema": "recuros.nexus.generate/v1",
                **doc,
                "tokens": len(outcome.tokens),
                "bundle": model.manifest.bundle_id,
            }
        )
        return
    for piece in pieces if stream else ["".join(pieces)]:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _stdin() -> str:
    data = sys.stdin.buffer.read(PROMPT_BYTES_MAX + 1)
    if len(data) > PROMPT_BYTES_MAX:
        raise RecurosError("E2-LIMIT", f"the prompt on stdin has more than {PROMPT_BYTES_MAX} bytes", hint="shorten it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RecurosError("E2-USAGE", f"the prompt on stdin is not UTF-8: {error}", hint="convert it") from error


@verb(
    "quantize",
    "Write a bundle quantized to DST. The gate judges it in the run that made the bundle; elsewhere its report says that nobody did.",
    examples=(
        "recuros nexus quantize nexus_bundle_v1 nexus_bundle_v1-qint8 qint8",
        "recuros nexus quantize nexus_bundle_v1 small nf4 --run runs/pilot",
        "recuros nexus quantize nexus_bundle_v1 nexus_bundle_v1-int8pack int8pack --enable-uncensored --json",
    ),
    right=RIGHT,
    exits=(*BUNDLE_EXITS, 1, 3),
)
@_bundle
@click.argument("dst", type=click.Path(path_type=Path))
@click.argument("scheme", type=click.Choice(("qint8", "int8pack", "int8", "nf4")))
@click.option("--enable-uncensored", is_flag=True, help="Take gated adapters along; without it they are left out.")
def quantize(ctx: Context, *, bundle: Path, dst: Path, scheme: str, enable_uncensored: bool) -> None:
    """Quantize, and gate where there is a run to gate with."""
    from nexus import run as runs
    from nexus.bundle.quantize import quantize_bundle
    from nexus.stages.gate import regate

    gated_here = (ctx.run / runs.APP_FILE).is_file()
    if gated_here:
        with runs.opened(ctx.run) as run:
            made = quantize_bundle(
                bundle, dst, scheme, enable_uncensored=enable_uncensored, recheck=lambda path: regate(run, path)
            )
    else:
        made = quantize_bundle(bundle, dst, scheme, enable_uncensored=enable_uncensored)
    left_out = made.data["quantization"]["left_out"]
    judged = "passed the gate" if gated_here else f"not judged: {ctx.run} holds no Nexus run"
    doc = {"schema": "recuros.nexus.quantize/v1", "bundle": made.bundle_id, "scheme": scheme, "left_out": left_out}
    without = f"; left out (gated): {', '.join(left_out)}" if left_out else ""
    ctx.emit(
        {**doc, "gate": "pass" if gated_here else "not verified"},
        f"{dst}: {scheme}, {judged}{without}\nbundle id {made.bundle_id}",
    )


@verb(
    "serve",
    "Serve a bundle over HTTP, in the dialect of OpenAI's API, until it is interrupted.",
    examples=(
        "recuros nexus serve nexus_bundle_v1",
        "recuros nexus serve nexus_bundle_v1 --port 0 --max-tokens 256",
        "recuros nexus serve nexus_bundle_v1 --enable-gated",
    ),
    right=RIGHT,
    exits=BUNDLE_EXITS,
)
@_bundle
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than loopback need NEXUS_API_KEY.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--enable-gated", is_flag=True, help="Let requests opt in to gated capabilities (enable_uncensored).")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Another name that clients call this server by.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="The most that one answer may have.")
@click.option(
    "--waiting", type=click.IntRange(1, 1024), default=8, show_default=True, help="Requests that run or wait."
)
@click.option("--body-bytes", type=click.IntRange(1), default=1 << 20, show_default=True, help="The largest request.")
@_device
@_expect
@_full
def serve(_ctx: Context, bundle: Path, **options: Any) -> None:
    """Load, listen, wait for a signal."""
    from nexus.serve.run import serve as run

    run(bundle, **options)


@verb(
    "verify",
    "Check every file of a bundle against its manifest, and remember that it was good so that loading need not read it again.",
    examples=(
        "recuros nexus verify nexus_bundle_v1",
        "recuros nexus verify nexus_bundle_v1 --expect ID --no-stamp --json",
        "recuros nexus verify nexus_bundle_v1 --enable-uncensored --no-stamp",
    ),
    right=RIGHT,
    exits=BUNDLE_EXITS,
)
@_bundle
@_expect
@click.option("--stamp/--no-stamp", default=True, show_default=True, help="Remember a good result in the user's cache.")
@click.option("--enable-uncensored", is_flag=True, help="Look at gated files too; they are never part of the stamp.")
def verify(ctx: Context, *, bundle: Path, expect: str, stamp: bool, enable_uncensored: bool) -> None:
    """Hash, load once, stamp."""
    from nexus.bundle.load import install

    verdict, manifest = install(bundle, expect=expect, enable_uncensored=enable_uncensored, remember=stamp)
    doc = {
        "schema": "recuros.nexus.verify/v1",
        "bundle": manifest.bundle_id,
        "files": verdict.files,
        "bytes": verdict.bytes,
        "not_looked_at": verdict.skipped,
        "stamped": stamp,
        "scheme": manifest.scheme,
        "capabilities": {name: {"tier": c.tier, "gated": c.gated} for name, c in manifest.capabilities.items()},
    }
    closed = f"; not looked at (gated): {', '.join(verdict.skipped)}" if verdict.skipped else ""
    ctx.emit(
        doc, f"{bundle}: good, {verdict.files} files, {verdict.bytes} bytes{closed}\nbundle id {manifest.bundle_id}"
    )
