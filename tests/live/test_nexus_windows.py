"""Stage 4 in the learner's windows: real processes, and the same bits as the engine in one process."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from kfs.records import RecordKind
from kfs.store import Store
from nexus import run as runs
from nexus.context import Context
from nexus.stages import architect, distill, jobs, profile, scope
from nexus.stages.guard import Guard

APP = """
[app]
name = "windows"
teachers = "t.csv"
contracts = "c.md"
[student]
width = 32
layers = 2
heads = 2
context = 32
[training]
steps = 20
window = 10
batch = 16
lr = 1e-2
[[teacher]]
id = "word"
model-name = "mini/word"
licence = "made here"
make = { width = 32, layers = 1, heads = 2, steps = 20, batch = 16, lr = 1e-2 }
[[capability]]
name = "word"
teacher = "word"
data = { kind = "jsonl", path = "word.jsonl", train = 200, validation = 20, test = 20 }
"""


STEPS = 200
MORE = """
anchor = "pca"
eval-every = 2
policy = { pack = "starter" }
[profiling]
items = 20
pilot-items = 10
key-layers = 1
[[teacher]]
"""
ANCHORED = APP.replace("\n[[teacher]]\n", MORE).replace("window = 10", "window = 5")


def write_files(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "ModelName,Parameters,Category,BestFeature\nmini/word,1M,text,a word\n", encoding="utf-8"
    )
    table = "| capability | metric | retain | chance | items |\n|---|---|---|---|---|\n| word | exact-match | 0.9 | 0 | 400 |\n"
    (tmp_path / "c.md").write_text(table, encoding="utf-8")
    rows = [json.dumps({"prompt": f"word {n:04d} = ", "answer": "up"}) for n in range(300)]
    (tmp_path / "word.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def trained(ctx: Context, engine: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    training = ctx.app.table.training
    ctx.app.table.training = training.model_copy(update={"engine": engine})
    job = jobs.Job("word", "word", 4, None, distill.cache_path(ctx, "word"), 20, 16, 1e-2)
    return jobs.train(ctx, job, ctx.paths.student)


@pytest.mark.timeout(600)
def test_windows_train_an_adapter_to_the_same_bits_as_one_process(tmp_path: Path) -> None:
    """Under a policy that changes nothing, with both anchors."""
    write_files(tmp_path)
    text = ANCHORED.replace('policy = { pack = "starter" }', "").replace(
        "steps = 20\nwindow = 5", "steps = 20\nwindow = 10"
    )
    (tmp_path / "app.toml").write_text(text, encoding="utf-8")
    with runs.opened(tmp_path / "run", tmp_path / "app.toml") as ctx:
        scope.scope(ctx)
        scope.registry(ctx)
        profile.profile(ctx)
        architect.architect(ctx)
        distill.synthesize(ctx, ctx.app.capability("word"))
        here, alone = trained(ctx, "in-process")
        there, figures = trained(ctx, "windows")
    assert (figures["path"], figures["windows"]) == ("windows", 2)
    assert alone["anchor"] == figures["anchor"]
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert any(float(value.abs().max()) > 0 for name, value in there.items() if name.endswith("up"))
    with Store.open_reader(tmp_path / "run" / "windows" / "word" / "store") as store:
        commit = [r for r in store.records() if r.kind is RecordKind.WINDOW_COMMIT][-1]
        leaves = store.snapshot(str(commit.result_snap))
    assert not [path for path in leaves if path.startswith("teacher/")]  # no snapshot holds a teacher
    assert not [path for path in leaves if path.startswith("student/") and "embed" in path]  # nor the frozen backbone


@pytest.mark.timeout(600)
def test_the_runtime_pauses_goes_back_and_pulls_harder_under_a_policy_of_the_observer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch is shown an error that rises once; what the runtime then does is real, and each act is a record."""
    write_files(tmp_path)
    (tmp_path / "app.toml").write_text(ANCHORED, encoding="utf-8")
    real = Guard.committed

    def risen(self: Guard, window: int, error: float, root: str) -> None:
        assert error > 0.0
        real(self, window, 10.0 if window == 4 and self.alpha < 10.0 else 1.0, root)

    monkeypatch.setattr(Guard, "committed", risen)
    with runs.opened(tmp_path / "run", tmp_path / "app.toml") as ctx:
        scope.scope(ctx)
        scope.registry(ctx)
        profile.profile(ctx)
        architect.architect(ctx)
        distill.synthesize(ctx, ctx.app.capability("word"))
        job = jobs.Job("word", "word", 8, None, distill.cache_path(ctx, "word"), STEPS, 16, 1e-2)
        tensors, figures = jobs.train(ctx, job, ctx.paths.student)
        assert (ctx.cap("word").edges[-1], ctx.cap("word").alpha) == ("4->4", 10.0)
    assert tensors
    assert (figures["path"], figures["windows"]) == ("windows", STEPS // 5)
    assert (figures["anchor"]["escalations"], figures["anchor"]["alpha"]) == (1, 10.0)
    assert figures["policy"]["pack"] == "starter"
    assert figures["policy"]["decisions"] >= 1
    with Store.open_reader(tmp_path / "run" / "windows" / "word" / "store") as store:
        rows = list(store.records())
        commits = {r.args["window"]: r for r in rows if r.kind is RecordKind.WINDOW_COMMIT}
        by = {kind: [r for r in rows if r.kind is kind] for kind in RecordKind}
        (paused, resumed) = [r for r in by[RecordKind.INTERRUPT] if r.args["kind"] in ("pause", "resume")]
        (named,) = by[RecordKind.SNAPSHOT]
        (raised,) = by[RecordKind.KD_SET]
        (restored,) = by[RecordKind.RESTORE]
        assert paused.seq < named.seq < raised.seq < restored.seq < resumed.seq
        assert "more than 10 % above its best" in paused.args["reason"]
        assert raised.args["alpha"] == 10.0
        assert restored.args["snapshot"] == commits[3].result_snap
        # alpha as the learner had it at each window's end: annealed, and twice as high after the way back
        for window, commit in commits.items():
            left = 0.1 + 0.9 * (1 + math.cos(math.pi * 5 * window / STEPS)) / 2
            base = 10.0 if commit.seq > restored.seq else 5.0
            assert commit.args["metrics"]["alpha"] == pytest.approx(base * left)
        assert {r.args["pack"] for r in by[RecordKind.POLICY] if r.args["settings"]} == {"starter"}
        scores = [r for r in by[RecordKind.EVALUATE] if r.args["split"] == "validation"]
        assert scores
