"""`python -m tests.model [--windows N] [--crashes N] [--mutants]`: check the window protocol, and show that the checker can fail."""

from __future__ import annotations

import argparse
import json
import sys
import time

from tests.model.checker import check
from tests.model.window import MUTANTS, WindowProtocol


def main() -> int:
    """Exit 1 when the protocol breaks a rule, or when a mutant does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--crashes", type=int, default=3)
    parser.add_argument("--mutants", action="store_true", help="also check that every mutant is found")
    args = parser.parse_args()
    failed = 0
    for mutant in ("", *(MUTANTS if args.mutants else ())):
        started_s = time.monotonic()
        sizes = (2, 2) if mutant else (args.windows, args.crashes)
        verdict = check(WindowProtocol(*sizes, mutant=mutant))
        row = {
            "model": "window",
            "mutant": mutant,
            "windows": sizes[0],
            "crashes": sizes[1],
            "states": verdict.states,
            "transitions": verdict.transitions,
            "depth": verdict.depth,
            "problem": verdict.problem,
            "path": verdict.path,
            "seconds": round(time.monotonic() - started_s, 1),
        }
        print(json.dumps(row))
        failed += bool(verdict.problem) != bool(mutant)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
