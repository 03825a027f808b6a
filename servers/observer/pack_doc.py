"""Writes the reference page of the policy packs: `python -m servers.observer.pack_doc`.

Responsible for: `docs/reference/policy-packs.md`, from the packs' own docstrings, numbers and limits, and the figures that evidence
holds. Refuses: a pack whose module has no docstring. A test holds the page against this generator.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Final

from servers.observer import readers, signals
from servers.observer.packs import PACKS
from servers.observer.policy import BOUNDS, Pack
from syscalls import limits

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "reference" / "policy-packs.md"
INTRO: Final = """\
# Policy packs

Made from the packs by `python -m servers.observer.pack_doc`.

A pack turns the Observer's evidence into a policy: `[policy] pack = "NAME"`. Its numbers are further keys of that table, in kebab
case (`weight-max = 3.0`); others, and values outside their limits, are refused at boot. A policy rests on the evidence of one window,
applies two windows later, and is a record with the digests of what it rests on. What it may set is bounded twice, by the Observer and
by the kernel. A decision outside the bounds is recorded as a refusal (`refused` in the record's settings): nothing changes, and the
run goes on. `recuros explain policy/N` tells a policy's evidence, rule, decision and effect; `recuros replay --decisions` makes it again.
"""


def page() -> str:
    """Source of docs/reference/policy-packs.md."""
    parts = [INTRO, _bounds(), *(_pack(pack) for pack in PACKS.values())]
    return "\n".join([*parts, _figures()])


def _bounds() -> str:
    rows = [f"| `{key}` | {low:g} .. {high:g} |" for key, (low, high) in BOUNDS.items()]
    more = [
        f"| `swap` | {', '.join(f'`{mode}`' for mode in limits.SWAP_MODES)} |",
        "| `restore` | the root id of a snapshot of this run |",
        "| `weights` | one number a training sample, mean 1 over those that are not left out |",
        "| `order` | difficulty of each training sample, for the curriculum |",
    ]
    text = (
        "`prune`, `swap`, `restore` (back to that snapshot, as by `recuros snapshot restore`) and `stop` (the end of the phase)\n"
        "act once, at the window that the policy applies from. While `hold` is 1 the swaps of the plan are left out. With `cadence = n`\n"
        "probes fire n times as seldom as they were attached for; those of a window's end, at every n-th window. What the learner refuses\n"
        "(a snapshot that was given up) rolls its window back once, is recorded and dropped.\n"
    )
    return "\n".join(["## What a policy may set\n", "| setting | bounds |\n|---|---|", *rows, *more, "", text])


def _pack(pack: Pack) -> str:
    module = sys.modules[pack.decide.__module__]
    text = inspect.cleandoc(module.__doc__ or "")
    if not text:
        raise ValueError(f"pack {pack.name} has no docstring")
    rows = [
        f"| `{name.replace('_', '-')}` | {n.low:g} .. {n.high:g} | {n.default:.4g} | {n.doc} |"
        for name, n in pack.numbers.items()
    ]
    table = ["| number | limits | default | |\n|---|---|---|---|", *rows, ""] if rows else []
    return "\n".join([f"## `{pack.name}`\n", text, "", *table])


def _figures() -> str:
    blocks = []
    for module in (readers, signals):
        lines = inspect.cleandoc(module.__doc__ or "").splitlines()
        blocks += ["```text", *(line.removeprefix("    ") for line in lines if line.startswith("    ")), "```", ""]
    return "\n".join(
        [
            "## Figures that evidence holds\n",
            "From the traced rows: `accuracy`, `confidence` (mean largest probability), `ece`, `disagreement`, `entropy_student`,",
            "`entropy_teacher`, `kl`; from the probes `cka`, `nll` and `brier`; `loss_NAME` of the loss terms that are on. Each has a",
            "trajectory: average, slope and the last 32 windows. Further ones, where a built-in probe or enough windows are there:\n",
            *blocks,
        ]
    )


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
