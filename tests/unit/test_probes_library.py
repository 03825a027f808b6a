"""The built-ins as verified programs, against oracles that share no code with them; machine code where there is a compiler."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from probes import catalogue, isa, library
from probes.helpers import cka
from probes.helpers.rows import spread
from probes.jit import Compiler
from probes.program import Context
from probes.verifier import verify

RIGHTS = ("attach-probe", "read-trace")


@pytest.fixture(scope="module")
def compiler():
    """One compiler for the module; its worker takes a second to come up."""
    made = Compiler()
    yield made
    made.close()


@pytest.fixture(params=["vm", "jit"])
def build(request, compiler):
    """Builds a built-in that runs in the interpreter, or as machine code."""

    def made(prog, **given):
        if request.param == "vm":
            return library.build(prog, **given)
        compiler.compile(isa.encode(library.compile(prog)))
        program = library.build(prog, compiler=compiler, **given)
        assert program.backend == "jit", program.reason
        return program

    if request.param == "jit" and compiler.unavailable:
        pytest.skip(compiler.unavailable)
    return made


def fire(program, hook, site=None, step=0, attention=None, **tensors):
    with torch.no_grad():
        program.fire(Context(hook, site or hook, step, tensors, attention))


def kd(program, **tensors):
    tensors.setdefault("teacher_logits", tensors.get("student_logits"))
    fire(program, "on_kd_step", **tensors)
    return program.summary()


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def maps(program):
    return {name: held.to_dict() for name, held in program.maps.items()}


def row(program, name, site=0):
    held = program.maps[name].to_dict()
    return dict(zip(held["fields"], held["rows"][site]["values"], strict=True))


# All of them


@pytest.mark.parametrize("name", catalogue.names())
def test_every_built_in_is_verified_for_the_reference_sizes_and_reads_before_it_has_fired(name):
    program = library.compile(f"builtin:{name}")
    assert program.hook_kind in catalogue.BUILTINS[name].hooks
    certificate = verify(program, isa.Contract(program.hook_kind), RIGHTS)
    assert certificate.cost < 2_000_000_000
    assert isa.decode(isa.encode(program)) == program
    assert library.build(f"builtin:{name}").summary()["ran"]["firings"] == 0


def test_built_ins_compile_and_read_without_torch_and_numpy():
    code = (
        "import sys; from probes import catalogue, isa, library\n"
        "from probes.cells import Cells, read\n"
        "for name in catalogue.names():\n"
        "    program = library.compile(f'builtin:{name}')\n"
        "    library.summary(f'builtin:{name}', read(Cells(program.maps).buffer))\n"
        "assert not {'torch', 'numpy', 'llvmlite'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", catalogue.names())
def test_a_parameter_is_a_constant_of_the_program(name):
    for key, param in catalogue.BUILTINS[name].params.items():
        value = param.high if isinstance(param.default, int) else 0.25
        admitted = catalogue.check(catalogue.BUILTINS[name].hooks[0], f"builtin:{name},{key}={value}", RIGHTS)
        other = library.compile(admitted.prog)
        assert catalogue.parse(admitted.prog)[1] == admitted.params
        if key == "every":
            assert other.every == value
        else:
            assert f"{key.upper()} = " in other.source
            assert isa.encode(other) != isa.encode(library.compile(f"builtin:{name}"))
        verify(other, isa.Contract(other.hook_kind), RIGHTS)


@pytest.mark.parametrize("name", catalogue.names())
def test_the_reference_page_names_hook_parameters_and_maps(name):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "probes.md").read_text(encoding="utf-8")
    builtin = catalogue.BUILTINS[name]
    line = next(line for line in page.splitlines() if line.startswith(f"| [`{name}`]"))
    assert f"`{builtin.hooks[0]}`" in line
    for key, param in builtin.params.items():
        assert f"`{key}` ({param.default:g}" in line
    section = next(part for part in page.split("\n### ") if name in part.splitlines()[0].split(" and "))
    for spec in library.compile(f"builtin:{name}").maps:
        assert f"`{spec.name}`" in section, spec.name
        for cell in spec.fields:
            assert f"`{cell}`" in section, cell
    for figure in set(library.build(f"builtin:{name}").summary()) - {"ran", "status"}:
        assert f"`{figure}`" in section or "those" in section, figure


# CKA


def hsic1_by_definition(k, l):  # noqa: E741
    """Song et al. 2012, equation 4, term by term: [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n(n-3))."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    total = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ l @ one) / (n - 2)
    )
    return total / (n * (n - 3))


def biased_cka(x, y):
    """Kornblith et al. 2019, equation 4 with the linear kernel."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def pair(x, y, name="blocks.0"):
    return [(name, torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))]


@pytest.mark.parametrize("n", [4, 5, 32, 200])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_hsic_agrees_with_the_definition_in_few_and_in_many_dimensions_even_at_a_large_offset(n, offset):
    x, y = normal(1, n, 24) + offset, normal(2, n, 40) - offset
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    # The definition itself cancels badly at a large offset, so the oracle runs in extended precision.
    a, b = x.numpy().astype(np.longdouble), y.numpy().astype(np.longdouble)
    k, l = a @ a.T, b @ b.T  # noqa: E741
    expected = (hsic1_by_definition(k, l), hsic1_by_definition(k, k), hsic1_by_definition(l, l))
    scale = math.sqrt(abs(expected[1] * expected[2]))
    np.testing.assert_allclose(cka.hsic1(x, y), [float(e) for e in expected], atol=3e-4 * scale, rtol=1e-4)


def test_cka_sums_over_batches_and_divides_once(build):
    program, sums = build("builtin:cka"), np.zeros(3)
    for seed in range(6):
        x, noise = normal(seed, 16, 8), normal(100 + seed, 16, 8)
        y = x @ normal(50, 8, 12) + (noise @ normal(51, 8, 12)) * (1 + seed)
        kd(program, hidden=pair(x, y))
        k, l = x @ x.T, y @ y.T  # noqa: E741
        sums += (hsic1_by_definition(k, l), hsic1_by_definition(k, k), hsic1_by_definition(l, l))
    expected = sums[0] / math.sqrt(sums[1] * sums[2])
    assert program.summary()["pairs"]["blocks.0"]["cka"] == pytest.approx(expected, rel=1e-4)


def test_independent_gaussians_score_zero_where_the_biased_estimator_scores_nine_tenths():
    x, y = normal(3, 32, 384), normal(4, 32, 384)
    assert biased_cka(x, y) == pytest.approx(0.92, abs=0.02)
    program = library.build("builtin:cka")
    for seed in range(20):
        kd(program, hidden=pair(normal(2 * seed, 32, 384), normal(2 * seed + 1, 32, 384)))
    assert abs(program.summary()["cka"]) < 0.05


def test_cka_is_one_for_a_rotation_and_scale_of_itself():
    x = normal(5, 64, 16)
    rotation = np.linalg.qr(normal(6, 16, 16))[0]
    assert kd(library.build("builtin:cka"), hidden=pair(x, 3 * x @ rotation + 1))["cka"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("x", "status"),
    [
        (np.ones((32, 8)), "not positive"),
        (np.tile(normal(9, 1, 384) * 7, (256, 1)), "not positive"),
        (normal(1, 3, 8), "no batch of 4"),
        (np.full((32, 8), np.nan), "no batch of 4"),
    ],
)
def test_an_undefined_cka_is_reported_and_never_nan(x, status):
    summary = kd(library.build("builtin:cka"), hidden=pair(x, normal(2, len(x), 8)))
    assert summary["cka"] is None
    assert status in summary["pairs"]["blocks.0"]["status"]


def test_cka_takes_the_same_tokens_of_both_sides_and_pools_when_lengths_differ():
    x = normal(7, 8, 64, 12)
    program = library.build("builtin:cka")
    assert kd(program, hidden=pair(x, x))["cka"] == pytest.approx(1, abs=1e-5)
    assert row(program, "sums")["rows"] == cka.ROWS
    y = np.repeat(x, 2, axis=1)  # twice the tokens, the same mean
    pooled = library.build("builtin:cka")
    assert kd(pooled, hidden=pair(x, y))["cka"] == pytest.approx(1, abs=1e-4)
    assert row(pooled, "sums")["rows"] == 8


def test_each_pair_of_layers_has_its_own_row():
    program = library.build("builtin:cka")
    x = normal(7, 40, 6)
    hidden = [*pair(x, x, "0:0"), *pair(x, normal(8, 40, 6), "1:2")]
    found = kd(program, hidden=hidden)
    assert found["pairs"]["0:0"]["cka"] == pytest.approx(1, abs=1e-5)
    assert abs(found["pairs"]["1:2"]["cka"]) < 0.3
    assert found["cka"] == pytest.approx(sum(p["cka"] for p in found["pairs"].values()) / 2)


@pytest.mark.parametrize(("total", "rows"), [(1024, 256), (17, 4), (1000, 999), (4096, 100)])
def test_spread_rows_are_distinct_and_reach_every_position_of_a_sequence(total, rows):
    index = spread(total, rows).tolist()
    assert len(set(index)) == rows
    assert max(index) < total
    if rows >= 100:
        assert len({i % 16 for i in index}) == 16


# Calibration


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def ece_by_loop(logits, labels, bins=15):
    p = softmax(logits)
    total = 0.0
    for b in range(bins):
        inside = [i for i in range(len(p)) if b / bins < p[i].max() <= (b + 1) / bins]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(p) * abs(accuracy - np.mean([p[i].max() for i in inside]))
    nll = np.mean([-np.log(p[i, labels[i]]) for i in range(len(p))])
    brier = np.mean([sum((p[i, k] - (k == labels[i])) ** 2 for k in range(p.shape[1])) for i in range(len(p))])
    return total, nll, brier


def test_ece_by_hand(build):
    # Confidences 0.8 (right), 0.8 (wrong), 0.6 (right): |0.5 - 0.8| * 2/3 + |1 - 0.6| * 1/3.
    p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    summary = kd(build("builtin:ece"), student_logits=p.log(), labels=torch.tensor([0, 1, 1]))
    assert summary["ece"] == pytest.approx(0.3 * 2 / 3 + 0.4 / 3, abs=1e-6)
    assert summary["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.6)) / 3, abs=1e-6)
    assert summary["brier"] == pytest.approx((0.08 + 1.28 + 0.32) / 3, abs=1e-6)
    assert summary["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("bins", [10, 15])
def test_ece_nll_and_brier_agree_with_loops_over_several_batches(build, bins):
    logits, labels = 3 * normal(1, 300, 10), np.random.default_rng(2).integers(0, 10, 300)
    program = build(f"builtin:ece,bins={bins}")
    for part in np.split(np.arange(300), 3):
        kd(program, student_logits=torch.tensor(logits[part]), labels=torch.tensor(labels[part]))
    summary = program.summary()
    assert (summary["ece"], summary["nll"], summary["brier"]) == pytest.approx(
        ece_by_loop(logits, labels, bins), rel=1e-9
    )
    assert summary["rows"] == 300


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it():
    program = library.build("builtin:ece,bins=2")
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    kd(program, student_logits=p.log().clamp(min=-1000), labels=torch.tensor([0, 0]))
    assert maps(program)["count"]["values"] == [1.0, 1.0]


def test_padding_and_soft_labels_are_left_out_and_nan_rows_counted(build):
    logits = torch.tensor(normal(1, 2, 6, 5))
    labels = torch.randint(0, 5, (2, 6), generator=torch.Generator().manual_seed(0))
    labels[:, 4:] = -100
    program = build("builtin:ece")
    summary = kd(program, student_logits=logits, labels=labels)
    expected = ece_by_loop(logits[:, :4].reshape(-1, 5).numpy(), labels[:, :4].reshape(-1).numpy())
    assert (summary["ece"], summary["nll"], summary["brier"]) == pytest.approx(expected, rel=1e-9)
    kd(program, student_logits=logits, labels=torch.rand(2, 6, 5))
    logits[0, 0, 0] = math.nan
    kd(program, student_logits=logits, labels=labels)
    assert program.summary()["rows"] == 8 + 7
    totals = dict(zip(maps(program)["totals"]["fields"], maps(program)["totals"]["values"], strict=True))
    assert (totals["skipped"], totals["nonfinite"]) == (4 + 12 + 4, 1)


def test_a_step_of_nothing_but_padding_folds_in_nothing():
    logits, labels = torch.randn(4, 3), torch.full((4,), -100)
    for name in ("ece", "disagreement", "entropy"):
        assert kd(library.build(f"builtin:{name}"), student_logits=logits, labels=labels)["rows"] == 0


# Agreement and entropy


def test_disagreement_and_kl_agree_with_loops(build):
    s, t = normal(1, 200, 7), normal(2, 200, 7)
    p, q = softmax(t), softmax(s)
    kl = np.mean([sum(p[i, k] * math.log(p[i, k] / q[i, k]) for k in range(7)) for i in range(200)])
    given = {"student_logits": torch.tensor(s), "teacher_logits": torch.tensor(t), "labels": torch.zeros(200).long()}
    summary = kd(build("builtin:disagreement"), **given)
    assert summary["kl"] == pytest.approx(kl, rel=1e-9)
    assert summary["disagreement"] == np.mean(s.argmax(1) != t.argmax(1))


def test_a_class_that_the_teacher_excludes_adds_nothing_to_the_kl():
    t, s = torch.tensor([[0.0, 0.0, -math.inf]]), torch.zeros(1, 3)
    summary = kd(library.build("builtin:disagreement"), student_logits=s, teacher_logits=t, labels=torch.tensor([0]))
    assert summary["kl"] == pytest.approx(math.log(3) - math.log(2), abs=1e-6)


def test_logits_of_different_class_counts_are_refused_by_name():
    given = {"student_logits": torch.ones(2, 3), "teacher_logits": torch.ones(2, 4), "labels": torch.zeros(2).long()}
    with pytest.raises(Exception, match=r"classes = 3.*classes = 4"):
        kd(library.build("builtin:disagreement"), **given)


def test_entropy_agrees_with_a_loop_and_spans_zero_to_log_classes(build):
    s = np.vstack([2 * normal(1, 100, 6), np.zeros((1, 6)), [[0, -np.inf, -np.inf, -np.inf, -np.inf, -np.inf]]])
    p = softmax(s)
    expected = np.mean([-sum(x * math.log(x) for x in row if x > 0) for row in p])
    program = build("builtin:entropy")
    given = {"teacher_logits": torch.zeros(102, 6), "labels": torch.zeros(102).long()}
    summary = kd(program, student_logits=torch.tensor(s), **given)
    assert summary["student"] == pytest.approx(expected, rel=1e-9)
    assert summary["teacher"] == pytest.approx(math.log(6), rel=1e-6)
    held = maps(program)["teacher_share"]
    assert (sum(held["counts"]), held["counts"][-1], held["below"], held["above"], held["nan"]) == (102, 102, 0, 0, 0)


@pytest.mark.parametrize("shape", [(64, 32, 11), (1021, 11), (2048, 11), (1030, 11)])
def test_rows_bound_the_work_and_are_the_spread_ones_on_both_sides(shape):
    logits = torch.tensor(normal(3, *shape))
    labels = torch.zeros(shape[:-1]).long()
    summary = kd(library.build("builtin:disagreement,rows=128"), student_logits=logits, labels=labels)
    assert (summary["rows"], summary["disagreement"]) == (128, 0)
    assert summary["kl"] == pytest.approx(0, abs=1e-12)
    flat = logits.reshape(-1, 11)
    chosen = flat[spread(len(flat), 128)]
    entropy = torch.distributions.Categorical(logits=chosen).entropy().mean()
    found = kd(library.build("builtin:entropy,rows=128"), student_logits=logits, labels=labels)["student"]
    assert found == pytest.approx(float(entropy), rel=1e-9)


# Layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_rms_agrees_with_numpy_in_every_precision(build, dtype):
    program = build("builtin:rms")
    chunks = [torch.tensor(normal(i, 8, 16) * 300, dtype=dtype) for i in range(3)]
    for x in chunks:
        fire(program, "on_forward", "student/blocks.0", output=x)
    values = np.concatenate([x.double().numpy().ravel() for x in chunks])
    layer = program.summary()["layers"]["student/blocks.0"]
    assert layer["rms"] == pytest.approx(math.sqrt(np.mean(values**2)), rel=1e-9)
    assert layer["absmax"] == np.abs(values).max()


def test_rms_counts_what_is_not_finite_and_measures_the_firings_without(build):
    program = build("builtin:rms")
    fire(program, "on_forward", "student/a", output=torch.tensor([3.0, math.nan, 4.0, math.inf]))
    fire(program, "on_forward", "student/b", output=None)
    fire(program, "on_forward", "student/c", output=torch.zeros(0, 4))
    fire(program, "on_forward", "student/a", output=torch.tensor([3.0, -4.0]))
    found = program.summary()
    assert found["layers"]["student/a"] == {"rms": pytest.approx(math.sqrt(12.5)), "absmax": 4.0, "nonfinite": 2}
    assert found["layers"]["student/c"]["rms"] is None
    assert "student/b" not in found["layers"]
    assert found["ran"]["skipped"] == 1
    assert found["nonfinite"] == 2


def test_nan_watch_names_the_first_layer_and_step(build):
    program = build("builtin:nan-watch")
    good, bad = torch.ones(2, 3), torch.tensor([[1.0, math.inf, math.nan]])
    for step, (a, b) in enumerate([(good, good), (good, bad), (bad, bad)]):
        fire(program, "on_forward", "student/a", step, output=a)
        fire(program, "on_forward", "student/b", step, output=b)
    found = program.summary()
    assert found["first"] == {"layer": "student/b", "step": 1}
    assert (found["events"], found["layers"]["student/b"]["values"], found["layers"]["student/a"]["events"]) == (
        3,
        4,
        1,
    )
    assert [entry[0] for entry in maps(program)["events"]["entries"]] == [1, 2, 2]


@pytest.mark.parametrize("width", [10, 300])
def test_dead_units_agree_with_a_loop(build, width):
    program = build("builtin:dead-units")
    batches = [np.maximum(normal(seed, 20, width) - 1.5, 0) for seed in range(3)]
    for x in batches:
        x[:, 3] = -1.0
        fire(program, "on_forward", "student/a", output=torch.tensor(x, dtype=torch.float32).reshape(4, 5, width))
    units = min(width, 256)
    watched = [u * width // units for u in range(units)]
    dead = np.mean([max(x[:, j].max() for x in batches) <= 0 for j in watched])
    silent = np.mean([[x[:, j].max() <= 0 for j in watched] for x in batches])
    layer = program.summary()["layers"]["student/a"]
    assert (layer["units"], layer["dead"]) == (units, pytest.approx(dead))
    assert layer["silent"] == pytest.approx(silent)


def test_attention_entropy_agrees_with_scipy(build):
    from scipy.stats import entropy

    program = build("builtin:attn-entropy")
    chunks = [softmax(3 * normal(seed, 2, 4, 5, 6)) for seed in range(2)]
    chunks[0][0, 0, 0] = [1, 0, 0, 0, 0, 0]
    for probs in chunks:
        fire(program, "on_attention", "student/attn", attention=lambda p=probs: (torch.tensor(p), "eager"))
    heads = np.concatenate(chunks).transpose(1, 0, 2, 3).reshape(4, -1, 6)
    expected = entropy(heads, axis=-1).mean(1)
    found = program.summary()
    assert found["layers"]["student/attn"]["heads"] == pytest.approx(expected.tolist(), rel=1e-9)
    assert found["layers"]["student/attn"]["path"] == "eager"


# Parameters


def test_gradnorm_agrees_with_numpy_and_totals_one_step(build):
    program = build("builtin:gradnorm")
    grads = {(step, name): normal(step, 5, 3) * (1 + len(name)) for step in (25, 50) for name in ("a", "bb")}
    for (step, name), grad in grads.items():
        fire(program, "on_grad", name, step, grad=torch.tensor(grad), param=torch.tensor(grad))
    fire(program, "on_grad", "a", 50, grad=torch.tensor([math.inf]), param=torch.tensor([1.0]))
    summary = program.summary()
    last = {name: np.linalg.norm(grads[50, name]) for name in ("a", "bb")}
    assert summary["parameters"] == pytest.approx(last)
    assert summary["global"] == pytest.approx(math.hypot(*last.values()))
    assert (summary["step"], summary["nonfinite"]) == (50, 1)


def test_gradient_noise_is_the_ratio_that_made_the_gradients(build):
    """Gradients of a known mean and covariance: the simple noise scale of the batch is tr(S) / |G|^2."""
    program, rng = build("builtin:gradnoise"), np.random.default_rng(0)
    means = {"a": rng.normal(size=(8, 8)), "b": rng.normal(size=(50, 30))}
    for step in range(400):
        for name, mean in means.items():
            grad = torch.tensor(mean + 2.0 * rng.normal(size=mean.shape))
            fire(program, "on_grad", name, step, grad=grad, param=grad)
    found = program.summary()
    chosen = {"a": means["a"].ravel(), "b": means["b"].ravel()[[k * 1500 // 64 for k in range(64)]]}
    signal = sum(float((mean**2).sum()) for mean in chosen.values())
    assert found["noise"] == pytest.approx(4.0 * 128 / signal, rel=0.1)
    assert found["signal"] == pytest.approx(signal, rel=0.05)
    assert found["pairs"] == 399


def test_movement_agrees_with_the_sum_over_weights(build):
    program, total = build("builtin:movement"), {"a": 0.0, "b": 0.0}
    for seed in range(3):
        for name in total:
            g, w = normal(seed, 6, 4), normal(seed + 50 + len(total), 6, 4)
            total[name] -= float((g * w).sum())
            fire(program, "on_grad", name, seed, grad=torch.tensor(g), param=torch.tensor(w))
    found = program.summary()
    assert found["parameters"]["a"]["score"] == pytest.approx(total["a"])
    assert found["parameters"]["b"]["mean"] == pytest.approx(total["b"] / (3 * 24))
    assert found["score"] == pytest.approx(sum(total.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_sparsity_counts_both_zeros_and_nothing_else(build, dtype):
    program = build("builtin:sparsity")
    w = torch.tensor([[0.0, -0.0, 1.0, -1.0, torch.finfo(dtype).tiny, -torch.finfo(dtype).tiny]], dtype=dtype)
    if dtype is torch.float64:
        w[0, 4:] = torch.tensor([1e-200, -1e-200], dtype=dtype)
    fire(program, "on_grad", "a", grad=torch.zeros(1, 6, dtype=dtype), param=w)
    found = program.summary()
    assert (found["sparsity"], found["gradient"], found["weights"]) == (pytest.approx(2 / 6), 1.0, 6)


def test_pruned_says_how_much_was_taken_and_what_leaked(build):
    program = build("builtin:pruned")
    masks = {n: torch.tensor((normal(n, 10, 6) > 0).astype(np.float32)) for n in (1, 2)}
    for step in (4, 9):
        pruned = [(f"m{n}", mask, torch.tensor(normal(7, 10, 6)) * mask) for n, mask in masks.items()]
        if step == 9:
            pruned[0][2][masks[1] == 0] = 1.0
        fire(program, "on_prune", step=step, pruned=pruned, sparsity=0.5)
    found = program.summary()
    kept = sum(float(mask.sum()) for mask in masks.values()) / 120
    assert found["pruned"] == pytest.approx(1 - kept)
    assert found["leaked"] == int((masks[1] == 0).sum())
    assert (found["prunings"], found["matrices"], found["step"]) == (2, 2, 9)
