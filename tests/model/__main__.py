"""`python -m tests.model [--only NAME] [--mutants]`: check every protocol's model, and show that the checker can fail."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.model import capability, window
from tests.model.checker import Model, check


@dataclass(frozen=True)
class Case:
    """A model of some size, by mutant ("": the protocol as it is)."""

    sizes: str
    model: Callable[[str], Model[Any]]


@dataclass(frozen=True)
class Protocol:
    """What is checked whole, and the size that is enough to find its mutants."""

    full: tuple[Case, ...]
    small: Case
    mutants: Mapping[str, str]


MODELS: Final = {
    "window": Protocol(
        (Case("4 windows, 3 crashes", lambda mutant: window.WindowProtocol(4, 3, mutant)),),
        Case("2 windows, 2 crashes", lambda mutant: window.WindowProtocol(2, 2, mutant)),
        window.MUTANTS,
    ),
    "capability": Protocol(
        (
            Case(
                "3 capabilities, 2 calls, 1 death, 1 lie",
                lambda mutant: capability.CapabilityProtocol(3, 2, 1, 1, mutant),
            ),
            Case(
                "4 capabilities, 1 call, 1 death, 1 lie",
                lambda mutant: capability.CapabilityProtocol(4, 1, 1, 1, mutant),
            ),
        ),
        Case(
            "3 capabilities, 1 call, 1 death, 1 lie",
            lambda mutant: capability.CapabilityProtocol(3, 1, 1, 1, mutant),
        ),
        capability.MUTANTS,
    ),
}


def judged(name: str, case: Case, mutant: str) -> bool:
    """Check one, print its row; whether it came out as it must."""
    started_s = time.monotonic()
    verdict = check(case.model(mutant))
    row = {
        "model": name,
        "mutant": mutant,
        "sizes": case.sizes,
        "states": verdict.states,
        "transitions": verdict.transitions,
        "depth": verdict.depth,
        "problem": verdict.problem,
        "path": verdict.path,
        "seconds": round(time.monotonic() - started_s, 1),
    }
    print(json.dumps(row), flush=True)
    return bool(verdict.problem) == bool(mutant)


def main() -> int:
    """Exit 1 when a protocol breaks a rule, or when a mutant does not."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--only", default="", choices=["", *MODELS])
    parser.add_argument("--mutants", action="store_true", help="also check that every mutant is found")
    args = parser.parse_args()
    failed = 0
    for name, protocol in MODELS.items():
        if args.only not in ("", name):
            continue
        failed += sum(not judged(name, case, "") for case in protocol.full)
        if args.mutants:
            failed += sum(not judged(name, protocol.small, mutant) for mutant in protocol.mutants)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
