"""The asynchronous helpers: published packages, scikit-learn, or brute force against the figures that land in the maps."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.cross_decomposition import CCA
from sklearn.neighbors import NearestNeighbors
from torch import nn

from probes import library
from probes.helpers import cca, examine, outliers, squares
from probes.helpers.subject import Subject, examining
from probes.helpers.worker import Worker, new_queue
from probes.hooks import Dispatcher
from probes.program import Context
from probes.vm import Firing
from tests.oracles import inputs

PINNED = json.loads((Path(__file__).parents[1] / "golden" / "probe_oracles.json").read_text())


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def fire(program, hook, site=None, step=0, **tensors):
    with torch.no_grad():
        program.fire(Context(hook, site or hook, step, tensors))
    return program.summary()


# Against published packages


def test_ece_agrees_with_netcal():
    logits, labels = inputs.calibration()
    given = {"student_logits": torch.tensor(logits), "labels": torch.tensor(labels)}
    found = fire(library.build("builtin:ece"), "on_kd_step", **given)
    assert found["ece"] == pytest.approx(PINNED["ece"], rel=1e-6)


def test_cka_agrees_with_torch_cka():
    program = library.build("builtin:cka")
    for x, y in inputs.representations():
        found = fire(program, "on_kd_step", hidden=[("0:0", torch.tensor(x), torch.tensor(y))])
    # It does not centre the features first, which its float32 pays for.
    assert found["cka"] == pytest.approx(PINNED["cka"], rel=1e-4)


def test_fisher_agrees_with_backpack():
    weights, x, y = inputs.network()
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    for parameter, values in zip(model.parameters(), weights, strict=True):
        parameter.data = torch.tensor(values)
    subject = Subject(
        {"student": model}, lambda _, b: (model(b["x"]), b["y"]), {"x": torch.tensor(x), "y": torch.tensor(y)}, quiet
    )
    found = fire(library.build("builtin:fisher", subject=lambda: subject), "on_snapshot")
    assert found["trace"] == pytest.approx(PINNED["fisher"]["trace"], rel=1e-5)
    assert found["max"] == pytest.approx(PINNED["fisher"]["max"], rel=1e-5)
    assert (found["samples"], found["parameters"]) == (10, 6 * 9 + 9 + 9 * 4 + 4)


# CCA


def test_svcca_without_a_cut_is_the_mean_of_scikit_learns_correlations():
    x, y = normal(1, 300, 4), normal(2, 300, 6)
    y[:, :3] += 2 * x[:, :3]
    model = CCA(n_components=4, max_iter=20_000, tol=1e-12).fit(x, y)
    a, b = model.transform(x, y)
    expected = np.mean([abs(np.corrcoef(a[:, i], b[:, i])[0, 1]) for i in range(4)])
    assert cca.compare(torch.tensor(x), torch.tensor(y), weighted=False) == pytest.approx(expected, rel=1e-6)


def pwcca_by_definition(x, y):
    """Morcos et al. 2018, equation 3, by QR and SVD."""
    x, y = x - x.mean(0), y - y.mean(0)
    (qx, _), (qy, _) = np.linalg.qr(x), np.linalg.qr(y)
    u, rho, _ = np.linalg.svd(qx.T @ qy)
    variates = (qx @ u)[:, : len(rho)]
    alpha = np.abs(variates.T @ x).sum(1)
    return float((alpha * rho).sum() / alpha.sum())


@pytest.mark.parametrize(("d", "e"), [(8, 8), (6, 20), (20, 6)])
def test_pwcca_agrees_with_its_definition(d, e):
    # Correlations that differ: variates of equal ones are not unique, and neither are their weights.
    x, y, k = normal(1, 400, d) * np.linspace(0.1, 3, d), normal(2, 400, e), min(d, e)
    y[:, :k] += x[:, :k] * np.linspace(0.2, 4, k)
    found = cca.compare(torch.tensor(x), torch.tensor(y), weighted=True)
    assert found == pytest.approx(pwcca_by_definition(x, y), rel=1e-8)


def test_svcca_keeps_as_few_directions_as_hold_99_percent_of_the_variance():
    x = normal(1, 500, 10) * np.array([10, 10, 10, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    y = np.concatenate([x[:, :3] @ np.linalg.qr(normal(3, 3, 3))[0], 0.1 * normal(2, 500, 7)], axis=1)
    assert cca.compare(torch.tensor(x), torch.tensor(y), weighted=False) == pytest.approx(1, abs=1e-3)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    kept = cca.directions(torch.tensor(x - x.mean(0)), 0.01, all_above=False)
    assert kept.shape[1] == int((np.cumsum(s**2) < 0.99 * (s**2).sum()).sum()) + 1
    np.testing.assert_allclose(np.abs(np.linalg.svd(kept.numpy().T @ u[:, : kept.shape[1]])[1]), 1, rtol=1e-9)


def test_many_features_are_compared_in_their_strongest_directions():
    shared = normal(1, 1000, 20)
    x = shared @ normal(2, 20, 600) + 1e-3 * normal(3, 1000, 600)
    y = shared @ normal(4, 20, 700) + 1e-3 * normal(5, 1000, 700)
    assert cca.compare(torch.tensor(x), torch.tensor(y), weighted=False) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["svcca", "pwcca"])
def test_canonical_correlations_are_none_until_there_are_rows_enough_and_then_stream(name):
    program = library.build(f"builtin:{name}")
    values = []
    for seed in range(4):
        x = torch.tensor(normal(seed, 60, 12), dtype=torch.float32)
        y = torch.tensor(normal(seed + 9, 60, 12), dtype=torch.float32)
        found = fire(program, "on_kd_step", hidden=[("0:0", x, y), ("1:1", x, 2 * x)])
        values.append(found["pairs"]["0:0"][name])
    assert values[0] is None  # 60 rows for 12 directions
    assert values[3] is not None
    assert values[3] < 0.5
    assert found["pairs"]["1:1"][name] == pytest.approx(1, abs=1e-6)
    assert found["pairs"]["0:0"]["rows"] == 240


# Distances


@pytest.mark.parametrize("shape", [(512, 20), (100, 300)])
def test_the_shrunk_covariance_is_scikit_learns(shape):
    x = normal(1, *shape) @ normal(2, shape[1], shape[1])
    x -= x.mean(0)
    expected = LedoitWolf(assume_centered=True).fit(x)
    np.testing.assert_allclose(outliers.ledoit_wolf(torch.tensor(x)), expected.covariance_, rtol=1e-9, atol=1e-12)


def test_mahalanobis_scores_later_rows_by_a_fit_and_a_threshold_of_earlier_ones():
    program = library.build("builtin:mahalanobis")
    mix = normal(0, 16, 16)
    rows = (normal(1, 30 * 64, 16) @ mix + 3).astype(np.float32)
    for part in np.split(rows, 30):
        found = fire(program, "on_forward", "student/a", output=torch.tensor(part).reshape(4, 16, 16))
    fit = LedoitWolf().fit(rows[:512].astype(np.float64))
    distances = np.sqrt(fit.mahalanobis(rows[512:].astype(np.float64)))
    threshold = np.sort(distances[:256])[math.ceil(257 * 0.975) - 1]
    layer = found["layers"]["student/a"]
    assert layer["rows"] == 30 * 64 - 512 - 256
    assert layer["distance"] == pytest.approx(distances[256:].mean(), rel=1e-6)
    assert layer["threshold"] == pytest.approx(threshold, rel=1e-6)
    assert layer["outliers"] == pytest.approx((distances[256:] > threshold).mean(), abs=1e-9)
    assert 0.005 < layer["outliers"] < 0.08  # nothing has changed
    far = fire(program, "on_forward", "student/a", output=torch.tensor(rows[:64] + 50))
    assert far["layers"]["student/a"]["outliers"] > layer["outliers"]


def test_deep_knn_agrees_with_scikit_learn():
    program = library.build("builtin:deep-knn")
    rows = normal(1, 20 * 64, 12).astype(np.float32)
    for part in np.split(rows, 20):
        found = fire(program, "on_forward", "student/a", output=torch.tensor(part))
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    nearest = NearestNeighbors(n_neighbors=outliers.NEIGHBOURS).fit(unit[:512])
    distance = nearest.kneighbors(unit[512:])[0][:, -1]
    held_out, scored = distance[:256], distance[256:]
    credibility = [(1 + (held_out >= d).sum()) / 257 for d in scored]
    layer = found["layers"]["student/a"]
    assert layer["rows"] == len(scored)
    assert layer["distance"] == pytest.approx(scored.mean(), rel=1e-6)
    assert layer["credibility"] == pytest.approx(np.mean(credibility), abs=2e-3)
    assert 0.4 < layer["credibility"] < 0.6


def test_rows_that_coincide_or_are_not_finite_do_no_harm():
    for name in ("mahalanobis", "deep-knn"):
        program = library.build(f"builtin:{name}")
        for _ in range(14):
            found = fire(program, "on_forward", "a", output=torch.tensor([[1.0, 2.0]] * 64 + [[math.nan, 1.0]]))
        assert json.loads(json.dumps(found, allow_nan=False))["layers"]["a"]["rows"] > 0


# Relations


def rkd_by_loops(x, y):
    """Park et al. 2019, equations 4 to 8."""

    def huber(a):
        return a * a / 2 if abs(a) <= 1 else abs(a) - 0.5

    def distances(z):
        d = np.array([[np.linalg.norm(a - b) for b in z] for a in z])
        return d / d[~np.eye(len(z), dtype=bool)].mean()

    def angle(z, i, j, k):
        a, b = z[i] - z[j], z[k] - z[j]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    n, dx, dy = range(len(x)), distances(x), distances(y)
    distance = np.mean([huber(dx[i, j] - dy[i, j]) for i in n for j in n if i != j])
    triples = [(i, j, k) for i in n for j in n for k in n if len({i, j, k}) == 3]
    return distance, np.mean([huber(angle(x, *t) - angle(y, *t)) for t in triples])


def test_rkd_agrees_with_loops():
    x, y = normal(1, 12, 5), normal(2, 12, 8)
    found = fire(library.build("builtin:rkd"), "on_kd_step", hidden=[("0:0", torch.tensor(x), torch.tensor(y))])
    assert (found["distance"], found["angle"]) == pytest.approx(rkd_by_loops(x, y), rel=1e-9)


# Squared gradients of batches


def test_squares_are_the_mean_over_firings_and_an_estimate_where_a_parameter_is_large():
    grads = [torch.tensor(normal(seed, 7, 5)) for seed in range(4)]
    held = None
    for grad in [*grads, torch.full((7, 5), math.nan)]:
        held, figures = squares.fisher(held, squares.taken(grad))
    mean = torch.stack(grads).square().mean(0)
    assert figures == pytest.approx((float(mean.sum()), float(mean.max()), 4.0))
    large = torch.tensor(normal(9, 1000, 500))
    _, (trace, _, _) = squares.fisher(None, squares.taken(large))
    assert trace == pytest.approx(float(large.square().sum()), rel=0.02)


# Looks at a window's end


class Quiet:
    """A context that does nothing; the real one is `Dispatcher.quiet`."""

    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


quiet = Quiet


def perceptron(seed, inner=9):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, inner), nn.Tanh(), nn.Linear(inner, 4))


def pair_of(student, teacher, samples=8):
    models = {"student": student, "teacher": teacher}
    batch = {"ids": torch.arange(samples), "x": torch.tensor(normal(3, samples, 3, 4), dtype=torch.float32)}
    batch["y"] = torch.arange(samples) % 4
    return Subject(models, lambda role, b: (models[role](b["x"]), b["y"]), batch, quiet)


@pytest.mark.parametrize(("samples", "directions"), [(8, 4), (32, 1)])
def test_jacobian_norm_and_drift_agree_with_the_exact_ones(samples, directions):
    student, teacher = perceptron(1), perceptron(2, inner=20)
    subject = pair_of(student, teacher, samples)
    exact = {role: [] for role in subject.modules}
    for x in subject.batch["x"]:
        for role, model in subject.modules.items():
            exact[role].append(torch.func.jacrev(model)(x[None]).detach().reshape(4, -1).double())
    norm = {role: math.sqrt(sum(float(j.square().sum()) for j in found) / samples) for role, found in exact.items()}
    apart = sum(float((s - t).square().sum()) for s, t in zip(exact["student"], exact["teacher"], strict=True))
    drift = math.sqrt(apart / sum(float(t.square().sum()) for t in exact["teacher"]))
    found = fire(library.build("builtin:jacobian", subject=lambda: subject), "on_snapshot")
    # 32 random projections: within a few of their standard errors.
    assert found["student"] == pytest.approx(norm["student"], rel=0.25)
    assert found["teacher"] == pytest.approx(norm["teacher"], rel=0.25)
    assert found["drift"] == pytest.approx(drift, rel=0.25)
    assert (found["directions"], found["samples"]) == (directions, samples)


def test_the_same_projection_is_used_on_both_sides():
    model = perceptron(1)
    _, (student, teacher, drift, *_) = examine.examine("jacobian", pair_of(model, perceptron(1)))
    assert (drift, student) == (0.0, teacher)


@pytest.mark.parametrize(
    ("name", "figure"), [("fisher", "trace"), ("jacobian", "drift"), ("attn-kl", "kl"), ("ewc", "penalty")]
)
def test_nothing_is_looked_at_while_the_student_is_frozen(name, figure):
    model = perceptron(1).requires_grad_(False)
    found = fire(library.build(f"builtin:{name}", subject=lambda: pair_of(model, perceptron(2))), "on_snapshot")
    assert (found[figure], found["samples"]) == (None, 0)


def changed(subject, **values):
    return dataclasses.replace(subject, **values)


def test_a_generation_is_looked_at_with_the_samples_of_its_first_look():
    student, teacher = perceptron(1), perceptron(2, inner=20)
    first, later = pair_of(student, teacher), pair_of(student, teacher)
    later.batch["x"].mul_(3)
    state, figures = examine.examine("jacobian", first)
    assert examine.examine("jacobian", later, state)[1] == figures
    assert examine.examine("jacobian", changed(later, generation=1), state)[1] != figures


def test_what_a_frozen_teacher_gives_is_computed_once_and_anew_for_another_version():
    student, teacher = perceptron(1), perceptron(2, inner=20)
    passes = []
    teacher.register_forward_hook(lambda *_: passes.append(1))
    subject = pair_of(student, teacher)
    state, before = examine.examine("jacobian", subject)
    with torch.no_grad():
        student[1].weight.mul_(1.5)
    state, after = examine.examine("jacobian", subject, state)
    assert (len(passes), after[1]) == (1, before[1])
    assert after[0] > before[0]
    assert after == examine.examine("jacobian", subject)[1]  # what was kept is what would be computed
    with torch.no_grad():
        teacher[1].weight.mul_(2)
    _, newer = examine.examine("jacobian", changed(subject, teacher_version=1), state)
    assert len(passes) == 3
    assert newer[1] > after[1]


# Elastic distance


def test_ewc_is_half_the_fisher_weighted_square_of_what_was_moved():
    student, draws = perceptron(1), torch.Generator().manual_seed(0)
    subject = pair_of(student, perceptron(2), samples=16)
    state, (penalty, moved, trace, samples, parameters) = examine.examine("ewc", subject)
    assert (penalty, moved, samples) == (0.0, 0.0, 16)
    held = list(student.parameters())
    fisher = [np.zeros(p.shape) for p in held]
    for x in subject.batch["x"]:
        logs = student(x[None]).log_softmax(-1)
        y = torch.multinomial(logs.detach().double().exp(), 1, generator=draws)
        grads = torch.autograd.grad(logs.gather(1, y).sum(), held)
        fisher = [f + g.double().numpy() ** 2 / 16 for f, g in zip(fisher, grads, strict=True)]
    assert trace == pytest.approx(sum(f.sum() for f in fisher), rel=1e-4)
    before = [p.detach().clone() for p in held]
    with torch.no_grad():
        for number, p in enumerate(held):
            p.add_(torch.tensor(normal(number, *p.shape), dtype=p.dtype), alpha=0.01)
    away = [(p.detach() - b).double().numpy() for p, b in zip(held, before, strict=True)]
    _, (penalty, moved, *_) = examine.examine("ewc", subject, state)
    expected = 0.5 * sum((f * a**2).sum() for f, a in zip(fisher, away, strict=True))
    assert penalty == pytest.approx(expected, rel=1e-4)
    length = math.sqrt(sum(float(b.double().square().sum()) for b in before))
    assert moved == pytest.approx(math.sqrt(sum((a**2).sum() for a in away)) / length, rel=1e-4)
    assert parameters == sum(p.numel() for p in held)


def test_ewc_is_anchored_anew_in_another_generation_and_for_a_smaller_student():
    subject = pair_of(perceptron(1), perceptron(2))
    state, _ = examine.examine("ewc", subject)
    for other in (changed(subject, generation=1), pair_of(perceptron(3, inner=5), perceptron(2))):
        anew, (penalty, moved, *_) = examine.examine("ewc", other, state)
        assert (penalty, moved) == (0.0, 0.0)
        assert anew is not state


def test_attention_kl_agrees_with_the_models_own_probabilities():
    transformers = pytest.importorskip("transformers")
    models, ids = {}, torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))
    for role, layers in (("student", 2), ("teacher", 4)):
        torch.manual_seed(layers)
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
            initializer_range=0.5,
        )  # fmt: skip
        models[role] = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    subject = Subject(
        models, lambda role, b: (models[role](input_ids=b["input_ids"]).logits[0], b["input_ids"][0]),
        {"input_ids": ids}, quiet,
    )  # fmt: skip
    found = fire(library.build("builtin:attn-kl", subject=lambda: subject), "on_snapshot")
    probs = {}
    for role, model in models.items():
        model.set_attn_implementation("eager")
        probs[role] = [p.detach().double().numpy() for p in model(ids, output_attentions=True).attentions]
    values = []
    for s, t in zip(probs["student"], (probs["teacher"][1], probs["teacher"][3]), strict=True):
        terms = np.where(t > 0, t * (np.log(np.maximum(t, 1e-300)) - np.log(np.maximum(s, 1e-300))), 0)
        values.append(terms.sum(-1).mean())
    assert found["kl"] == pytest.approx(np.mean(values), rel=1e-4)
    assert found["last"] == pytest.approx(values[1], rel=1e-4)
    assert (found["layers"], found["by_head"], found["samples"]) == (2, 1, 4)


def test_a_look_leaves_modes_gradients_and_the_random_generator_as_they_were():
    student, teacher = perceptron(1), perceptron(2)
    student.append(nn.Dropout(0.5)).train()
    teacher.eval()
    subject = pair_of(student, teacher)
    before, state = [p.clone() for p in student.parameters()], torch.get_rng_state()
    for name in ("fisher_samples", "jacobian", "ewc"):
        assert examine.examine(name, subject)[1] == examine.examine(name, subject)[1]
    with pytest.raises(ValueError, match="no look"), examining(subject.modules.values(), quiet):
        raise ValueError(f"no look {torch.rand(1)}")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in student.modules()] == [True] * len(list(student.modules()))
    assert not teacher.training
    assert all(p.grad is None for p in student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


# The worker


def test_a_helper_that_raises_evicts_its_program_with_the_reason():
    evicted = []
    dispatcher = Dispatcher(on_evict=lambda probe, reason: evicted.append((probe, reason)))
    program = library.build("builtin:fisher,windows=1")  # there is no model to look at
    dispatcher.attach(1, "on_snapshot", program)
    for step in range(2):
        dispatcher.step(step)
        dispatcher.fire("on_snapshot")
        program.worker.serve()
    assert [probe for probe, _ in evicted] == [1]
    assert "fisher_samples: LookupError: there is no model" in evicted[0][1]


def test_a_window_that_did_not_happen_leaves_no_trace_in_a_helpers_state():
    queue = new_queue()
    worker = Worker(queue)
    nr = 16

    def feed(seed):
        x = torch.tensor(normal(seed, 20, 4), dtype=torch.float32)
        assert queue.put(1, nr, 0, Firing(), x, x)

    feed(0)
    worker.serve()
    first, saved = queue.landed(1)[0].values, worker.saved(1)
    feed(1)
    worker.serve()
    feed(2)  # waits when the window is given up
    worker.put_back(1, saved)
    assert worker.serve() == 0
    assert queue.landed(1) == []
    feed(1)
    worker.serve()
    again = queue.landed(1)[0].values
    assert again[3] == first[3] + 1 == 2
    assert worker.spent_ns(1) > 0
    worker.forget(1)
    assert worker.spent_ns(1) == 0


def test_only_what_a_helper_takes_is_copied():
    queue = new_queue()
    queue.bytes_max = 300_000
    x = torch.zeros(100_000, 64)
    assert queue.put(1, 16, 0, Firing(), x, x)
    assert queue.take().views[0].shape == (256, 64)
    assert queue.put(1, 19, 0, Firing(), x)
    assert queue.take().views[0].shape == (64, 64)


def test_a_queue_without_room_is_a_counted_drop_of_the_map():
    program = library.build("builtin:cka")
    program.queue.jobs_max = 1
    x = torch.randn(8, 4)
    with torch.no_grad():
        program.fire(Context("on_kd_step", "on_kd_step", 0, {"hidden": [("a", x, x), ("b", x, x)]}))
    assert program.maps["sums"].drops == 1
    assert set(program.summary()["pairs"]) == {"a"}
