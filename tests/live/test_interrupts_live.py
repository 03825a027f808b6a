"""New data, a constraint and another objective on a live run, from the command line; replayed, and explained from the ledger alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_lifecycle import short_manifest, status_when

import recuros
from console.explain_policy import lines, story
from console.main import run as recuros_command
from kfs.records import Record, RecordKind
from kfs.store import Store
from syscalls import limits
from syscalls.errors import RecurosError


def command(run: Path, *words: str) -> int:
    return recuros_command(["--run", str(run), *words])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A finished run that was interrupted in each way, and the exit statuses of the commands."""
    base = tmp_path_factory.mktemp("interrupts")
    rows = [{"x": [[(i + j + k) % 5 / 5 for j in range(8)] for k in range(8)], "label": i % 10} for i in range(12)]
    # More than a message takes: it goes through a page.
    (base / "new.jsonl").write_text("\n".join(json.dumps(row) + " " * 80_000 for row in rows))
    assert (base / "new.jsonl").stat().st_size > limits.INTERRUPT_BYTES_MAX
    (base / "bad.jsonl").write_text(json.dumps(rows[0]) + '\n{"x": [1], "label": 0}\n')
    run = base / "run"
    statuses = []
    with recuros.boot(config=short_manifest(base / "m.toml"), run=run) as runtime:
        status_when(runtime, lambda s: s["windows"]["committed"] >= 4, "distillation has begun")
        for words in (
            ("data", str(base / "new.jsonl"), "--reason", "labels of Monday"),
            ("data", str(base / "bad.jsonl")),
            ("constraint", "--forbid", "3,4,5", "--weight", "0.5"),
            ("constraint", "--implies", "7=1,7", "--weight", "0.5"),
            ("objective", "--set", "mix=0.75", "--set", "cka=0.1"),
            ("objective", "--set", "mix=7"),
        ):
            statuses.append(command(run, "learner", "interrupt", *words))
        assert runtime.client.page_list()["pages"] == [], "the kernel took the page over, and gave it up"
        nothing = runtime.client.offer(b"x")
        with pytest.raises(RecurosError, match="a page holds new data, all of it"):
            runtime.client.rl_interrupt(kind="objective", body={"mix": 0.5}, page=nothing)
        with pytest.raises(RecurosError, match=r"empty\.csv"):
            runtime.client.rl_interrupt(kind="data", body={"name": "empty.csv"}, page=nothing)
        with pytest.raises(RecurosError, match="slot"):
            runtime.client.rl_interrupt(kind="data", body={"name": "again.csv"}, page=nothing)
        status_when(runtime, lambda s: s["state"] == "done", "done")
    return run, statuses


def records(run: Path) -> list[Record]:
    with Store.open_reader(run / "store") as store:
        return list(store.records())


def test_what_the_policy_takes_happens_and_what_it_does_not_take_is_a_record(
    interrupted: tuple[Path, list[int]],
) -> None:
    run, statuses = interrupted
    assert statuses == [0, 2, 1, 0, 0, 2]
    log = records(run)
    verdicts = [(r.args["kind"], r.args["verdict"]) for r in log if r.kind is RecordKind.INTERRUPT]
    assert verdicts == [
        ("data", "asked"), ("data", "accepted"),
        ("data", "asked"), ("data", "refused"),
        ("constraint", "asked"), ("constraint", "rejected"),
        ("constraint", "asked"), ("constraint", "accepted"),
        ("objective", "asked"), ("objective", "accepted"),
        ("data", "asked"), ("data", "refused"),
    ]  # fmt: skip
    asked = next(r for r in log if r.kind is RecordKind.INTERRUPT)
    assert asked.args["reason"] == "labels of Monday"
    refused = [r for r in log if r.kind is RecordKind.INTERRUPT and r.args["verdict"] == "refused"]
    assert "bad.jsonl:2" in refused[0].args["reason"]
    last = [r for r in log if r.kind is RecordKind.WINDOW_COMMIT][-1]
    assert last.args["inputs"]["gate"]["extra"][0][3] == 1012
    assert last.args["metrics"]["term.semantic"] > 0
    assert last.args["metrics"]["mix"] == 0.75


def test_every_window_and_decision_replays_bit_for_bit(
    interrupted: tuple[Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = interrupted
    assert command(run, "--json", "replay", "w1..") == 0, capsys.readouterr().out[-2000:]
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "equal"
    assert len(found["windows"]) == 11


def test_a_policy_is_explained_from_the_ledger_alone(
    interrupted: tuple[Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = interrupted
    with Store.open_reader(run / "store") as store:
        policies = [r for r in store.records() if r.kind is RecordKind.POLICY]
        made = [r for r in policies if r.args["settings"]]
        first = story(store, made[0].seq)
        nothing = story(store, next(r.seq for r in policies if not r.args["settings"]))
    assert first["evidence"]["stored"]
    figures = {row["figure"]: row for row in first["evidence"]["figures"]}
    assert {"kl", "ece", "disagreement", "entropy_teacher"} <= figures.keys()
    assert figures["kl"]["value"] == made[0].args["settings"]["evidence"]["kl"]
    assert first["rule"]["numbers"]["temperature_step"] == pytest.approx(0.1)
    weights = first["decision"]["weights"]
    assert weights["object"] == made[0].args["settings"]["weights"]
    assert 0 < weights["left_out"] < weights["samples"]
    assert first["effect"]["windows"] == [made[0].args["applies_at"]]
    assert first["effect"]["after"][0]["window"] == made[0].args["applies_at"]
    assert [text.partition(":")[0] for _, text in lines(first) if not text.startswith(" ")] == [
        "evidence", "rule", "decision", "effect",
    ]  # fmt: skip
    assert not nothing["decision"]["changes"]
    assert command(run, "explain", f"policy/{made[0].args['window']}") == 0
    assert "decision: " in capsys.readouterr().out
