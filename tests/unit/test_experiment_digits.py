"""E1: arms and their pairing, what tuning may see, going on after a cut, and a report that says only what its results say."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from servers.dataset.stream import Stream
from servers.dataset.table import Table
from servers.learner.engine import StepMetrics
from servers.learner.trace import trace_rows
from servers.observer.packs import pack_of
from servers.observer.policy import numbers_of
from syscalls.errors import RecurosError
from tests.experiments import _carry, _digits, _digits_page, _digits_report, _loop, _page, _run, digits
from tests.experiments._digits import ABLATIONS, ARMS, EVERY_ARM, job
from tests.experiments._journal import Journal, code_digest, key

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "experiments" / "digits"
SETTINGS = {"lr": 1e-2, "mix": 0.5, "temperature": 2.0}


@pytest.fixture(scope="module")
def table() -> Table:
    return _digits.source()


def untaught(seed: int) -> torch.Tensor:
    """A teacher's parameters: fresh ones do where only the mechanics matter."""
    flat: torch.Tensor = _digits.engine_of("mlp", seed, {}).roles["teacher"].arena.flat
    return flat.clone()


# --- arms and pairing ---------------------------------------------------------------------------------------------------------


def test_the_arms_are_those_of_the_question() -> None:
    assert set(ARMS) == {"ce", "ce-mixup", "kd", "kd-mixup", "observer", "observer-permuted"}
    control, observer = ARMS["observer-permuted"], ARMS["observer"]
    assert dataclasses.replace(control, permuted=False) == observer, "the control differs in who gets which weight only"
    assert {len(_digits.trials(arm)) for arm in _digits.TUNED} == {6}, "every arm has as many trials as any other"
    for arm in _digits.TUNED:
        trials = _digits.trials(arm)
        assert len({json.dumps(trial, sort_keys=True) for trial in trials}) == len(trials)
    assert not set(_digits.SEEDS) & set(_digits.TUNING_SEEDS)
    assert len(_digits.SEEDS) == 20


def test_an_ablation_takes_one_term_away() -> None:
    numbers = {name: numbers_of(pack_of("starter"), arm.table or {}) for name, arm in ABLATIONS.items()}
    whole = numbers_of(pack_of("starter"), ARMS["observer"].table or {})
    changed = {name: {k for k in whole if whole[k] != given[k]} for name, given in numbers.items()}
    assert changed == {
        "no-disagreement": {"weight_gain"},
        "no-gate": {"ood_most"},
        "no-band": {"drop_low", "drop_high"},
        "no-schedule": {"temperature_step"},
    }
    assert {arm.tuned for arm in ABLATIONS.values()} == {"observer"}


def test_the_student_is_thirty_five_times_smaller() -> None:
    engine = _digits.engine_of("mlp", 0, {})
    assert (engine.param_count("teacher"), engine.param_count("student")) == (85_002, 2_410)
    assert _digits.engine_of("patch", 0, {}).param_count("teacher") == 145_610


def test_runs_of_a_seed_share_teacher_student_samples_and_order(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[bytes, bytes, list[bytes]]] = {}
    arm_now = ""

    def look(engine: Any, stream: Stream, phase: Any, _watcher: Any) -> _loop.Spent:
        flats = [engine.roles[role].arena.flat.numpy().tobytes() for role in ("teacher", "student")]
        batches = [stream.make(phase["name"], i, None)[0] for i in range(3)]
        seen[arm_now] = (
            flats[0],
            flats[1],
            [b["ids"].tobytes() + stream.table.columns("train")["x"].tobytes() for b in batches],
        )
        return _loop.Spent()

    monkeypatch.setattr(_digits, "train", look)
    for arm_now in EVERY_ARM:
        _digits.run(job("final", "mlp", 60, arm_now, 3, SETTINGS, 25), table, untaught(3))
    assert len(set(map(str, seen.values()))) == 1
    arm_now = "kd"
    _digits.run(job("final", "mlp", 60, "kd", 4, SETTINGS, 25), table, untaught(4))
    assert all(a != b for a, b in zip(seen["kd"], seen["ce"], strict=True)), (
        "another seed is another teacher, student, draw"
    )


def test_a_run_is_a_function_of_its_job(table: Table) -> None:
    given = job("final", "mlp", 60, "observer", 0, SETTINGS, 75)
    first, second = (_digits.run(given, table, untaught(0)) for _ in range(2))
    assert {k: v for k, v in first.items() if k != "cpu_seconds"} == {
        k: v for k, v in second.items() if k != "cpu_seconds"
    }
    assert first["queries"] == 75 * 60
    assert first["n"] == 600
    assert _digits.run(job("final", "mlp", 60, "ce", 0, SETTINGS, 25), table, untaught(0))["queries"] == 0


def test_a_subset_is_balanced_and_depends_on_the_seed_alone(table: Table) -> None:
    labels = table.columns("train")["labels"]
    first = _digits.balanced(labels, 120, 1)
    assert np.bincount(labels[first]).tolist() == [12] * 10
    assert (np.diff(first) > 0).all()
    assert first.tolist() == _digits.balanced(labels, 120, 1).tolist() != _digits.balanced(labels, 120, 2).tolist()
    with pytest.raises(ValueError, match="need 100 of each class"):
        _digits.balanced(labels, 1000, 1)


# --- held-out data ---------------------------------------------------------------------------------------------------------------


def test_tuning_cannot_ask_for_the_test_split_and_final_runs_are_scored_on_nothing_else(table: Table) -> None:
    tuning, final, full = (
        _digits.tuning_table(table, 60, 0),
        _digits.final_table(table, 60, 0),
        _digits.final_table(table, 1197, 0),
    )
    with pytest.raises(RecurosError, match="no split is called 'test'"):
        tuning.columns("test")
    assert (tuning.size("train"), tuning.size("validation")) == (60, 197)
    assert (final.size("train"), final.size("validation"), final.size("test")) == (60, 197, 600)
    assert (full.size("train"), full.size("test"), "validation" in full.splits) == (1197, 600, False)
    assert {name: _digits.teacher_table(table, name).size("train") for name in ("tune", "final")} == {
        "tune": 1000,
        "final": 1197,
    }

    def images(columns: dict[str, Any]) -> set[bytes]:
        return {image.tobytes() for image in columns["x"]}

    test = images(table.columns("test"))
    for held in (tuning, final, full):
        assert not images(held.columns("train")) & test
    assert not images(final.columns("train")) & images(final.columns("validation"))


def test_no_label_of_the_test_split_reaches_tuning_or_training(table: Table) -> None:
    poisoned = dataclasses.replace(
        table,
        splits={
            **table.splits,
            "test": {"x": np.full((600, 8, 8), np.nan, np.float32), "labels": np.zeros(600, np.int64)},
        },
    )
    tune = job("tune", "mlp", 60, "observer", 1001, SETTINGS, 50)
    clean, other = (_digits.run(tune, t, untaught(1)) for t in (table, poisoned))
    assert {k: v for k, v in clean.items() if k != "cpu_seconds"} == {
        k: v for k, v in other.items() if k != "cpu_seconds"
    }
    short = {"mlp": {**_digits.TEACHERS["mlp"], "steps": 25}}
    flats = []
    for given in (table, dataclasses.replace(table, splits={**table.splits, "test": table.columns("validation")})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_digits, "TEACHERS", short)
            flats.append(_digits.run_teacher(given, "mlp", "final", 0)[0].tobytes())
    assert flats[0] == flats[1]


# --- the Observer in the loop ----------------------------------------------------------------------------------------------------


class Looked:
    """An engine as far as the watcher looks at it."""

    generation = 0

    class kd:  # noqa: N801
        temperature = 2.0


def window_of(ids: list[int], disagree: set[int]) -> list[StepMetrics]:
    """One step whose student disagrees with the teacher on some samples."""
    teacher = torch.eye(3)[torch.arange(len(ids)) % 3] * 3
    student = teacher.clone()
    for row, sample in enumerate(ids):
        if sample in disagree:
            student[row] = teacher[row].roll(1)
    rows = trace_rows(student, teacher, torch.arange(len(ids)) % 3, torch.tensor(ids))
    return [StepMetrics(0, 0.0, 0.0, 0.0, len(ids), {"kd": 0.1}, rows)]


def watcher(**given: Any) -> _loop.Watcher:
    """Over six samples that the entropy band leaves alone."""
    return _loop.Watcher({"ids": torch.arange(6)}, 2.0, table={"drop_low": 0.0, "drop_high": 0.0}, **given)


def test_evidence_of_a_window_is_in_force_two_windows_later() -> None:
    observer = watcher()
    observer.see(0, Looked, window_of(list(range(6)), {4}))  # type: ignore[arg-type]
    assert observer.policy(0) == ({}, None)
    assert observer.policy(1) == ({}, None)
    settings, weights = observer.policy(2)
    assert settings["temperature"] > 0
    assert weights is not None
    assert weights.argmax() == 4
    assert weights.mean() == pytest.approx(1.0)
    kept = observer.policy(3)[1]
    assert kept is not None
    assert kept.tolist() == weights.tolist(), "it stays until another takes its place"


def test_the_control_deals_the_same_weights_out_to_other_samples() -> None:
    order = np.asarray([1, 2, 3, 4, 5, 0])
    plain, permuted = watcher(), watcher(order=order)
    for observer in (plain, permuted):
        observer.state.look(np.asarray([0.0, 0.0, 9.0, 0.0, 0.0, 0.0]), 1.0)
        observer.see(0, Looked, window_of(list(range(6)), {4}))  # type: ignore[arg-type]
    ours, control = plain.policy(2)[1], permuted.policy(2)[1]
    assert ours is not None
    assert control is not None
    assert ours[2] == 0.0, "a sample far from the others is left out"
    assert control.tolist() == ours[order].tolist() != ours.tolist()
    assert sorted(control) == sorted(ours)
    assert plain.report()["gated_share"] == pytest.approx(1 / 6)


def test_the_gate_looks_once_at_features_of_the_teacher(table: Table) -> None:
    seen = _digits.tuning_table(table, 120, 0)
    engine = _digits.engine_of("mlp", 0, {})
    training = {**_loop.tensors(seen.columns("train")), "ids": torch.arange(120)}
    observer = _loop.Watcher(training, 2.0, validation=_loop.tensors(seen.columns("validation")))
    assert observer.validation is not None
    observer._evaluate(engine, observer.validation)
    first = observer.state.samples.distance.copy()
    hidden = engine.roles["teacher"].model.forward(training, need_hidden=True).hidden[-1][:, 0]
    np.testing.assert_allclose(
        _loop.features(engine.roles["teacher"].model, training), hidden.detach().double().numpy()
    )
    assert np.isfinite(first).all()
    engine.roles["teacher"].arena.flat.mul_(2.0)
    observer._evaluate(engine, observer.validation)
    assert observer.state.samples.distance.tolist() == first.tolist()
    assert observer.state.held_out.count == 2


# --- going on after a cut ----------------------------------------------------------------------------------------------------------


def test_a_torn_line_is_run_again_and_nothing_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs.jsonl")
    jobs = [job("final", "mlp", 60, "ce", seed, SETTINGS, 25) for seed in range(3)]
    journal.append(jobs[0], {"accuracy": 0.5})
    journal.append(jobs[1], {"accuracy": 0.6})
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:-9])
    assert _run.missing(jobs, journal) == jobs[1:]
    journal.append(jobs[2], {"accuracy": 0.7})
    journal.append(jobs[1], {"accuracy": 0.8})
    journal.append(jobs[1], {"accuracy": 0.9})
    assert _run.missing(jobs, journal) == []
    assert journal.results()[key(jobs[1])] == {"accuracy": 0.8}, "the first result of a run stands"
    assert sorted(result["accuracy"] for _, result in journal.rows()) == [0.5, 0.7, 0.8]


def test_two_processes_share_a_stage_without_overlap(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs.jsonl")
    jobs = [job("final", "mlp", 60, "ce", seed, SETTINGS, 25) for seed in range(7)]
    shares = [_run.missing(jobs, journal, shard, 2) for shard in range(2)]
    assert [len(share) for share in shares] == [4, 3]
    assert sorted(map(key, shares[0] + shares[1])) == sorted(map(key, jobs))


def test_a_cut_experiment_goes_on_and_ends_with_the_same_results(tmp_path: Path) -> None:
    jobs = [{"arm": arm, "seed": seed} for seed in range(2) for arm in ("a", "b")]
    calls: list[Any] = []

    def run(given: dict[str, Any], _folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [(given, {"score": given["seed"]})]

    made = dataclasses.replace(digits.EXPERIMENT, run=run)
    with pytest.raises(KeyboardInterrupt):
        _run.work(made, jobs, tmp_path, float("inf"))
    journal = Journal(tmp_path / "runs.jsonl")
    assert _run.missing(jobs, journal) == jobs[2:]
    assert not _run.work(made, _run.missing(jobs, journal), tmp_path, deadline=0.0), (
        "no run begins after the time is up"
    )
    assert _run.work(made, _run.missing(jobs, journal), tmp_path, float("inf"))
    assert [row for row, _ in journal.rows()] == jobs
    assert len(calls) == 5


def test_runs_of_other_code_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_digest([Path(_digits.__file__)]) != code_digest([Path(_loop.__file__)])
    assert code_digest([Path(_digits.__file__)]) == code_digest([Path(_digits.__file__)])
    assert _run.folder_of(digits.EXPERIMENT, True) != _run.folder_of(digits.EXPERIMENT, False)


def test_a_teacher_is_trained_once_and_read_back_exactly(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_digits, "TEACHERS", {"mlp": {**_digits.TEACHERS["mlp"], "steps": 25}})
    first, result = _digits.teacher_of(tmp_path, table, "mlp", "tune", 5)
    again, nothing = _digits.teacher_of(tmp_path, table, "mlp", "tune", 5)
    assert result is not None
    assert result["n"] == 197, "a tuning teacher is scored on validation"
    assert nothing is None
    assert torch.equal(first, again)
    assert not list(tmp_path.glob("*.part"))


def test_only_arms_that_come_out_equal_are_taken_over(tmp_path: Path) -> None:
    source = Journal(tmp_path / "old" / "runs.jsonl")
    (tmp_path / "old" / "teachers").mkdir(parents=True)
    for arm in ("kd", "observer"):
        for seed in range(3):
            source.append(job("final", "mlp", 60, arm, seed, SETTINGS, 25), {"accuracy": 0.5, "cpu_seconds": 9.0})

    def run(given: dict[str, Any], folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        (folder / "teachers").mkdir(exist_ok=True)
        (folder / "teachers" / "one.npy").write_bytes(teacher)
        changed = given["arm"] == "observer" and given["seed"] == 2
        return [(given, {"accuracy": 0.6 if changed else 0.5, "cpu_seconds": 1.0})]

    teacher = b"as it was"
    (tmp_path / "old" / "teachers" / "one.npy").write_bytes(teacher)
    note = _carry.carry(tmp_path / "old", tmp_path / "new", run)
    assert (note["arms"], note["not_taken"], note["runs"], note["checked"]) == (
        ["final mlp kd"],
        ["final mlp observer"],
        3,
        4,
    )
    assert {j["arm"] for j, _ in Journal(tmp_path / "new" / "runs.jsonl").rows()} == {"kd"}
    assert _carry.note_of(tmp_path / "new") == note
    assert (tmp_path / "new" / "teachers" / "one.npy").read_bytes() == teacher
    teacher = b"as it is now"
    with pytest.raises(SystemExit, match="a teacher comes out differently"):
        _carry.carry(tmp_path / "old", tmp_path / "other", run)


# --- the report ---------------------------------------------------------------------------------------------------------------------


def invented(gain: dict[str, float], seeds: int = 4, counts: tuple[int, ...] = (60, 120)) -> list[tuple[Any, Any]]:
    """Runs whose accuracy is a base, a seed's offset, an arm's gain and a little noise; for the report's own tests."""
    rng = np.random.default_rng(0)
    rows: list[tuple[Any, Any]] = [
        ({"stage": "teach", "for": "final", "teacher": "mlp", "seed": s}, {"accuracy": 0.98, "cpu_seconds": 1.0})
        for s in range(seeds)
    ]
    for arm in _digits.TUNED:
        for settings, score in ((SETTINGS, 0.9), ({**SETTINGS, "lr": 2e-2}, 0.8)):
            rows.append((job("tune", "mlp", 60, arm, 1001, settings, 25), {"accuracy": score, "nll": 0.3}))
    for n in counts:
        for arm in EVERY_ARM:
            for seed in range(seeds):
                score = 0.85 + n / 2000 + 0.01 * seed + gain.get(arm, 0.0) + 0.001 * rng.normal()
                result = {"n": 600.0, "accuracy": score, "agreement": score, "kl": 1 - score, "ece": 0.1, "nll": 0.5}
                extra = {"temperature_last": 1.5, "weight_spread": 0.3, "weightless_share": 0.2, "gated_share": 0.05}
                rows.append(
                    (
                        job("final", "mlp", n, arm, seed, SETTINGS, 25),
                        {
                            **result,
                            "queries": 10,
                            "cpu_seconds": 1.0,
                            **(extra if EVERY_ARM[arm].table is not None else {}),
                        },
                    )
                )
    return rows


META = {
    "experiment": "digits",
    "quick": True,
    "command": "make experiment NAME=digits QUICK=1",
    "date": "2026-01-01",
    "machine": "a machine",
    "python": "3.11",
    "torch": "2",
    "code": "abc",
    **digits.facts(quick=True),
}


def test_a_gain_that_the_control_has_too_is_no_gain() -> None:
    both = {"kd-mixup": 0.05, "observer": 0.08, "observer-permuted": 0.08}
    document = _digits_report.results(invented(both), META)
    over = {(r["a"], r["b"], r["n"]): r for r in document["contrasts"] if r["metric"] == "accuracy"}
    assert over["observer", "kd-mixup", 60]["mean"] == pytest.approx(3.0, abs=0.3)
    assert document["observer"] == "no gain"
    assert {r["n"] for r in document["runs"]} == {60, 120}, (
        "the count of labels, not of images that a run was scored on"
    )
    page = _digits_page.render(_page.short(document))
    assert "**The Observer: no gain.**" in page
    assert "MISSED" in page
    alone = _digits_report.results(invented({**both, "observer-permuted": 0.05}, seeds=12, counts=(60,)), META)
    assert alone["observer"] == "gain"
    assert "no gain" not in _digits_page.render(_page.short(alone))


def test_seeds_that_lack_an_arm_are_left_out_and_what_was_not_run_has_no_verdict(tmp_path: Path) -> None:
    rows = [r for r in invented({"kd-mixup": 0.05}) if not (r[0].get("arm") == "kd" and r[0]["seed"] == 2)]
    document = _digits_report.results(rows, META)
    assert {r["seeds"] for r in document["means"]} == {3}
    assert {r["pairs"] for r in document["contrasts"]} == {3}
    none = _digits_report.results([r for r in rows if r[0]["stage"] != "final"], META)
    assert none["observer"] == "not run"
    assert {t["met"] for t in none["targets"] if t["what"] != "paired seeds"} == {None}
    assert "not run" in _digits_page.render(_page.short(none))
    _digits_page.write(_page.short(none), tmp_path)  # plots of nothing, and no warning


def test_tuning_takes_the_best_mean_on_validation(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs.jsonl")
    for seed, scores in ((1001, (0.9, 0.95)), (1002, (0.9, 0.7))):
        for lr, accuracy in zip((1e-2, 2e-2), scores, strict=True):
            journal.append(job("tune", "mlp", 60, "ce", seed, {"lr": lr}, 25), {"accuracy": accuracy, "nll": 0.1})
    assert _digits_report.chosen(journal) == {("ce", 60): {"lr": 1e-2}}
    tie = Journal(tmp_path / "tie.jsonl")
    for lr, nll in ((1e-2, 0.3), (2e-2, 0.2)):
        tie.append(job("tune", "mlp", 60, "ce", 1001, {"lr": lr}, 25), {"accuracy": 0.9, "nll": nll})
    assert _digits_report.chosen(tie) == {("ce", 60): {"lr": 2e-2}}


def test_a_report_is_written_from_its_results_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs.jsonl")
    for given, result in invented({"kd-mixup": 0.05}):
        journal.append(given, result)
    _digits_report.write(journal, META, tmp_path)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page == _digits_page.render(_page.kept(tmp_path / "results.json"))
    plots = {name: (tmp_path / name).read_bytes() for name in ("accuracy.svg", "effects.svg")}
    _digits_page.write(_page.kept(tmp_path / "results.json"), tmp_path)
    assert plots == {name: (tmp_path / name).read_bytes() for name in plots}, (
        "plots do not change from one time to the next"
    )


@pytest.mark.skipif(not DOCS.exists(), reason="no full run is kept")
def test_the_report_in_the_docs_is_that_of_its_results() -> None:
    found = _page.kept(DOCS / "results.json")
    assert (DOCS / "README.md").read_text(encoding="utf-8") == _digits_page.render(found)
    assert not found["meta"]["quick"]
    runs = {(r["teacher"], r["n"], r["arm"], r["seed"]): r for r in found["runs"]}
    again = _digits_report.contrasts(runs, "mlp", sorted({r["n"] for r in found["runs"]}))
    assert _page.short(again) == [r for r in found["contrasts"] if r["teacher"] == "mlp"]


def test_two_processes_share_an_experiment_that_goes_on_after_one_died(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.experiment_support", "--quick", "--procs", "2"]
    env = {**os.environ, "EXPERIMENT_BUILD": str(tmp_path)}
    broken = subprocess.run(command, cwd=ROOT, env={**env, "FAIL": "3"}, capture_output=True, text=True, check=False)
    assert broken.returncode != 0
    assert "the same command goes on" in broken.stderr
    assert not list(tmp_path.rglob("results.json"))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.rglob("results.json")
    document = json.loads(results.read_text(encoding="utf-8"))
    rows = [(j, r) for j, r in document["rows"] if j["stage"] == "first"]
    assert sorted(j["number"] for j, _ in rows) == list(range(6)), "each run once"
    assert {r["nice"] for _, r in rows} == {19}
    assert len({r["pid"] for _, r in rows}) > 1
    assert document["rows"][-1][0] == {"stage": "second", "total": 55}, "a stage begins when the one before is done"
    assert document["meta"]["fact"] == 1


def test_more_than_two_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["digits", "--procs", "3"])
    with pytest.raises(SystemExit):
        _run._options(digits.EXPERIMENT)
    assert "invalid choice: 3" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["digits", "--procs", "2", "--quick"])
    assert isinstance(_run._options(digits.EXPERIMENT), argparse.Namespace)
