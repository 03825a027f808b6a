"""Stage 4 in the learner's windows: real processes, and the same bits as the engine in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kfs.records import RecordKind
from kfs.store import Store
from nexus import run as runs
from nexus.context import Context
from nexus.stages import architect, distill, scope

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


def trained(ctx: Context, engine: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    training = ctx.app.table.training
    ctx.app.table.training = training.model_copy(update={"engine": engine})
    job = distill.Job("word", "word", 4, None, distill.cache_path(ctx, "word"), 20, 16, 1e-2)
    return distill.train(ctx, job, ctx.paths.student)


@pytest.mark.timeout(600)
def test_windows_train_an_adapter_to_the_same_bits_as_one_process(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "ModelName,Parameters,Category,BestFeature\nmini/word,1M,text,a word\n", encoding="utf-8"
    )
    table = "| capability | metric | retain | chance | items |\n|---|---|---|---|---|\n| word | exact-match | 0.9 | 0 | 400 |\n"
    (tmp_path / "c.md").write_text(table, encoding="utf-8")
    rows = [json.dumps({"prompt": f"word {n:04d} = ", "answer": "up"}) for n in range(300)]
    (tmp_path / "word.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "app.toml").write_text(APP, encoding="utf-8")
    with runs.opened(tmp_path / "run", tmp_path / "app.toml") as ctx:
        scope.scope(ctx)
        scope.registry(ctx)
        architect.architect(ctx)
        distill.synthesize(ctx, ctx.app.capability("word"))
        here, _ = trained(ctx, "in-process")
        there, figures = trained(ctx, "windows")
    assert (figures["path"], figures["windows"]) == ("windows", 2)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert any(float(value.abs().max()) > 0 for name, value in there.items() if name.endswith("up"))
    with Store.open_reader(tmp_path / "run" / "windows" / "word" / "store") as store:
        commit = [r for r in store.records() if r.kind is RecordKind.WINDOW_COMMIT][-1]
        leaves = store.snapshot(str(commit.result_snap))
    assert not [path for path in leaves if path.startswith("teacher/")]  # no snapshot holds a teacher
    assert not [path for path in leaves if path.startswith("student/") and "embed" in path]  # nor the frozen backbone
