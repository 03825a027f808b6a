"""`python -m tests.sim --seeds N [--first K]`: many histories, one line each that fails, one JSON line at the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import histories


def main() -> int:
    """Run the seeds; the exit status is 1 when one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--stop", action="store_true", help="stop at the first failure, with its traceback")
    options = parser.parse_args()
    began = time.monotonic()
    failed: list[int] = []
    totals: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.seeds):
        try:
            outcome = histories.run(seed)
        except Exception as error:  # noqa: BLE001 - whatever a history raises is its result
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            if options.stop:
                traceback.print_exc()
                break
        else:
            totals.update(
                steps=outcome.steps,
                commits=outcome.commits,
                misses=outcome.misses,
                boots=outcome.boots,
                **{outcome.state: 1},
            )
    row = {"campaign": "histories", "count": options.seeds, "violations": len(failed), "seeds": failed[:20], **totals}
    print(json.dumps({**row, "seconds": round(time.monotonic() - began, 1)}))
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
