"""E2: whole files are held out, runs are paired and resumable, and the page says what the results say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servers.dataset import code_tree
from servers.dataset.stream import Stream
from servers.dataset.table import Table
from tests.experiments import _page, _run, _stdlib, _stdlib_page, _stdlib_report, stdlib
from tests.experiments._journal import Journal
from tests.experiments._loop import Spent
from tests.experiments._stdlib import job

DOCS = Path(__file__).resolve().parents[2] / "docs" / "experiments" / "stdlib"
TINY = _stdlib.gpt2(1, 8, 1)
KD = {"lr": 4e-3, "mix": 0.5, "temperature": 2.0}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A small tree of modules that say which file they are."""
    root = tmp_path_factory.mktemp("tree")
    for number in range(40):
        (root / f"module{number:02}.py").write_text(f"# file {number:02}\n" * 40, encoding="utf-8")
    return code_tree.load({"path": str(root), "tokenizer": "bytes", "seq_len": 128}, {})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stdlib, "TEACHER", TINY)
    monkeypatch.setattr(_stdlib, "STUDENT", TINY)


def files_of(table: Table, split: str) -> set[str]:
    texts = [bytes(row[:n].astype(np.uint8)).decode() for row, n in zip(*table.columns(split).values(), strict=True)]
    return {text[at + 5 : at + 7] for text in texts if 0 <= (at := text.find("file ")) <= len(text) - 7}


def test_no_file_is_both_trained_on_and_judged_by(table: Table) -> None:
    pool = _stdlib.pooled(table, rows=8)
    splits = [files_of(pool, name) for name in ("train", "validation", "test")]
    assert all(splits)
    assert not splits[0] & splits[1]
    assert not splits[0] & splits[2]
    assert not splits[1] & splits[2]
    assert pool.size("test") == pool.size("validation") == 8


def test_a_subset_is_of_the_size_asked_for_and_follows_the_seed(table: Table) -> None:
    pool = _stdlib.pooled(table, rows=4)
    first, again, other = (_stdlib.subset(pool, 2, seed) for seed in (1, 1, 2))
    assert first.size("train") == 2 * 1024 // 128
    assert first.columns("train")["input_ids"].tolist() == again.columns("train")["input_ids"].tolist()
    assert first.columns("train")["input_ids"].tolist() != other.columns("train")["input_ids"].tolist()
    assert first.columns("test")["input_ids"] is pool.columns("test")["input_ids"]
    with pytest.raises(ValueError, match="more than the pool"):
        _stdlib.subset(pool, 1024, 1)


@pytest.mark.usefixtures("tiny")
def test_a_run_has_a_curve_and_is_a_function_of_its_job(table: Table, tmp_path: Path) -> None:
    pool = _stdlib.pooled(table, rows=4)
    scores = _stdlib.teach(tmp_path, pool, 25)
    taught = _stdlib.taught(tmp_path, 25)
    assert 0 < scores["bpb"] < 8.5
    given = job("final", "kd", 2, 0, KD, 50, 2)
    first, second = (_stdlib.run(given, pool, taught) for _ in range(2))
    assert first["bpb"] == second["bpb"]
    assert [point[0] for point in first["curve"]] == [25, 50]
    assert first["queries"] == 50 * 16
    alone = _stdlib.run(job("final", "ce", 2, 0, {"lr": 4e-3}, 25, 1), pool, taught)
    assert alone["queries"] == 0
    assert alone["kl"] > 0


@pytest.mark.usefixtures("tiny")
def test_runs_of_a_seed_share_teacher_student_and_batches(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _stdlib.pooled(table, rows=4)
    seen: list[tuple[bytes, ...]] = []

    def look(engine: Any, stream: Stream, phase: Any, **_others: Any) -> Spent:
        flats = [engine.roles[role].arena.flat.numpy().tobytes() for role in ("teacher", "student")]
        seen.append((*flats, stream.make(phase["name"], 1, None)[0]["input_ids"].tobytes()))
        return Spent()

    monkeypatch.setattr(_stdlib, "train", look)
    taught = _stdlib.engine_of(9, {}, distils=False).roles["teacher"].arena.flat.clone()
    for arm, seed in (("ce", 0), ("kd", 0), ("ce", 1)):
        _stdlib.run(job("final", arm, 2, seed, KD, 25, 1), pool, taught)
    assert seen[0] == seen[1]
    assert seen[0][0] == seen[2][0]
    assert all(a != b for a, b in zip(seen[0][1:], seen[2][1:], strict=True))


def test_both_arms_are_tuned_with_as_many_trials_and_on_a_seed_of_its_own(tmp_path: Path) -> None:
    assert len({len(_stdlib.trials(arm)) for arm in _stdlib.OWN}) == 1
    assert _stdlib.TUNING_SEED not in _stdlib.FULL.seeds
    teach, tune, final = stdlib.stages(quick=False, count=0)
    journal = Journal(tmp_path / "runs.jsonl")
    jobs = tune(journal)
    assert {j["stage"] for j in jobs} == {"tune"}
    for number, given in enumerate(jobs):
        journal.append(given, {"bpb": 3.0 - 0.01 * number})
    last = {arm: [j for j in jobs if (j["arm"], j["kb"]) == (arm, 32)][-1]["settings"] for arm in _stdlib.OWN}
    runs = final(journal)
    assert all(j["settings"] == last[j["arm"]] for j in runs if j["kb"] in (32, 128))
    assert len([j for j in runs if j["stage"] == "final"]) == 5 * (4 * 2 + 1)
    assert [j["steps"] for j in runs if j["stage"] == "equal"] == [24_000]
    assert teach(journal) == [{"stage": "teach", "steps": 4000, "rows": 1024}]
    assert stdlib.stages(quick=True, count=0)[1](journal) == []


def invented(seeds: int = 5) -> list[tuple[Any, Any]]:
    """Runs with round figures, for the report's own tests: CE 3.0, KD 2.6, teacher 2.2."""
    rows: list[tuple[Any, Any]] = [
        ({"stage": "teach", "steps": 4, "rows": 2}, {"bpb": 2.2, "accuracy": 0.5, "cpu_seconds": 9.0})
    ]

    def result(bpb: float, seconds: float) -> dict[str, Any]:
        curve = [[25, seconds / 2, bpb - 0.1], [50, seconds, bpb]]
        return {
            "bpb": bpb,
            "accuracy": 0.4,
            "agreement": 0.5,
            "kl": 1.0,
            "queries": 8,
            "cpu_seconds": seconds,
            "curve": curve,
        }

    for seed in range(seeds):
        extra = 0.001 * seed
        rows.append((job("final", "ce", 32, seed, KD, 50, 2), result(3.0 + extra, 1.0)))
        rows.append((job("final", "kd", 32, seed, KD, 50, 2), result(2.6 + extra, 3.0)))
        rows.append((job("final", "ce", 0, seed, KD, 150, 2), result(2.4 + extra, 4.0)))
    return [*rows, (job("equal", "ce", 0, 0, KD, 900, 2), result(2.55, 9.0))]


META = {
    "quick": False,
    "command": "make experiment NAME=stdlib",
    "date": "2026-01-01",
    "machine": "a machine",
    "python": "3.11",
    "torch": "2",
    "code": "abc",
    **stdlib.facts(quick=False),
}


def test_the_gap_that_is_closed_is_told_both_ways() -> None:
    found = _page.short(_stdlib_report.results(invented(), META))
    (gap,) = found["gaps"]
    assert gap["last"]["mean"] == pytest.approx(0.5, abs=0.01)
    assert gap["strict"]["mean"] == pytest.approx((2.9 - 2.6) / (2.9 - 2.2), abs=0.01), (
        "CE is stopped at its best point"
    )
    assert [row["met"] for row in found["targets"]] == [False, True]
    page = _stdlib_page.render(found)
    assert "MISSED" in page
    assert "beats distillation on a subset at the same CPU time in 1 of 1 sizes" in page
    assert "quick variant" not in page


def test_an_unfinished_run_has_no_verdict_and_a_quick_one_says_what_it_is() -> None:
    rows = [(j, r) for j, r in invented() if j.get("arm") != "kd" and j["stage"] != "equal"]
    found = _page.short(_stdlib_report.results(rows, {**META, "quick": True}))
    assert [row["met"] for row in found["targets"]] == [None, None]
    page = _stdlib_page.render(found)
    assert "It is no evidence" in page
    assert "not run" in page


def test_bits_at_equal_time_are_read_off_the_curve() -> None:
    curve = [[25, 1.0, 3.0], [50, 3.0, 2.0]]
    assert _stdlib_page._at(curve, 2.0) == pytest.approx(2.5)
    assert _stdlib_page._at(curve, 4.0) is None


@pytest.mark.skipif(not DOCS.exists(), reason="no run is kept")
def test_the_report_in_the_docs_is_that_of_its_results() -> None:
    found = _page.kept(DOCS / "results.json")
    assert (DOCS / "README.md").read_text(encoding="utf-8") == _stdlib_page.render(found)


def test_a_stage_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs.jsonl")
    calls: list[str] = []

    def run(given: dict[str, Any], _folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        calls.append(given["stage"])
        return [(given, {"bpb": 3.0})]

    made = dataclasses.replace(stdlib.EXPERIMENT, run=run)
    for stage in stdlib.stages(quick=True, count=1):
        for _ in range(2):
            _run.work(made, _run.missing(stage(journal), journal), tmp_path, float("inf"))
    assert calls == ["teach", *["final"] * 5]
