"""The interface's figures: from a record to the page of a real Chromium, what `recuros ps` costs, what watching a training loop costs.

The first appends records to a store at a steady rate while the dashboard serves it and a browser shows its overview; a record's time is the
one that the writer stamped it with, and it has arrived when its row is in the document. The second is the CPU time of the whole process,
against a paused runtime. The third is that of `tests/bench/_watch.py`: a plain training loop with and without `recuros.watch`, in turns.

    make bench PART=interface [SECONDS=a row]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfs.records import Record, RecordKind
from kfs.store import Store
from tests.bench._rows import ROOT, Rows

sys.path.insert(0, str(ROOT / "tests" / "live"))
RATE = 50
HISTORY = 2_000
COMMAND = [sys.executable, "-m", "console.start"]
WATCH = """
    const seen = new Map();
    window.arrivals = [];
    const look = () => {
        const now = performance.timeOrigin + performance.now();
        for (const row of document.querySelectorAll(".feed li")) {
            const seq = Number(row.dataset.seq);
            if (!seen.has(seq)) {
                seen.set(seq, now);
                window.arrivals.push([seq, now]);
            }
        }
    };
    look();
    window.arrivals = [];
    new MutationObserver(look).observe(document.querySelector(".feed"), {childList: true, subtree: true});
"""


def record(number: int) -> Record:
    """What a run writes most: commits with their figures and the policies between them."""
    window = number // 2 + 1
    if number % 2:
        settings = {"temperature": 2.0, "evidence": {"accuracy": 0.9, "kl": 0.01}}
        args: dict[str, Any] = {"window": window, "applies_at": window + 2, "settings": settings, "pack": "starter"}
        return Record("observer", RecordKind.POLICY, args, t_mono=number + 1)
    metrics = {
        "loss": 1 / window,
        "task": 0.5,
        "kd": 0.1,
        "hint": 0.1,
        "grad_norm": 1.0,
        "step_ms": 7.0,
        "cka": 0.9,
        "used_ns": 10**8,
    }
    args = {
        "window": window,
        "boot": "bench",
        "phase": {"name": "distil"},
        "step0": 25 * number,
        "steps": 25,
        "grant_seq": -1,
    }
    return Record("kernel", RecordKind.WINDOW_COMMIT, {**args, "metrics": metrics, "resume": {}}, t_mono=number + 1)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def event_to_dom(rows: Rows, seconds: float) -> None:
    """Append at RATE for `seconds`; every record must arrive."""
    from dash_support import Browser

    with tempfile.TemporaryDirectory(prefix="recuros-bench-") as name:
        folder = Path(name)
        run = folder / "run"
        run.mkdir()
        with Store.open_writer(run / "store") as store:
            store.append([record(n) for n in range(HISTORY)])
            serving = subprocess.Popen(
                [*COMMAND, "--run", str(run), "dash", "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            try:
                assert serving.stdout is not None
                url = json.loads(serving.stdout.readline())["url"]
                browser = Browser(folder / "profile")
                try:
                    browser.open(url)
                    browser.until(f'.feed li[data-seq="{HISTORY - 1}"]', "policy")
                    browser.js(WATCH)
                    latencies = _arrivals(store, browser, seconds)
                finally:
                    browser.driver.quit()
            finally:
                serving.terminate()
                serving.wait(30)
    name_ = f"dashboard: record to DOM at {RATE} events/s, p95"
    note = f"{len(latencies)} records; median {statistics.median(latencies):.1f} ms, p99 {percentile(latencies, 0.99):.1f} ms; all arrived"
    rows.add(name_, percentile(latencies, 0.95), "<= 20", unit="ms", note=note)


def _arrivals(store: Any, browser: Any, seconds: float) -> list[float]:
    stamped: dict[int, float] = {}
    count = int(seconds * RATE)
    began = time.monotonic()
    first = store.size
    for n in range(count):
        time.sleep(max(0.0, began + n / RATE - time.monotonic()))
        (seq,) = store.append([record(first + n)])
        stamped[seq] = store.record(seq).t_wall / 1e6
    browser.until(f'.feed li[data-seq="{first + count - 1}"]', "window")
    arrived = dict(browser.js("return window.arrivals"))
    missing = stamped.keys() - {int(seq) for seq in arrived}
    if missing:
        raise SystemExit(f"{len(missing)} of {count} records never reached the page: {sorted(missing)[:5]}")
    return [arrived[seq] - at for seq, at in stamped.items()]


def cpu_ms(command: list[str], env: Mapping[str, str] | None = None) -> float:
    """CPU time of a process and all it waited for."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1e3


def verbs(rows: Rows, seconds: float) -> None:
    """`recuros ps` and, beside it without a target, other verbs that one types often."""
    from harness import live

    with tempfile.TemporaryDirectory(prefix="recuros-bench-") as name, live(Path(name) / "run") as runtime:
        runtime.goes_on(3)
        runtime.client.interrupt(kind="pause")
        count = max(5, int(seconds * 3))
        # As installed: compiled once, whatever this shell says about bytecode.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = str(Path(name) / "bytecode")
        for words, target in (
            (["ps"], "<= 120"),
            (["status", "--json"], ""),
            (["kfs", "log", "--limit", "5"], ""),
            (["top"], ""),
        ):
            command = [*COMMAND, "--run", str(runtime.run), *words]
            cpu_ms(command, env)
            rows.add(f"recuros {' '.join(words)}, CPU", [cpu_ms(command, env) for _ in range(count)], target, unit="ms")


def watching(rows: Rows, seconds: float) -> None:
    """`recuros.watch` at its default cadence; a group of turns takes about 20 seconds."""
    from tests.bench import _watch

    _watch.measure(rows, groups=max(2, round(seconds / 4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="how long a row takes, about")
    parser.add_argument("--count", type=int, help="not used: rows have their own numbers")
    options = parser.parse_args()
    rows = Rows(
        "interface", f"make bench PART=interface SECONDS={options.seconds:g}", {"load": round(os.getloadavg()[0], 2)}
    )
    parts: tuple[Callable[[Rows, float], None], ...] = (event_to_dom, verbs, watching)
    for part in parts:
        part(rows, options.seconds)
    rows.write()


if __name__ == "__main__":
    main()
