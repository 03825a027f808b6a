"""E1, from results.json to README.md and its plots. Nothing is computed here that is not in results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.experiments._page import COLOURS, forest, interval, p_value, plot, points, table, verdict

Row = Mapping[str, Any]
NAMES: Final = {
    "ce": "CE",
    "ce-mixup": "CE + mixup",
    "kd": "KD",
    "kd-mixup": "KD + mixup",
    "observer": "Observer",
    "observer-permuted": "Observer, permuted",
    "no-disagreement": "without disagreement",
    "no-gate": "without gate",
    "no-band": "without entropy band",
    "no-schedule": "without temperature schedule",
}
TEACHERS: Final = {
    "mlp": "perceptron teacher (2 x 256, 85,002 parameters)",
    "patch": "transformer teacher (the digits app's: 4 x 64, 145,610 parameters)",
}
SHORT: Final = {"mlp": "perceptron", "patch": "transformer"}
SETUP: Final = """\
## Setup

- **Data**: scikit-learn's 1,797 digits. 600 are the test split: scored once a run, after the last step, and read by nothing
  else. Of the other 1,197, tuning trains on 1,000 and judges by 197. Final runs draw 60, 120 or 300 of the 1,000, balanced
  over classes, or take all 1,197.
- **Teacher**: learns all 1,197 labels before a final run (the 1,000 before a tuning run). The question is what a student needs
  labels *for* when such a teacher is there. **Student**: a perceptron of one layer of 32, 2,410 parameters, 35 times smaller than the
  perceptron teacher.
- **Arms**: cross-entropy (CE); distillation (KD: CE and tau^2 KL, hints off); each with mixup, for which the teacher is asked about the
  mixed image. *Observer*: KD + mixup with what the `starter` pack decides: a weight for each sample
  that grows with the student's disagreement with the teacher (gain {weight_gain:g}, within {weight_min:g} and {weight_max:g});
  the {drop_low:.0%} of samples with the lowest and the {drop_high:.0%} with the highest teacher entropy weighted by {band_floor:g};
  a gate that leaves out what lies further from the teacher's classes than {gate:.1%} of held-out samples (nothing if that
  were over {ood_most:.0%}); a temperature that moves by {temperature_step:.0%} at a time. *Observer, permuted*: the same, but the
  weights are dealt out to the wrong samples, by one permutation a run. What this control gains as well, the choice of samples
  did not cause.
- **Pairing**: the runs of a seed share teacher, samples, fresh student, order of batches and mixing. All arms take {steps:,} steps
  of at most 64 samples; the last checkpoint counts; nothing stops early.
- **Tuning**: six trials an arm at each count (two learning rates by three of the arm's own settings), seeds that no final run
  uses ({tuning_seeds}), highest mean validation accuracy. The permuted control and the ablations run with the
  Observer's choice. All settings were tuned with the perceptron teacher and are used with the other as they are.
- **The Observer's extra data**: its held-out calibration and its gate read the 197 validation samples, labels included. Tuning reads
  them for every arm, but no other arm has them during training. With all 1,197 labels there are none left: the gate is open and
  the calibration rule has no evidence.
- **Statistics**: means of paired differences, BCa bootstrap intervals (95 %, 20,000 resamples), exact sign-flip tests (two-sided), Holm's
  correction inside each family of questions, teacher and metric.
"""


def render(found: Row) -> str:
    """The page."""
    meta = found["meta"]
    tuned = [row for row in found["tuning"] if row["chosen"]]
    setup = SETUP.replace("{steps:,}", f"{meta['steps']:,}").replace("{gate:.1%}", f"{meta['gate_quantile']:.1%}")
    for name, value in meta["starter"].items():
        setup = setup.replace(f"{{{name}:g}}", f"{value:g}").replace(f"{{{name}:.0%}}", f"{value:.0%}")
    setup = setup.replace(
        "{tuning_seeds}",
        ", ".join(f"{k} at {n:,} labels" for n, k in sorted({(row["n"], row["runs"]) for row in tuned})),
    )
    parts = [
        "# E1: digits\n",
        f"Rendered from `results.json` by `{meta['command']}`; every figure is from there.\n",
        _headline(found),
        "## Targets\n\n" + _targets(found["targets"]),
        setup,
        "## Results\n\n" + _accuracy(found),
        "![accuracy over labels](accuracy.svg)\n\n![paired differences](effects.svg)\n",
        "### Paired differences in accuracy, points\n\n" + _contrasts(found, "accuracy"),
        "### Fidelity\n\nHow much the student does what the teacher does, apart from whether that is right: agreement of the top class,"
        " and KL(teacher || student) in nats, on the test split.\n\n" + _fidelity(found),
        _contrasts(found, "agreement", "Differences in agreement, points."),
        _contrasts(found, "kl", "Differences in KL, nats; negative is closer to the teacher."),
        "## The Observer and its control\n\n" + _observer(found),
        "## Cost\n\n" + _cost(found),
        "## Tuning\n\n" + _tuning(found),
        "## Limits\n\n" + _limits(found),
        _provenance(meta, found),
    ]
    return "\n".join(parts)


def _headline(found: Row) -> str:
    """What it comes to, in two sentences that follow from the figures."""
    aims = found["targets"]
    told = ", ".join(
        f"{interval(row['effect']['mean'], row['effect']['low'], row['effect']['high'])} points at {n} labels"
        for row, n in zip(aims[:2], (60, 120), strict=True)
        if row["effect"]
    )
    sentences = [f"KD + mixup over CE: {told}." if told else "KD + mixup over CE: not run."]
    sentences.append(
        {
            "gain": "The Observer adds to that, and its permuted control does not explain it.",
            "no gain": "**The Observer: no gain.** See [below](#the-observer-and-its-control) for which condition failed.",
            "not run": "The Observer: not run.",
        }[found["observer"]]
    )
    return " ".join(sentences) + "\n"


def _targets(aims: Sequence[Row]) -> str:
    def shown(row: Row) -> str:
        effect = row["effect"]
        if effect is None:
            return "-"
        if effect["mean"] is None:
            return "never reached"
        if row["what"] == "paired seeds":
            return f"{effect['mean']:.0f}"
        if "labels for" in row["what"]:
            bound = "at most " if effect["at_most"] else ""
            return f"{bound}{effect['mean']:.2f} [{_end(effect['low'])}, {_end(effect['high'])}]"
        text = interval(effect["mean"], effect["low"], effect["high"])
        return text + (f", Holm p {p_value(effect['holm'])}" if "permuted" in row["what"] else "")

    text = table(
        ("what", "target", "value [95 % interval]", ""),
        [(row["what"], row["target"], shown(row), verdict(row["met"])) for row in aims],
    )
    if any((row["effect"] or {}).get("at_most") for row in aims):
        text += "\nKD + mixup is there with the fewest labels that were tried, so that the ratio is a bound.\n"
    return text


def _end(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def _counts(found: Row, teacher: str) -> list[int]:
    return sorted({row["n"] for row in found["means"] if row["teacher"] == teacher})


def _accuracy(found: Row) -> str:
    text = "Accuracy on the test split, percent: mean and standard deviation over the paired seeds.\n"
    for teacher, title in TEACHERS.items():
        counts = _counts(found, teacher)
        if not counts:
            text += f"\n**{title}**: not run.\n"
            continue
        seeds = {row["n"]: row["seeds"] for row in found["means"] if row["teacher"] == teacher and row["arm"] == "ce"}
        scores = [t["accuracy"] for t in found["teachers"] if (t["teacher"], t["for"]) == (teacher, "final")]
        rows = []
        for arm in dict.fromkeys(row["arm"] for row in found["means"] if row["teacher"] == teacher):
            cells = {r["n"]: r for r in found["means"] if (r["teacher"], r["arm"]) == (teacher, arm)}
            rows.append(
                (
                    NAMES[arm],
                    *(
                        f"{points(cells[n]['accuracy'])} ± {points(cells[n]['accuracy_sd'])}" if n in cells else "-"
                        for n in counts
                    ),
                )
            )
        mean = sum(scores) / len(scores)
        text += (
            f"\n**{title}**, itself {points(mean)} (mean of {len(scores)} seeds); paired seeds: "
            + ", ".join(f"{seeds[n]} at {n:,}" for n in counts)
            + ".\n\n"
            + table(("arm", *(f"{n:,} labels" for n in counts)), rows)
        )
    return text


def _contrasts(found: Row, metric: str, lead: str = "") -> str:
    rows = [
        (
            SHORT[row["teacher"]],
            f"{row['n']:,}",
            f"{NAMES[row['a']]} - {NAMES[row['b']]}",
            interval(row["mean"], row["low"], row["high"]),
            p_value(row["p"]),
            p_value(row["holm"]),
            str(row["pairs"]),
        )
        for row in found["contrasts"]
        if row["metric"] == metric and row["family"] != "ablations"
    ]
    head = ("teacher", "labels", "difference", "mean [95 % interval]", "p", "Holm p", "pairs")
    return (lead + "\n\n" if lead else "") + table(head, rows)


def _fidelity(found: Row) -> str:
    rows = [
        (
            SHORT[row["teacher"]],
            f"{row['n']:,}",
            NAMES[row["arm"]],
            points(row["agreement"]),
            f"{row['kl']:.3f}",
            points(row["ece"]),
            f"{row['nll']:.3f}",
        )
        for row in found["means"]
        if not row["arm"].startswith("no-")
    ]
    return table(("teacher", "labels", "arm", "agreement, %", "KL, nats", "ECE, %", "NLL, nats"), rows)


def _observer(found: Row) -> str:
    """Both conditions in words, and each term taken away."""
    both = [row for row in found["targets"] if row["what"].startswith("Observer over")]
    lines = [
        f"- {row['what']}: target {row['target']}; "
        + (
            "not run"
            if row["effect"] is None
            else f"{interval(row['effect']['mean'], row['effect']['low'], row['effect']['high'])}, {verdict(row['met'])}"
        )
        + "."
        for row in both
    ]
    ends = {
        "gain": "Both hold: a gain.",
        "no gain": "Both must hold for a gain. They do not, so this is **no gain**, whatever single intervals look like.",
        "not run": "Not run.",
    }
    text = "\n".join(lines) + f"\n\n{ends[found['observer']]}\n"
    ablated = [row for row in found["contrasts"] if row["family"] == "ablations" and row["metric"] == "accuracy"]
    if ablated:
        text += (
            "\nEach term taken away: the full Observer minus the Observer without it, in points of accuracy. Positive means that the term"
            " helps.\n\n"
        )
        text += table(
            ("labels", "term", "mean [95 % interval]", "p", "Holm p", "pairs"),
            [
                (
                    f"{row['n']:,}",
                    NAMES[row["b"]].removeprefix("without "),
                    interval(row["mean"], row["low"], row["high"]),
                    p_value(row["p"]),
                    p_value(row["holm"]),
                    str(row["pairs"]),
                )
                for row in ablated
            ],
        )
    acted = [row for row in found["means"] if row["arm"] == "observer"]
    if acted:
        text += (
            "\nWhat it did: last temperature, standard deviation of the weights (their mean is 1), samples that weigh nothing, and those"
            " among them that the gate shut out.\n\n"
        )
        text += table(
            ("teacher", "labels", "temperature", "spread", "weigh nothing, %", "shut out, %"),
            [
                (
                    SHORT[row["teacher"]],
                    f"{row['n']:,}",
                    f"{row['temperature_last']:.2f}",
                    f"{row['weight_spread']:.2f}",
                    points(row["weightless_share"]),
                    points(row["gated_share"]),
                )
                for row in acted
            ],
        )
    return text


def _cost(found: Row) -> str:
    rows = [
        (
            SHORT[row["teacher"]],
            NAMES[row["arm"]],
            f"{row['queries']:,.0f}",
            f"{row['cpu_seconds']:.2f}",
        )
        for row in found["means"]
        if row["n"] == 60
    ]
    taught = {teacher: [t["cpu_seconds"] for t in found["teachers"] if t["teacher"] == teacher] for teacher in TEACHERS}
    text = (
        "Images that the teacher was asked about in a run (its own training not counted), and CPU seconds of a run with 60 labels. CPU"
        " seconds were taken on a machine that did other work too.\n\n"
    )
    text += table(("teacher", "arm", "teacher queries", "CPU s"), rows)
    text += "\nA teacher took " + ", ".join(
        f"{sum(s) / len(s):.1f} CPU s ({SHORT[name]})" for name, s in taught.items() if s
    )
    return text + f". Everything in this report: {found['cpu_seconds']:,.0f} CPU s.\n"


def _tuning(found: Row) -> str:
    rows = []
    for row in found["tuning"]:
        if row["chosen"]:
            settings = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in sorted(row["settings"].items()))
            rows.append((f"{row['n']:,}", NAMES[row["arm"]], settings, points(row["accuracy"])))
    return (
        "What was chosen, with its mean validation accuracy in percent. All trials are in `results.json`.\n\n"
        + table(("labels", "arm", "settings", "validation"), rows)
    )


def _limits(found: Row) -> str:
    lines = [
        "- One data set of small, clean images. A gate against samples from elsewhere has nothing to do here; its ablation shows what it"
        " costs, not what it is for.",
        "- 600 test images: one image is 0.17 points. Intervals are over seeds (teacher, samples, student, order), for this test split.",
        "- Near the ceiling, with 300 labels and more, few images are left to differ on.",
        "- Equal steps, not equal CPU time: distillation takes longer a step (see Cost).",
    ]
    lines.append(
        "- Six trials an arm are a coarse grid, and some choices lie at its edge; a finer one could move any arm, equally for all."
    )
    missing = [title for teacher, title in TEACHERS.items() if not _counts(found, teacher)]
    lines += [f"- Not run: {title}." for title in missing]
    fewer: dict[tuple[str, int], list[str]] = {}
    for row in found["means"]:
        if row["arm"] == "ce" and row["seeds"] < 20:
            fewer.setdefault((SHORT[row["teacher"]], row["seeds"]), []).append(f"{row['n']:,}")
    for (teacher, seeds), counts in fewer.items():
        lines.append(f"- Only {seeds} of 20 seeds were run with the {teacher} teacher at {', '.join(counts)} labels.")
    ablated = {(row["n"], row["pairs"]) for row in found["contrasts"] if row["family"] == "ablations"}
    if ablated:
        told = ", ".join(f"{pairs} at {n:,}" for n, pairs in sorted(ablated))
        lines.append(f"- Ablations were run with the perceptron teacher only; seeds: {told} labels.")
    return "\n".join(lines) + "\n"


def _provenance(meta: Row, found: Row) -> str:
    seeds = sorted({row["seed"] for row in found["runs"]})
    return (
        "## Where it comes from\n\n"
        f"- Machine: {meta['machine']}; Python {meta['python']}, torch {meta['torch']}; {meta['date']}.\n"
        f"- Seeds {seeds[0] if seeds else '-'} to {seeds[-1] if seeds else '-'}; {len(found['runs'])} final runs;"
        f" digest of the sources that decide a run: `{meta['code']}`.\n"
        + _page_carried(meta)
        + f"- `{meta['command']}` runs all of it, and goes on where it was cut off; `QUICK=1` is a small grid that writes elsewhere.\n"
    )


def _page_carried(meta: Row) -> str:
    """What other code ran, and how it was checked."""
    note = meta.get("carried")
    if not note:
        return ""
    return (
        f"- {note['runs']} runs are by earlier sources, `{note['code']}`. The first and the last"
        f" run of each arm, {note['checked']} in all, were run again by the sources above, and arms were taken over where both came out"
        f" equal in everything but CPU time: {', '.join(note['arms'])}.\n"
    )


def write(found: Row, folder: Path) -> None:
    """README.md and the plots."""
    (folder / "README.md").write_text(render(found), encoding="utf-8")
    rows = [r for r in found["means"] if r["teacher"] == "mlp" and not r["arm"].startswith("no-")]

    def lines(axes: Any) -> None:
        for arm, colour in zip(dict.fromkeys(r["arm"] for r in rows), COLOURS, strict=False):
            mine = sorted((r for r in rows if r["arm"] == arm), key=lambda r: r["n"])
            half = [1.96 * r["accuracy_sd"] * 100 / r["seeds"] ** 0.5 for r in mine]
            style = "--" if arm == "observer-permuted" else "-"
            axes.errorbar(
                [r["n"] for r in mine],
                [100 * r["accuracy"] for r in mine],
                yerr=half,
                label=NAMES[arm],
                color=colour,
                linestyle=style,
                marker="o",
                markersize=3,
                capsize=2,
                linewidth=1.2,
            )
        axes.set_xscale("log")
        ticks = sorted({r["n"] for r in rows})
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.minorticks_off()
        axes.set_xlabel("labels (logarithmic)")
        axes.set_ylabel("test accuracy, %")
        if rows:
            axes.legend(frameon=False)

    plot(folder / "accuracy.svg", "Digits, perceptron teacher: mean and 1.96 standard errors", lines)
    compared = [
        r
        for r in found["contrasts"]
        if r["metric"] == "accuracy"
        and r["teacher"] == "mlp"
        and (r["family"] == "observer" or (r["a"], r["b"]) == ("kd-mixup", "ce"))
    ]
    named = [(f"{NAMES[r['a']]} - {NAMES[r['b']]}, {r['n']:,}", r) for r in compared]

    def effects(axes: Any) -> None:
        forest(axes, named, "difference in accuracy, points; paired, 95 % interval")

    plot(folder / "effects.svg", "Digits: paired differences", effects, (7.2, 1.2 + 0.28 * len(named)))
