"""How much of the teacher a small student keeps: the digits app under three seeds, as `recuros boot --json` reports it.

Scores are on the test split, which no gradient and no decision saw; the teacher is the one before the first role swap.

    make bench PART=retention [COUNT=seeds]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from servers import manifest as manifests
from tests.bench import _hosted
from tests.bench._rows import Rows

SEEDS = (42, 43, 44, 45, 46)


def boot(folder: Path, seed: int) -> dict[str, Any]:
    """The closing report of the app under a seed."""
    manifest = _hosted.app("digits")
    manifest.app.seed = seed
    file = folder / f"seed{seed}.toml"
    file.write_text(manifests.dump(manifest), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "console.main",
        "--run",
        str(folder / f"seed{seed}"),
        "boot",
        "-c",
        str(file),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"seed {seed} ended with {done.returncode}:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3, help=f"seeds, at most {len(SEEDS)}")
    parser.add_argument("--seconds", type=int, help="not used: the plan has its own length")
    options = parser.parse_args()
    seeds = SEEDS[: options.count]
    rows = Rows("retention", f"make bench PART=retention COUNT={len(seeds)}", {"seeds": list(seeds)})
    with tempfile.TemporaryDirectory(prefix="recuros-bench-") as name:
        reports = [boot(Path(name), seed) for seed in seeds]
    for seed, report in zip(seeds, reports, strict=True):
        share = report["student"]["params"] / report["teacher"]["params"]
        scores = (
            f"teacher {report['teacher']['score']:.4f}, student {report['student']['score']:.4f} on 600 test images"
        )
        note = f"{scores}; {report['policies']} policies, {report['seconds']:.0f} s"
        rows.add(f"digits app, seed {seed}: retention at {share:.1%} of the parameters", report["retention"], note=note)
    rows.add("digits app: retention, median over the seeds", [r["retention"] for r in reports], ">= 0.97")
    rows.add("digits app: retention, worst seed", min(r["retention"] for r in reports), ">= 0.97")
    shares = [r["student"]["params"] / r["teacher"]["params"] for r in reports]
    rows.add("digits app: student's parameters / teacher's", shares, "<= 0.1")
    rows.add("digits app: windows missed, all seeds", sum(r["windows"]["missed"] for r in reports), "== 0")
    rows.add("digits app: ledgers verified", all(r["ledger"]["verified"] for r in reports), "== True")
    rows.add("digits app: boot to report", [r["seconds"] for r in reports], "<= 120", unit="s")
    rows.write()


if __name__ == "__main__":
    main()
