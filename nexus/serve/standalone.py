"""The loader that travels in a bundle (`nexus.pyz`): the same modules without the console, for machines that have no RecurOS.

    python BUNDLE/nexus.pyz generate "a prompt" [--capability NAME] ...
    python BUNDLE/nexus.pyz serve [--port N] ...
    python BUNDLE/nexus.pyz verify

From Python: `sys.path.insert(0, "BUNDLE/nexus.pyz")`, then `from nexus import NexusModel`.
Responsible for: writing that archive (the same bytes each time) and its command line. Refuses: being run by RecurOS; code that comes
with a bundle is run only by somebody who names it.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from syscalls.errors import RecurosError

PACKAGES: Final = ("nexus.model", "nexus.bundle", "nexus.serve")
SINGLE: Final = (("nexus", "__init__.py"), ("syscalls", "errors.py"))
MAIN: Final = "import sys\n\nfrom nexus.serve.standalone import main\n\nsys.exit(main())\n"
BORROWED_INIT: Final = '"""The part of RecurOS that the loader uses: its error type."""\n'


def archive() -> bytes:
    """The bytes of nexus.pyz."""
    files = {"__main__.py": MAIN.encode(), "syscalls/__init__.py": BORROWED_INIT.encode()}
    for package in PACKAGES:
        for entry in resources.files(package).iterdir():
            if entry.name.endswith(".py"):
                files[f"{package.replace('.', '/')}/{entry.name}"] = entry.read_bytes()
    for package, name in SINGLE:
        files[f"{package}/{name}"] = resources.files(package).joinpath(name).read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(files):
            file.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), files[path])
    return b"#!/usr/bin/env python3\n" + out.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="nexus.pyz", description="Use the bundle that this file lies in.")
    parser.add_argument("--bundle", type=Path, default=_here(), help="another bundle's directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--expect", default="", metavar="ID", help="refuse a bundle whose id is another")
    verbs = parser.add_subparsers(dest="verb", required=True)
    generate = verbs.add_parser("generate", help="print what follows a prompt")
    generate.add_argument("prompt", help="'-' reads stdin")
    generate.add_argument("--capability", help="the router chooses where none is named")
    generate.add_argument("--enable-uncensored", action="store_true", help="open the gate of a gated capability")
    generate.add_argument("--max-new-tokens", type=int, default=128)
    generate.add_argument("--temperature", type=float, default=0.0)
    generate.add_argument("--seed", type=int, default=42)
    serve = verbs.add_parser("serve", help="an HTTP server in the dialect of OpenAI's API")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080)
    serve.add_argument("--enable-gated", action="store_true", help="let requests opt in to gated capabilities")
    verify = verbs.add_parser("verify", help="check every file; loading then need not read it again")
    verify.add_argument("--enable-uncensored", action="store_true", help="look at gated files too")
    options = parser.parse_args(argv)
    try:
        {"generate": _generate, "serve": _serve, "verify": _verify}[options.verb](options)
    except RecurosError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def _here() -> Path:
    """The directory that the archive lies in."""
    own = Path(__file__).resolve()
    return next((parent.parent for parent in own.parents if parent.is_file()), Path())


def _generate(options: argparse.Namespace) -> None:
    from nexus.bundle.load import NexusModel

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    model = NexusModel.load(options.bundle, options.device, expect=options.expect)
    for piece in model.generate(
        prompt,
        options.capability,
        options.enable_uncensored,
        stream=True,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
    ):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _serve(options: argparse.Namespace) -> None:
    from nexus.serve.run import serve

    serve(
        options.bundle,
        device=options.device,
        expect=options.expect,
        host=options.host,
        port=options.port,
        enable_gated=options.enable_gated,
    )


def _verify(options: argparse.Namespace) -> None:
    from nexus.bundle.load import install

    verdict, manifest = install(options.bundle, expect=options.expect, enable_uncensored=options.enable_uncensored)
    closed = f"; not looked at (gated): {', '.join(verdict.skipped)}" if verdict.skipped else ""
    sys.stdout.write(f"good: {verdict.files} files, {verdict.bytes} bytes{closed}\nbundle id {manifest.bundle_id}\n")
