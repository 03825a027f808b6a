"""E2, from results.json to README.md and its plots. Nothing is computed here that does not follow from results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from tests.experiments._page import COLOURS, interval, p_value, plot, points, signed, table, verdict
from tests.experiments._stdlib import TUNED_KB

Row = Mapping[str, Any]
NAMES: Final = {"ce": "CE", "kd": "KD"}


def render(found: Row) -> str:
    """README.md."""
    meta = found["meta"]
    head = f"# E2: the standard library\n\nRendered from `results.json` by `{meta['command']}`; every figure is from there.\n"
    if meta["quick"]:
        head += (
            "\n**This is the quick variant**: a teacher that has hardly learnt anything, short runs, two seeds, no tuning. It shows"
            " that the experiment runs from end to end. It is no evidence for or against distillation; the full variant has not been run.\n"
        )
    aims = table(
        ("what", "target", "value [95 % interval]", ""),
        [(row["what"], row["target"], row["value"] or "-", verdict(row["met"])) for row in found["targets"]],
    )
    if meta["quick"]:
        aims += "\nThe targets are those of the full variant.\n"
    parts = [
        head,
        "## Targets\n\n" + aims,
        _setup(found),
        "## At equal steps\n\n" + _scores(found),
        "![bits a byte over steps](steps.svg)\n",
        _gaps(found),
        _differences(found),
        "## At equal CPU time\n\n" + _equal_cpu(found),
        "![bits a byte over CPU seconds](cpu.svg)\n",
        "## Where it comes from\n\n"
        f"- Machine: {meta['machine']}; Python {meta['python']}, torch {meta['torch']}; {meta['date']}. CPU seconds were taken on"
        " a machine that did other work too.\n"
        f"- {len(found['runs'])} runs, {found['cpu_seconds']:,.0f} CPU s in all; sources that decide a run: `{meta['code']}`.\n"
        "- `make experiment NAME=stdlib` runs the full variant, and goes on where it was cut off; `QUICK=1` the quick one. The text is that"
        " of the Python that runs it: another version of Python is another corpus.\n",
    ]
    return "\n".join(parts)


def _setup(found: Row) -> str:
    meta, teacher = found["meta"], found["teacher"]
    told = (
        f"{teacher['bpb']:.3f} bits a byte on test files, {teacher['cpu_seconds']:,.0f} CPU s" if teacher else "not run"
    )
    tuned = (
        f"four trials an arm at {' and '.join(map(str, TUNED_KB))} KB ({meta['tuning_steps']} steps, a seed of its own, fewest bits on"
        " validation files); a size runs with the settings of the nearest tuned size below it"
        if meta["tuning_steps"]
        else "none; both arms run with the settings in `_stdlib.py`"
    )
    sizes = ", ".join(dict.fromkeys(_size(row["kb"]) for row in found["means"] if row["kb"]))
    return (
        "## Setup\n\n"
        "- **Text**: the source of Python's own standard library, as bytes in chunks of 128. Whole files are held out. 10 MB of the"
        f" training files are the pool; curves are taken on {meta['rows']} chunks of validation files, scores on as many of test files.\n"
        f"- **Teacher**: 3 layers of 160, {meta['teacher_steps']:,} steps on the pool: {told}. **Student**: 2 layers of 64, an eighth of"
        " its parameters.\n"
        f"- **Arms**: cross-entropy (CE) and distillation (KD), {meta['steps']:,} steps of 16 chunks on {sizes} of the pool; the last"
        f" checkpoint counts. CE on the whole pool, {meta['ratio']} times as many steps, since a step of KD takes about"
        f" {meta['ratio']} times as long.\n"
        f"- **Tuning**: {tuned}.\n"
        "- **Statistics**: paired by seed (subset, fresh student, order of batches); BCa intervals over seeds, exact sign-flip tests,"
        f" Holm's correction over sizes. With {meta['seeds']} seeds its smallest p is {2 / 2 ** meta['seeds']:.3g}.\n"
    )


def _size(kb: int) -> str:
    return f"{kb:,} KB" if kb else "10 MB"


def _scores(found: Row) -> str:
    rows = [
        (
            _size(row["kb"]),
            NAMES[row["arm"]],
            f"{row['bpb']:.3f} ± {row['bpb_sd']:.3f}",
            f"{row['best']:.3f}",
            points(row["accuracy"]),
            points(row["agreement"]),
            f"{row['kl']:.3f}",
            f"{row['queries']:,.0f}",
            f"{row['cpu_seconds']:.0f}",
            str(row["seeds"]),
        )
        for row in found["means"]
    ]
    head = (
        "text",
        "arm",
        "bits a byte",
        "best on its curve",
        "next byte, %",
        "agreement, %",
        "KL, nats",
        "teacher queries",
        "CPU s",
        "seeds",
    )
    return (
        "Means over seeds after the last step, on test files; fidelity (agreement with the teacher, KL from it) apart from accuracy. A"
        " query is a chunk of 128 bytes. *Best on its curve* is on validation files.\n\n" + table(head, rows)
    )


def _gaps(found: Row) -> str:
    rows = [
        (
            _size(row["kb"]),
            *(
                f"{row[name]['mean']:.2f} [{row[name]['low']:.2f}, {row[name]['high']:.2f}]"
                for name in ("last", "strict")
            ),
            str(row["pairs"]),
        )
        for row in found["gaps"]
    ]
    return (
        "Share of the gap between CE and the teacher that KD closes: after the last step; and, less kindly, counted from the best point"
        " of CE's own curve, as if CE had been stopped there.\n\n"
        + table(("text", "after the last step", "from CE's best point", "pairs"), rows)
    )


def _differences(found: Row) -> str:
    units = {"bpb": "bits a byte", "accuracy": "next byte, points", "agreement": "agreement, points", "kl": "KL, nats"}
    rows = [
        (
            units[row["metric"]],
            _size(row["kb"]),
            interval(row["mean"], row["low"], row["high"], 3),
            p_value(row["p"]),
            p_value(row["holm"]),
            str(row["pairs"]),
        )
        for row in sorted(found["differences"], key=lambda r: (list(units).index(r["metric"]), r["kb"]))
    ]
    return "KD minus CE, paired by seed.\n\n" + table(
        ("", "text", "mean [95 % interval]", "p", "Holm p", "pairs"), rows
    )


def _equal_cpu(found: Row) -> str:
    """What the same CPU time buys without a teacher, from the curves."""
    whole = next((row for row in found["means"] if row["kb"] == 0), None)
    if whole is None:
        return "Not run.\n"
    rows = []
    for row in found["means"]:
        if row["arm"] == "kd":
            spent, bits = row["curve"][-1][1], row["curve"][-1][2]
            other = _at(whole["curve"], spent)
            text = "-" if other is None else f"{other:.3f}"
            ahead = "-" if other is None else signed(other - bits, 3)
            rows.append((_size(row["kb"]), f"{spent:.0f}", f"{bits:.3f}", text, ahead))
    wins = sum(1 for r in rows if r[4].startswith("-") and r[4] != "-")
    lead = (
        f"With all 10 MB at hand, plain CE on them beats distillation on a subset at the same CPU time in {wins} of {len(rows)} sizes."
        if wins
        else "At the same CPU time, plain CE on all 10 MB is not ahead of distillation on a subset at any size."
    )
    if wins and any(row["last"]["low"] > 0 for row in found["gaps"]):
        lead += " What distillation helps with is scarce text, not scarce time."
    head = ("KD on", "CPU s", "KD, bits a byte", "CE on 10 MB after as long", "CE - KD")
    tail = "\nOn validation files, from the curves (CE between its points by a straight line). The teacher's own training is not counted.\n"
    return lead + "\n\n" + table(head, rows) + tail


def _at(curve: Sequence[Sequence[float]], seconds: float) -> float | None:
    """Bits of a curve of [steps, CPU seconds, bits] at a time; None outside it."""
    for before, after in pairwise(curve):
        if before[1] <= seconds <= after[1]:
            share = (seconds - before[1]) / (after[1] - before[1])
            return float(before[2] + share * (after[2] - before[2]))
    return None


def write(found: Row, folder: Path) -> None:
    """README.md and the plots."""
    (folder / "README.md").write_text(render(found), encoding="utf-8")
    for name, axis, label in (("steps.svg", 0, "steps"), ("cpu.svg", 1, "CPU seconds")):
        plot(folder / name, f"Standard library: bits a byte on held-out files over {label}", _lines(found, axis, label))


def _lines(found: Row, axis: int, label: str) -> Any:
    def lines(axes: Any) -> None:
        sizes = sorted({row["kb"] for row in found["means"]}, key=lambda kb: kb or 1 << 20)
        for kb, colour in zip(sizes, COLOURS, strict=False):
            for row in (r for r in found["means"] if r["kb"] == kb):
                axes.plot(
                    [point[axis] for point in row["curve"]],
                    [point[2] for point in row["curve"]],
                    "-" if row["arm"] == "kd" else "--",
                    color=colour,
                    linewidth=1.3,
                    label=f"{NAMES[row['arm']]}, {_size(kb)}",
                )
        if found["teacher"]:
            axes.axhline(found["teacher"]["bpb"], color="#888888", linewidth=0.8, linestyle=":")
            axes.annotate("teacher (test files)", (0, found["teacher"]["bpb"]), fontsize=7, va="bottom")
        axes.set_xlabel(label)
        axes.set_ylabel("bits a byte, validation files")
        if found["means"]:
            axes.legend(frameon=False, fontsize=7, ncol=2)

    return lines
