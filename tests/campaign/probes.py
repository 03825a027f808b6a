"""The verifier proves what it says, and the machine code does what the interpreter does: the long runs.

    make campaign PART=probes [COUNT=generated programs] [SECONDS=for all campaigns together]
    python -m tests.campaign.probes --only fuzz --seed 7

Each campaign is a stream of trials; COUNT sets the number of generated programs, and the others keep their proportion or are run
whole. One JSON line a campaign in build/campaign/probes.jsonl; the exit status is 1 when there is a violation, and each is
printed with what reproduces it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from probes import isa
from syscalls.errors import RecurosError
from tests.campaign import _obpf_cases as cases
from tests.campaign import _obpf_exhaustive as exhaustive
from tests.campaign import _obpf_gen as gen
from tests.campaign import _obpf_mutants as mutation
from tests.campaign import _obpf_sound as sound

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "build" / "campaign" / "probes.jsonl"
PROGRAMS: Final = 100_000
ACCEPTED_MIN: Final = 0.3
SHOWN_MAX: Final = 20
Trials = Iterator[tuple[int, str]]
"""How many trials were made, and what is wrong ("": nothing)."""


@dataclass
class Campaign:
    """A stream of trials: its share of COUNT, and of SECONDS."""

    name: str
    what: str
    share: float
    trials: Callable[[int, int, dict[str, Any]], Trials]
    time_share: float = 1.0


@dataclass
class Row:
    """One line of the results."""

    campaign: str
    count: int = 0
    violations: int = 0
    seconds: float = 0.0
    seed: int = 0
    found: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As it is kept."""
        row = {"campaign": self.campaign, "count": self.count, "violations": self.violations}
        more = {"seconds": round(self.seconds, 1), "seed": self.seed, "found": self.found}
        return json.dumps(row | more | self.details)


def corpus(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Every case file: its error at its place, or accepted and run."""
    tally, total = sound.Tally(), itertools.count(1)
    for verdict in ("reject", "accept"):
        known = cases.load(verdict)
        details[verdict] = len(known)
        for case in known:
            yield next(total), _case(case, tally)
    details |= {"runs": tally.runs, "states": tally.states}


def _case(case: cases.Case, tally: sound.Tally) -> str:
    if "observe" in case.head:
        wrong = sound.observed(case)
    elif case.verdict == "accept":
        error = cases.judge(case)
        wrong = f"refused: {error}" if error else sound.accepted(case, tally)
    else:
        error = cases.judge(case)
        wrong = "" if cases.agrees(case, error) else f"{cases.found(error)}, expected {case.expected()}"
    return f"{case.name}: {wrong}" if wrong else ""


def transfer(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Pairs of 4-bit intervals through every integer opcode."""
    details["optimal"] = sorted(exhaustive.abstract.OPTIMAL)
    return exhaustive.integers()


def narrowing(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Pairs of 4-bit intervals under every comparison."""
    return exhaustive.narrowing()


def facts(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Facts about sizes through the opcodes that keep them."""
    return exhaustive.facts()


def floats(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Drawn abstract floats."""
    return exhaustive.floats(count, seed)


def fuzz(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Generated programs: every register inside its state at every instruction, no fault, no cost above the certificate's."""
    tally = sound.Tally()
    for number in range(seed, seed + count):
        sound.fuzz(1, number, tally)
        details |= {"accepted": tally.accepted, "runs": tally.runs, "states": tally.states, "rejected": tally.rejected}
        yield tally.programs, tally.violations.pop() if tally.violations else ""
    share = tally.accepted / max(1, tally.programs)
    details["accepted_share"] = round(share, 3)
    if tally.programs >= 100 and share < ACCEPTED_MIN:
        yield tally.programs, f"only {share:.0%} of the programs are accepted; {ACCEPTED_MIN:.0%} are wanted"


def bits(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Bytecode cut off or with bits flipped, with and without a checksum that fits: refused, or verified and sound, never else."""
    tally, refused = sound.Tally(), 0
    for number in range(seed, seed + count):
        rng = random.Random(number)
        program = gen.program(rng)
        data = bytearray(isa.encode(program))
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        changed = bytes(data) if rng.random() < 0.8 else bytes(data[: rng.randrange(len(data))])
        if rng.random() < 0.8 and len(changed) > 32:
            changed = changed[:-32] + hashlib.sha256(changed[:-32]).digest()
        wrong = ""
        try:
            found = isa.decode(changed)
        except RecurosError:
            refused += 1
        else:
            if found.hook_kind == program.hook_kind:
                sound.check(found, rng, tally)
                wrong = tally.violations.pop() if tally.violations else ""
        details |= {"refused": refused, "accepted": tally.accepted}
        yield number - seed + 1, f"seed {number}: {wrong}" if wrong else ""


def mutants(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """The verifier with one thing out: what nobody notices is a violation."""
    details["noticed"] = {}
    for number, mutant in enumerate(mutation.mutants(), 1):
        by = mutation.noticed(mutant)
        details["noticed"][mutant.name] = by
        yield number, "" if by else f"{mutant.name}: noticed by nothing"


CAMPAIGNS: Final = (
    Campaign("corpus", "case files", 0, corpus, 0.5),
    Campaign("transfer functions", "pairs of 4-bit intervals", 0, transfer, 0.2),
    Campaign("narrowing", "pairs of 4-bit intervals", 0, narrowing, 0.2),
    Campaign("facts", "facts of pairs of intervals", 0, facts, 0.2),
    Campaign("floats", "pairs of abstract floats", 1.0, floats, 0.5),
    Campaign("fuzz", "generated programs", 1.0, fuzz, 5.0),
    Campaign("flipped bits", "changed programs", 0.5, bits),
    Campaign("verifier mutants", "mutants, each to be noticed", 0, mutants, 1.0),
)


def differential(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Interpreter against machine code, bit for bit over all maps and counters."""
    from probes import jit, jit_worker
    from tests.campaign import _obpf_diff

    backend, tally = jit_worker.Backend(), _obpf_diff.Tally()
    for number in range(count):
        _obpf_diff.campaign(lambda made: jit.Image(backend.compile(made)), seed + number, 1, None, tally)
        details |= {"accepted": tally.accepted, "runs": tally.runs, "faults": tally.faults}
        yield number + 1, tally.violations.pop() if tally.violations else ""


def known() -> tuple[Campaign, ...]:
    """Those that can be run here: without llvmlite there is no machine code to compare with, which is said."""
    if importlib.util.find_spec("llvmlite") is None:
        print("no differential campaign: llvmlite is not installed", file=sys.stderr)
        return CAMPAIGNS
    return (*CAMPAIGNS, Campaign("differential", "programs, machine code against interpreter", 0.05, differential, 5.0))


def run(campaign: Campaign, programs: int, seed: int, seconds: float | None) -> Row:
    """One campaign until its count, or its share of the time, is reached."""
    row = Row(campaign.name, seed=seed)
    began = time.monotonic()
    trials = campaign.trials(max(1, round(programs * campaign.share)), seed, row.details)
    for count, violation in trials:
        row.count = count
        if violation:
            row.violations += 1
            if row.violations <= SHOWN_MAX:
                row.found.append(violation)
                print(f"VIOLATION {campaign.name}: {violation}", flush=True)
        if seconds is not None and time.monotonic() - began >= seconds:
            break
    row.seconds = time.monotonic() - began
    return row


def main() -> int:
    """Run them; 1 when anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.probes")
    parser.add_argument(
        "--count", type=int, default=PROGRAMS, help="generated programs; the others in proportion, or whole"
    )
    parser.add_argument("--seconds", type=float, help="for all campaigns together; each stops when its share is over")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="campaigns whose name contains this")
    options = parser.parse_args()
    chosen = [campaign for campaign in known() if options.only in campaign.name]
    if not chosen:
        parser.error(f"--only {options.only}: there are {', '.join(c.name for c in known())}")
    shares = sum(campaign.time_share for campaign in chosen)
    rows = []
    for campaign in chosen:
        seconds = None if options.seconds is None else options.seconds * campaign.time_share / shares
        row = run(campaign, options.count, options.seed, seconds)
        rows.append(row)
        print(
            f"{row.campaign:<20} {row.count:>9,} {campaign.what:<44} {row.violations:>4} violations {row.seconds:>8.1f} s",
            flush=True,
        )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {RESULTS.relative_to(ROOT)}")
    if violated := [row for row in rows if row.violations]:
        names = " ".join(f"--only '{row.campaign}'" for row in violated)
        print(f"again: python -m tests.campaign.probes {names} --seed {options.seed} --count {options.count}")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
