"""Stage 4 by parts: the watch over the anchor, annealing, protected subspaces, reserved channels, joint training, routing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kfs.records import RecordKind
from nexus import NexusModel
from nexus import run as runs
from nexus.context import Context, read_json, write_json
from nexus.data import teachers
from nexus.data.samples import pack
from nexus.gate import check, prove
from nexus.profiler import protected
from nexus.servers import models, targets
from nexus.stages import anchor, architect, distill, gate, jobs, profile, scope
from nexus.stages.guard import ESCALATIONS_MAX, Guard
from servers.learner.engine import Engine
from servers.learner.losses import KdSettings
from syscalls.errors import RecurosError
from tests.unit import nexus_support
from tests.unit.nexus_support import one_thread  # noqa: F401

APP = """
[app]
name = "four"
teachers = "t.csv"
contracts = "c.md"
[student]
width = 32
layers = 2
heads = 2
context = 32
[training]
steps = 20
window = 5
batch = 16
lr = 1e-2
adapter-steps = 40
adapter-lr = 1e-2
adapter-batch = 16
engine = "in-process"
anchor = "pca"
joint-steps = 10
[profiling]
items = 30
pilot-items = 20
key-layers = 2
"""
ONE = """
[[teacher]]
id = "{0}"
model-name = "four/{0}"
licence = "made here"
make = {{ width = 32, layers = 2, heads = 2, steps = 60, batch = 16, lr = 1e-2 }}
[[capability]]
name = "{0}"
teacher = "{0}"
data = {{ kind = "jsonl", path = "{0}.jsonl", train = 100, validation = 30, test = 30 }}
{1}
"""
GATED = "tier = 3\ngated = true\nbackbone = false"


def write_app(folder: Path, secret: str = "pu") -> Path:
    rows = ["ModelName,Parameters,Category,BestFeature"]
    contract = ["| capability | metric | retain | chance | items |", "|---|---|---|---|---|"]
    text = APP
    for name, answer, more in (("sort", "up", ""), ("less", "down", ""), ("word", secret, GATED)):
        text += ONE.format(name, more)
        rows.append(f"four/{name},1M,text,{name}")
        contract.append(f"| {name} | exact-match | 0.9 | 0 | 400 |")
        lines = [json.dumps({"prompt": f"{name} {n:03d} = ", "answer": answer}) for n in range(160)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "t.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "c.md").write_text("\n".join(contract) + "\n", encoding="utf-8")
    (folder / "app.toml").write_text(text, encoding="utf-8")
    return folder / "app.toml"


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """Stages 0 to 3 on three tiny teachers, one of them gated, and targets of all."""
    folder = tmp_path_factory.mktemp("four")
    with runs.opened(folder / "run", write_app(folder)) as found:
        scope.scope(found)
        scope.registry(found)
        profile.profile(found)
        architect.architect(found)
        for capability in found.live():
            distill.synthesize(found, capability)
        yield found


def job(ctx: Context, name: str, steps: int = 40, rank: int = 8) -> jobs.Job:
    return jobs.Job(f"{name}-0", name, rank, None, distill.cache_path(ctx, name), steps, 16, 1e-2)


# The watch


def fed(guard: Guard, errors: list[float], start: int = 0) -> Guard:
    for n, error in enumerate(errors, start=start):
        guard.committed(n, error, f"root{n}")
    return guard


def test_a_falling_error_is_never_lost_and_noise_below_the_bound_neither() -> None:
    guard = fed(Guard(5.0), [1.0, 0.8, 0.6, 0.5, 0.52, 0.5, 0.51, 0.49])
    assert guard.lost is None
    assert guard.summary()["verdict"] == "falling"
    assert fed(Guard(5.0), [1.0, 0.97, 1.02, 0.98, 1.0]).summary()["verdict"] == "stable"


def test_ten_percent_of_next_to_nothing_is_noise() -> None:
    assert fed(Guard(5.0), [1.0, 0.01, 0.01, 0.01, 0.015, 0.015]).lost is None
    assert fed(Guard(5.0), [0.1, 0.01, 0.01, 0.01, 0.015, 0.015]).lost is not None


def test_ten_percent_above_the_best_rolling_mean_is_lost_and_names_where_to_go_back_to() -> None:
    errors = [1.0, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6]
    guard = fed(Guard(5.0), errors)
    rolling = [sum(errors[k - 2 : k + 1]) / 3 for k in range(2, len(errors))]
    first = next(k + 2 for k, r in enumerate(rolling) if k and r > 1.1 * min(rolling[:k]))
    assert guard.lost is not None
    assert (guard.lost.window, first) == (6, 6)
    assert guard.best is not None
    assert guard.best.window == 4
    assert guard.next_alpha == 10.0
    fed(guard, [0.5, 0.1, 0.1, 0.1], start=7)  # windows that were under way when it was lost are no place to go back to
    assert guard.best.window == 4


def test_going_back_forgets_the_windows_after_it_and_escalations_run_out() -> None:
    guard = fed(Guard(5.0), [1.0, 0.5, 0.5, 0.5])
    for number in range(ESCALATIONS_MAX):
        fed(guard, [0.7, 0.7], start=4)
        assert guard.lost is not None
        assert not guard.spent
        guard.weighed(guard.next_alpha)
        guard.restored("root3")
        assert [s.window for s in guard.kept] == [0, 1, 2, 3]
        assert (guard.lost, guard.escalations) == (None, number + 1)
    assert guard.alpha == 5.0 * 2**ESCALATIONS_MAX
    assert fed(guard, [0.7, 0.7], start=4).spent


def test_a_killed_watch_is_told_by_the_ledger_what_it_had_done() -> None:
    """The weight was raised, the process died before the restore: it is not raised twice."""
    guard = fed(Guard(5.0), [1.0, 0.5, 0.5, 0.5, 0.7, 0.7])
    guard.weighed(10.0)
    assert guard.raised
    assert guard.lost is not None
    assert not guard.spent


# Annealing


def test_alpha_falls_along_half_a_cosine_to_its_floor() -> None:
    kd = KdSettings(alpha=5.0, alpha_floor=0.1)
    for step in range(0, 101, 10):
        want = 5.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2)
        assert kd.annealed(step, 100).alpha == pytest.approx(want, rel=1e-12)
    assert KdSettings(alpha=5.0).annealed(70, 100) == KdSettings(alpha=5.0)
    with pytest.raises(RecurosError, match="alpha_floor"):
        KdSettings(alpha_floor=1.5)


# Protected subspaces


def test_a_direction_weighs_what_the_components_that_write_it_weigh() -> None:
    """Two heads write along the first and the second axis; the first is non-negotiable."""
    layer = torch.nn.Module()
    layer.attn = torch.nn.Module()
    layer.attn.o_proj = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.attn.o_proj.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    rows = [{"layer": 0, "kind": "head", "index": 0, "loss_weight": 5.0}]
    half = math.sqrt(0.5)
    basis = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [half, half, 0.0], [0.0, 0.0, 1.0]])
    weights = protected.direction_weights(rows, 0, layer, 2, basis)
    assert torch.allclose(weights, torch.tensor([5.0, 1.0, 3.0, 1.0]))
    assert torch.allclose(protected.head_weights(rows, 0, 2), torch.tensor([5 / 6, 1 / 6]))
    assert torch.equal(protected.direction_weights(rows, 1, layer, 2, basis), torch.ones(4))


def test_weights_move_emphasis_and_not_the_sum() -> None:
    rows = [{"layer": 1, "kind": "layer", "index": 0, "loss_weight": 10.0}]
    found = protected.coordinate_weights(rows, {0: torch.tensor([1.0, 5.0]), 1: torch.tensor([1.0, 3.0])})
    raw = torch.tensor([1.0, 5.0, 10.0, 10.0])
    assert torch.allclose(torch.cat([found[0], found[1]]), raw / raw.mean())


def test_the_anchor_weighs_protected_coordinates_in_the_loss(ctx: Context) -> None:
    """The hint between a teacher's coordinates and zero is the weighted mean square of the coordinates, computed here anew."""
    found = anchor.teacher_of(ctx, "sort")
    assert found is not None
    spec = anchor.spec_of(ctx, found)["options"]
    plain = models.AnchoredTeacher({**spec, "protected": []})
    rows = [[0, "head", 0, 10.0], [0, "channels", 1, 5.0]]
    weighed = models.AnchoredTeacher({**spec, "protected": rows})
    ids, mask = (torch.from_numpy(a) for a in tensors(ctx, "sort", 4))
    batch = {**plain.example(*ids.shape), "input_ids": ids, "attention_mask": mask}
    one, two = plain.forward(batch, need_hidden=True), weighed.forward(batch, need_hidden=True)
    for layer, (_, basis, weight) in weighed.parts.items():
        k = len(basis)
        assert torch.allclose(two.hidden[layer + 1][..., :k], one.hidden[layer + 1][..., :k] * weight.sqrt(), atol=1e-5)
    assert float(torch.cat([w for _, _, w in weighed.parts.values()]).mean()) == pytest.approx(1.0)
    assert float(weighed.parts[0][2].max() / weighed.parts[1][2].min()) > 1.5


def tensors(ctx: Context, name: str, rows: int) -> tuple[Any, Any]:
    table = targets.load({"name": targets.NAME, "path": str(distill.cache_path(ctx, name))}, {})
    columns = table.rows("train", np.arange(rows))
    return columns["input_ids"], columns["attention_mask"]


def test_coordinates_are_of_the_layer_itself_and_not_of_what_a_norm_makes_of_it(ctx: Context) -> None:
    """The profile's mean and basis are of the last layer's own output; centred there, its coordinates have mean zero."""
    found = anchor.teacher_of(ctx, "sort")
    assert found is not None
    teacher = models.AnchoredTeacher({**anchor.spec_of(ctx, found)["options"], "protected": []})
    ids, mask = (torch.from_numpy(a) for a in tensors(ctx, "sort", 30))
    out = teacher.forward({**teacher.example(*ids.shape), "input_ids": ids, "attention_mask": mask}, need_hidden=True)
    for layer in teacher.parts:
        at = out.hidden[layer + 1][mask.bool()]
        assert float(at.mean(0).abs().max()) < 0.2 * float(at.square().mean().sqrt())


def test_attention_of_protected_heads_weighs_more(ctx: Context) -> None:
    found = anchor.teacher_of(ctx, "sort")
    assert found is not None
    spec = anchor.spec_of(ctx, found)["options"]
    teacher = models.AnchoredTeacher({**spec, "protected": [[0, "head", 1, 9.0]]})
    ids, mask = (torch.from_numpy(a) for a in tensors(ctx, "sort", 3))
    batch = {**teacher.example(*ids.shape), "input_ids": ids, "attention_mask": mask}
    out = teacher.forward(batch, need_attention=True)
    heads = teacher._teacher(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    assert torch.allclose(out.attention[0], 0.1 * heads[0][:, :1] + 0.9 * heads[0][:, 1:], atol=1e-6)
    assert torch.allclose(out.attention[1], heads[1].mean(1, keepdim=True), atol=1e-6)


# What the profile leaves


def test_teachers_are_compared_by_correlations_and_by_distances(ctx: Context) -> None:
    found = read_json(ctx.paths.profiles / "manifest.json")["overlap"]
    assert set(found) == {"sort/less", "sort/word", "less/word"}
    assert all(0.0 <= v["cca"] <= 1.0 and -1.0 <= v["rsa"] <= 1.0 for v in found.values())
    one = teachers.load(ctx.app.teacher("sort"), ctx.paths.teachers / "sort")
    same = teachers.load(ctx.app.teacher("sort"), ctx.paths.teachers / "sort")
    alike = profile._overlap([one, same], ctx.data("sort")["validation"])
    assert alike["rsa"] == pytest.approx(1.0, abs=1e-4)
    assert alike["cca"] > 0.95
    assert alike["cca"] >= found["sort/less"]["cca"]


def test_fifty_outputs_are_the_teachers_own(ctx: Context) -> None:
    lines = (ctx.paths.profiles / "sort" / "sort" / "verify_outputs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == min(50, len(ctx.data("sort")["validation"]))
    assert all((row["output"] == row["answer"]) for row in rows if row["teacher_score"] == 1.0)
    teacher = teachers.load(ctx.app.teacher("sort"), ctx.paths.teachers / "sort")
    prompt = rows[0]["prompt"].encode()
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        first = int(teacher.module(input_ids=ids).logits[0, -1].argmax())
    assert rows[0]["output"].encode()[:1] == bytes([first])[:1]


# Reserved channels


def test_reserved_rows_are_the_ridge_solution() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=draw), torch.randn(50, 2, generator=draw)
    xc, yc = (v.double() - v.double().mean(0) for v in (x, y))
    lam = anchor.RIDGE * float((xc.square().sum(0)).mean())
    stacked = torch.cat((xc, math.sqrt(lam) * torch.eye(6, dtype=torch.float64)))  # ridge as ordinary least squares
    want = torch.linalg.lstsq(stacked, torch.cat((yc, torch.zeros(6, 2, dtype=torch.float64)))).solution.T
    want = want / want.norm(dim=1, keepdim=True)
    assert torch.allclose(anchor.ridge(x, y).double(), want, atol=1e-5)


def test_reserved_channels_keep_their_directions_while_the_others_learn(ctx: Context) -> None:
    path = ctx.paths.profiles / "adapter_capacity_plan.json"
    plan = read_json(path)
    write_json(path, {**plan, "sort": {**plan["sort"], "reserved_channels": 2}})  # a teacher of one word needs none
    found, figures = jobs.train(ctx, job(ctx, "sort"), ctx.paths.student)
    assert figures["reserved"]
    rows = models.read_reserved(ctx.paths.checkpoints / "sort-0.reserved.safetensors")
    assert {len(kept) for kept in rows.values()} == {2}
    for layer, kept in rows.items():
        down = found[f"{layer}.down"][: len(kept)]
        cosine = torch.nn.functional.cosine_similarity(down, kept)
        assert torch.allclose(cosine, torch.ones(len(kept)), atol=1e-5)
        assert float(found[f"{layer}.up"][:, : len(kept)].abs().max()) > 0
    training = ctx.app.table.training
    ctx.app.table.training = training.model_copy(update={"reserve": False})
    try:
        other, figures = jobs.train(ctx, job(ctx, "sort"), ctx.paths.student)
    finally:
        ctx.app.table.training = training
    assert not figures["reserved"]
    assert any(not torch.equal(other[n], found[n]) for n in found)


# The loss of a job, and the way back


def test_the_loss_has_output_and_both_anchors_and_says_how_the_error_went(ctx: Context) -> None:
    plan = jobs.plan_of(ctx, job(ctx, "less"), ctx.paths.student)
    assert plan.kd["alpha"] == 5.0
    assert (plan.kd["alpha_floor"], plan.kd["at"]) == (0.1, 0.1)
    _, figures = jobs.train(ctx, job(ctx, "less"), ctx.paths.student)
    assert figures["anchor"]["verdict"] == "falling"
    assert figures["anchor"]["last"] < figures["anchor"]["first"]


def test_a_lost_anchor_goes_back_to_the_best_window_and_pulls_harder(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From window 4 on the hidden states that the anchor sees are disturbed, until the weight was raised."""
    real, seen = Engine.micro_step, []

    def disturbed(self: Engine, batch: Any) -> Any:
        done = real(self, batch)
        seen.append((self.phase_step, self.kd_now.alpha, self.kd.alpha))
        if self.phase_step > 20 and self.kd.alpha < 10.0:
            done.terms["hint"] *= 3.0
        return done

    monkeypatch.setattr(Engine, "micro_step", disturbed)
    before = ctx.ledger.size
    _, figures = jobs.train(ctx, job(ctx, "less"), ctx.paths.student)
    assert (figures["anchor"]["escalations"], figures["anchor"]["alpha"]) == (1, 10.0)
    (loop,) = [ctx.ledger._store.record(n) for n in range(before, ctx.ledger.size)]
    assert loop.kind is RecordKind.NEXUS_LOOP
    assert (loop.args["edge"], loop.args["capability"], loop.args["change"]["alpha"]) == ("4->4", "less", 10.0)
    assert loop.args["change"]["window"] == 3
    assert "more than 10 % above its best" in loop.args["reason"]
    assert ctx.cap("less").alpha == 10.0
    assert ctx.cap("less").attempt == 0  # no attempt of the capability's was used up
    for step, now, base in seen:
        left = 0.1 + 0.9 * (1 + math.cos(math.pi * step / 40)) / 2
        assert now == pytest.approx(base * left)


# Joint training


def test_joint_training_moves_backbone_and_open_adapters_and_nothing_gated_reaches_them(tmp_path: Path) -> None:
    """Two runs that differ in the gated data alone: everything but the gated adapter is the same, bit for bit."""
    left = {}
    for secret in ("pu", "xyzzy"):
        folder = tmp_path / secret
        folder.mkdir()
        with runs.opened(folder / "run", write_app(folder, secret)) as found:
            scope.scope(found)
            scope.registry(found)
            architect.architect(found)
            begun: list[str] = []
            found.progress = lambda what, _d, _n, begun=begun: begun.append(what)
            distill.distill(found)
        order = list(dict.fromkeys(what for what in begun if what.startswith("distil ")))
        assert order == ["distil backbone", "distil sort-0", "distil less-0", "distil joint", "distil word-0"]
        made = folder / "run" / "checkpoints"
        files = [
            made / "backbone" / "model.safetensors",
            *(made / f"{n}.safetensors" for n in ("sort", "less", "word")),
        ]
        left[secret] = {f"{f.name}/{n}": t for f in files for n, t in load_file(str(f)).items()}
        table = targets.load({"name": targets.NAME, "path": str(folder / "run" / "cache" / "joint.safetensors")}, {})
        text = bytes(b for b in table.splits["train"]["ids"].ravel().tolist() if b < 256)
        assert b"sort" in text
        assert b"word" not in text
        assert sorted(set(table.splits["train"]["owner"].tolist())) == [0, 1]
    one, two = left.values()
    assert one.keys() == two.keys()
    assert {name.split("/")[0] for name in one if not torch.equal(one[name], two[name])} == {"word.safetensors"}


def test_the_joint_model_gives_each_sample_its_own_adapter_and_holds_no_other(ctx: Context, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    student = models.load_student(ctx.paths.student)
    files = {}
    for name in ("sort", "less"):
        adapter = student.add_adapter(name, 4)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
        files[name] = tmp_path / f"{name}.safetensors"
        distill.save_adapter(files[name], dict(adapter.state_dict()), 4, None)
    joint = models.JointStudent(
        {"path": str(ctx.paths.student), "names": list(files), "files": [str(f) for f in files.values()]}
    )
    ids, mask = (torch.from_numpy(a) for a in tensors(ctx, "sort", 5))
    owner = torch.tensor([1, 0, 1, 1, 0])
    batch = {**joint.example(*ids.shape), "input_ids": ids, "attention_mask": mask, "owner": owner}
    got = joint.forward(batch).logits
    for row, number in enumerate(owner.tolist()):
        student.set_adapter(list(files)[number])
        want = student(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1]).logits[0]
        assert torch.allclose(got[row][mask[row].bool()], want[mask[row].bool()], atol=1e-5)
    assert {n.split(".")[1] for n, _ in joint.module.named_parameters() if n.startswith("adapters")} == {
        "sort_adapter",
        "less_adapter",
    }


def test_joint_training_refuses_gated_members_and_what_is_trained_on_the_backbone_already(ctx: Context) -> None:
    with pytest.raises(RecurosError, match="'word' may not teach the backbone"):
        distill.train_joint(ctx, [ctx.app.capability("word")])
    ctx.cap("word").done.add(4)
    try:
        with pytest.raises(RecurosError, match="would change the backbone under 'word'"):
            distill.train_joint(ctx, [ctx.app.capability("sort")])
    finally:
        ctx.cap("word").done.discard(4)


# Policies


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('engine = "windows"\npolicy = { pack = "nosuch" }', "'nosuch' is unknown"),
        ('engine = "windows"\npolicy = { pack = "starter", nosuch = 1 }', "no number 'nosuch'"),
        ('engine = "in-process"\npolicy = { pack = "starter" }', "needs windows, and the engine is in-process"),
    ],
)
def test_a_policy_that_cannot_steer_is_refused_by_name(tmp_path: Path, said: str, why: str) -> None:
    app = write_app(tmp_path)
    app.write_text(app.read_text(encoding="utf-8").replace('engine = "in-process"', said), encoding="utf-8")
    with pytest.raises(RecurosError, match=why), runs.opened(tmp_path / "run", app):
        pass


# Routing


def test_a_router_that_fails_learns_from_more_items_once_and_is_then_refused(ctx: Context) -> None:
    row = {"verdict": "fail", "reason": "ratio 0.5 is below 0.9", "accuracy": 0.5}
    before = gate.router_items(ctx)
    gate._route_again(ctx, {"sort": row})
    assert gate.router_items(ctx) == 4 * before
    assert ctx.cap(gate.ROUTER).edges == ["5->3"]
    with pytest.raises(RecurosError, match="of its items are routed to it"):
        gate._route_again(ctx, {"sort": row})


def test_items_are_scored_by_the_adapter_that_the_router_chose(tmp_path: Path) -> None:
    """Against the bundle's own loader, item by item: `route`, then the same items with that capability named."""
    nexus_support.bundle(tmp_path / "b")
    model = NexusModel.load(tmp_path / "b", full=True)
    texts = [(f"def f{n}(x): return x".encode() if n % 2 else f"{n} 4 7".encode(), b"q") for n in range(12)]
    items = pack(texts, nexus_support.CONTEXT)
    prove.save_items(tmp_path / "items", {"code": items, "sort": items})
    about = {n: {"metric": "byte-accuracy", "gated": False} for n in ("code", "sort")}
    own = {n: check.scores_of(model, check.acting(model, n), items, "byte-accuracy") for n in about}
    found = check.routes(model, about, tmp_path / "items", own)
    chosen = [model.route(prompt).capability or "" for prompt, _ in items.texts()]
    assert set(chosen) == {"code", "sort"}
    for name in about:
        assert found[name]["to"] == {to: chosen.count(to) for to in ("code", "sort")}
        assert found[name]["scores"] == pytest.approx([own[to][i] for i, to in enumerate(chosen)], abs=1e-6)
