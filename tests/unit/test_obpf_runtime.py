from __future__ import annotations

import copy
import gc
import math
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from probes import isa, jit, vm
from probes.cells import Cells, read
from probes.helpers import inline
from probes.helpers.queue import AsyncQueue
from probes.hooks import Dispatcher
from probes.lower_torch import Lowered
from probes.program import Context
from probes.runtime import Loaded
from probes.verifier import Rejected, verify
from servers.models.patch import PatchConfig, PatchTransformer
from syscalls.errors import RecurosError
from tests.campaign import _obpf_gen as gen
from tests.unit.obpf_support import RIGHTS, all_reductions, array, loaded, op, program

RMS = program(
    op("VARG", 0),
    op("CTXI", 0, aux=1),
    op("ICONST", 1, imm=0),
    op("SUMSQ", 0, 0),
    op("ABSMAX", 1, 0),
    op("MADD", 0, 1, 0),
    op("MMAX", 0, 1, 1, aux=1),
    op("EMIT", 0, 0, 0, aux=2),
    maps=(
        array("sumsq", 1, per_site=True),
        array("top", 1, per_site=True),
        isa.MapSpec("seen", isa.MapKind.RING, 4096),
    ),
)


@pytest.fixture(scope="module")
def compiler() -> Iterator[jit.Compiler]:
    made = jit.Compiler()
    assert made.wait_ready(60)
    yield made
    made.close()


def forward(x: torch.Tensor, step: int = 1, site: str = "student/a") -> Context:
    return Context("on_forward", site, step, {"output": x})


def until_jit(held: Loaded) -> Loaded:
    deadline = time.monotonic() + 60
    while not held.upgrade() and held.backend != "jit" and time.monotonic() < deadline:
        assert not held.reason or "being made" in held.reason
    assert held.backend == "jit"
    return held


def train(watch: list[Loaded]) -> tuple[bytes, Dispatcher]:
    """A few steps of a real model; returns every bit of its parameters and moments."""
    torch.manual_seed(0)
    model = PatchTransformer(PatchConfig(layers=2, width=16, heads=2))
    evicted: list[str] = []
    dispatcher = Dispatcher(on_evict=lambda _, reason: evicted.append(reason))
    dispatcher.install("student", model)
    hooks = {
        "on_forward": "on_forward:student/**",
        "on_grad": "on_grad:student/**",
        "on_attention": "on_attention:student/**",
    }
    for n, held in enumerate(watch):
        dispatcher.attach(n + 1, hooks[held.program.hook_kind], held)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    source = torch.Generator().manual_seed(1)
    for step in range(6):
        dispatcher.step(step)
        loss = model(torch.rand(4, 8, 8, generator=source))[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not evicted
    state = [p.detach().numpy().tobytes() for p in model.parameters()]
    moments = [s["exp_avg"].numpy().tobytes() for s in optimizer.state.values()]
    return b"".join(state + moments) + torch.get_rng_state().numpy().tobytes(), dispatcher


def test_a_step_is_bit_identical_with_and_without_programs(compiler: jit.Compiler) -> None:
    grads = program(
        op("VARG", 0),
        op("VARG", 1, aux=1),
        op("DOT", 0, 0, 1),
        op("CTXI", 0, aux=1),
        op("ICONST", 1, imm=0),
        op("MADD", 0, 1, 0),
        maps=(array("movement", 1, per_site=True),),
        hook="on_grad",
    )
    attention = program(
        op("VARG", 0),
        op("ENTROPY", 0, 0),
        op("ICONST", 1, imm=0),
        op("MADD", 0, 1, 0),
        maps=(array("e", 1),),
        hook="on_attention",
    )
    plain, _ = train([])
    interpreted = [loaded(code) for code in (RMS, grads, attention)]
    compiled = [until_jit(loaded(code, compiler=compiler)) for code in (RMS, grads, attention)]
    assert train(interpreted)[0] == plain
    assert train(compiled)[0] == plain
    for a, b in zip(interpreted, compiled, strict=True):
        assert a.firings == b.firings > 0
        assert a.cells.buffer == b.cells.buffer


def test_figures_are_those_of_the_tensors(compiler: jit.Compiler) -> None:
    x = torch.randn(3, 5, 8)
    for held in (loaded(RMS), until_jit(loaded(RMS, compiler=compiler))):
        held.fire(forward(x, site="student/b"))
        row = held.maps["sumsq"].to_dict()["rows"][0]["values"][0]
        assert row == pytest.approx(float(x.double().square().sum()), rel=1e-12)
        assert held.maps["top"].to_dict()["rows"][0]["values"][0] == float(x.abs().max())
        assert held.maps["seen"].to_dict()["entries"] == [[1, 0, 0, row]]
        assert held.sites == {"student/b": 0}


def test_strided_outputs_are_read_in_place_and_copied_only_when_they_must_be() -> None:
    held, x = loaded(RMS), torch.randn(4, 6, 8)
    for tensor in (x[:, :, ::2], x[0].T, x[:, 0], x[0, 0], x.half(), x.bfloat16(), x.double()):
        held.fire(forward(tensor))
    assert held.copies == 0
    held.fire(forward(x[:, 1:5]))
    assert held.copies == 1
    wanted = [
        t.double().square().sum()
        for t in (x[:, :, ::2], x[0].T, x[:, 0], x[0, 0], x.half(), x.bfloat16(), x.double(), x[:, 1:5])
    ]
    found = [entry[3] for entry in held.maps["seen"].to_dict()["entries"]]
    assert found == pytest.approx([float(w) for w in wanted], rel=1e-9)


def test_gradients_of_one_shape_and_several_strides_are_read_in_place(compiler: jit.Compiler) -> None:
    code = program(
        op("VARG", 0),
        op("SUM", 0, 0),
        op("FMOV", 1, 0),
        op("ICONST", 0, imm=0),
        op("DIM", 1, 0, aux=1),
        op("IF", 0, 1),
        op("COL", 1, 0, 0),
        op("SUM", 1, 1),
        op("ENDIF"),
        op("MSET", 0, 0, 0),
        op("ICONST", 2, imm=1),
        op("MSET", 0, 2, 1),
        maps=(array("out", 2),),
        hook="on_grad",
    )
    base = torch.arange(48.0).reshape(6, 8)
    forms = (base[:3, :2].clone(), base[:2, :3].T, base[::2, :2], base[:3, 1:3])
    held = until_jit(loaded(code, {"rows": 3, "cols": 2}, compiler=compiler))
    for grad in forms * 2:
        held.fire(Context("on_grad", "w", 1, {"grad": grad, "param": grad}))
        assert held.maps["out"].to_dict()["values"] == [float(grad.sum()), float(grad[:, 0].sum())]
    assert held.copies == 0


def test_a_size_beyond_the_contract_is_a_fault_and_training_goes_on(compiler: jit.Compiler) -> None:
    evicted: list[str] = []
    dispatcher = Dispatcher(on_evict=lambda _, reason: evicted.append(reason))
    layer = nn.Sequential(nn.Linear(4, 4))
    dispatcher.install("student", layer)
    dispatcher.attach(1, "on_forward:student/**", until_jit(loaded(RMS, {"rows": 4, "width": 4}, compiler=compiler)))
    dispatcher.step(0)
    layer(torch.zeros(4, 4))
    assert not evicted
    assert layer(torch.zeros(5, 4)).shape == (5, 4)
    assert "verified for rows = 4 at most; this firing has rows = 5" in evicted[0]


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 2, dtype=torch.complex64),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, 2).to(torch.float8_e4m3fn),
    ],
)
def test_a_tensor_that_no_instruction_reads_is_named(bad: torch.Tensor) -> None:
    with pytest.raises((TypeError, RuntimeError), match=r"cannot read|is_contiguous|Sparse"):
        loaded(RMS).fire(forward(bad))


def test_a_firing_without_a_view_is_skipped_and_counted() -> None:
    held = loaded(RMS)
    held.fire(Context("on_forward", "student/a", 1, {"output": None}))
    assert (held.skipped, held.firings) == (1, 0)


def test_distillation_fires_once_per_step_or_once_per_pair(compiler: jit.Compiler) -> None:
    once = all_reductions()
    pair = program(
        op("VARG", 0, aux=3),
        op("VARG", 1, aux=4),
        op("VARG", 2, aux=2),
        op("SUM", 0, 0),
        op("SUM", 1, 1),
        op("FADD", 0, 0, 1),
        op("SUM", 1, 2),
        op("CTXI", 0, aux=1),
        op("EMIT", 0, 0, 0),
        op("EMIT", 0, 0, 1),
        maps=(isa.MapSpec("r", isa.MapKind.RING, 16),),
        hook="on_kd_step",
    )
    tensors = {
        "student_logits": torch.randn(6, 10),
        "teacher_logits": torch.randn(6, 10),
        "labels": None,
        "hidden": [
            ("a:b", torch.ones(2, 3, 4), torch.ones(2, 3, 8)),
            ("c:d", torch.ones(2, 3, 4), torch.zeros(2, 3, 8)),
        ],
    }
    context = Context("on_kd_step", "on_kd_step", 3, tensors)
    for more in ({}, {"compiler": compiler}):
        held = loaded(once, **more)
        held.fire(context)
        assert held.firings == 1
        pairs = loaded(pair, **more)
        if more:
            until_jit(pairs)
        pairs.fire(context)
        assert [e[1:] for e in pairs.maps["r"].to_dict()["entries"]] == [
            [0, 0, 72.0],
            [0, 0, -600.0],
            [1, 1, 24.0],
            [1, 1, -600.0],
        ]
        assert list(pairs.sites) == ["a:b", "c:d"]


def test_helpers_give_the_same_from_machine_code_and_interpreter(compiler: jit.Compiler) -> None:
    code = program(
        op("VARG", 0),
        op("ICONST", 0, imm=0),
        op("DIM", 1, 0, aux=0),
        op("IF", 0, 1),
        op("ROW", 1, 0, 0),
        op("CALL", 0, 1, 1, aux=1),
        op("MSET", 0, 0, 0),
        op("ENDIF"),
        maps=(array(size=1),),
    )
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    for held in (loaded(code), until_jit(loaded(code, compiler=compiler))):
        held.fire(forward(x))
        assert held.maps["out"].to_dict()["values"] == [pytest.approx(1.0, abs=1e-12)]


def test_a_helper_that_raises_is_a_fault_with_its_own_words(compiler: jit.Compiler) -> None:
    code = program(
        op("VARG", 0),
        op("ICONST", 0, imm=0),
        op("DIM", 1, 0, aux=0),
        op("IF", 0, 1),
        op("ROW", 1, 0, 0),
        op("CALL", 0, 1, 1, aux=1),
        op("ENDIF"),
    )

    def broken(*_: torch.Tensor) -> float:
        raise ValueError("no luck")

    for held in (loaded(code, helpers={1: broken}), until_jit(loaded(code, compiler=compiler, helpers={1: broken}))):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"instruction 5: a helper that raised.*ValueError: no luck"):
                held.fire(forward(torch.ones(2, 2)))


def test_asynchronous_calls_are_bounded_copied_and_land_in_their_row(compiler: jit.Compiler) -> None:
    code = program(op("VARG", 0), op("CALL_ASYNC", 0, 0, 0, aux=20), maps=(array("knn", 3, per_site=True),))
    for more in ({}, {"compiler": compiler}):
        queue = AsyncQueue(jobs_max=2)
        held = loaded(code, queue=queue, **more)
        if more:
            until_jit(held)
        x = torch.ones(2, 3)
        for step in range(5):
            held.fire(forward(x, step))
        x.zero_()
        assert held.maps["knn"].drops == queue.dropped == 3
        job = queue.take()
        assert job is not None
        assert (job.helper, job.site, job.step, float(job.views[0].sum())) == (20, 0, 0, 6.0)
        queue.answer(job, (1.0, math.nan, 5.0))
        held.land()
        assert held.maps["knn"].to_dict()["rows"][0]["values"] == [1.0, 0.0, 5.0]
        held.close()
        assert queue.take() is None
    quiet = loaded(code)
    quiet.fire(forward(torch.ones(1, 1)))
    assert quiet.maps["knn"].drops == 1


def test_an_asynchronous_call_without_views_is_queued_by_machine_code_too(compiler: jit.Compiler) -> None:
    code = program(op("CALL_ASYNC", 0, 0, 0, aux=22), maps=(array("fisher", 5, per_site=True),), hook="on_snapshot")
    for more in ({}, {"compiler": compiler}):
        queue = AsyncQueue()
        held = loaded(code, queue=queue, **more)
        if more:
            until_jit(held)
        held.fire(Context("on_snapshot", "on_snapshot", 3, {}))
        job = queue.take()
        assert job is not None
        assert (job.helper, job.step, job.views) == (22, 3, ())
        held.close()


def test_a_certificate_of_something_else_is_refused() -> None:
    contract, digest = isa.Contract("on_forward"), isa.digest(isa.encode(RMS))
    certificate = verify(RMS, contract, RIGHTS)
    for bad in (
        {"digest": "0" * 64},
        {"contract": isa.Contract("on_forward", {"rows": 1})},
        {"contract": isa.Contract("on_grad")},
        {"rights": ()},
    ):
        with pytest.raises(RecurosError) as caught:
            Loaded(RMS, certificate, **{"contract": contract, "digest": digest, "rights": RIGHTS} | bad)  # type: ignore[arg-type]
        assert caught.value.code == "E8-STALE"


def test_without_a_compiler_or_with_a_broken_one_the_interpreter_runs_and_says_so() -> None:
    assert loaded(RMS).summary()["reason"] == "no compiler was given"
    broken = jit.Compiler(command=["/bin/false"])
    held = loaded(RMS, compiler=broken)
    deadline = time.monotonic() + 30
    while "being made" in held.reason and time.monotonic() < deadline:
        held.upgrade()
    assert held.backend == "vm"
    assert "worker" in held.reason
    held.fire(forward(torch.ones(2, 2)))
    assert held.firings == 1


def test_attach_and_close_leave_nothing_behind(compiler: jit.Compiler) -> None:
    until_jit(loaded(RMS, compiler=compiler)).close()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        held = loaded(RMS, compiler=compiler)
        held.fire(forward(torch.ones(2, 2)))
        held.close()
    del held
    gc.collect()
    assert len(gc.get_objects()) - before < 200


def test_rkd_losses_are_those_of_their_definition() -> None:
    torch.manual_seed(3)
    s, t = torch.randn(7, 4), torch.randn(7, 6)

    def huber(x: float) -> float:
        return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5

    def apart(x: np.ndarray) -> list[float]:
        d = [float(np.linalg.norm(x[i] - x[j])) for i in range(7) for j in range(7) if i != j]
        return [v / (sum(d) / len(d)) for v in d]

    def cosines(x: np.ndarray) -> list[float]:
        unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
        return [
            float(unit(x[i] - x[j]) @ unit(x[k] - x[j]))
            for i in range(7)
            for j in range(7)
            for k in range(7)
            if len({i, j, k}) == 3
        ]

    a, b = s.double().numpy(), t.double().numpy()
    for function, of in ((inline.rkd_distance, apart), (inline.rkd_angle, cosines)):
        terms = [huber(p - q) for p, q in zip(of(a), of(b), strict=True)]
        assert function(s, t) == pytest.approx(sum(terms) / len(terms), rel=1e-9)
    assert inline.rkd_distance(s, s * 3 + 1) == pytest.approx(0.0, abs=1e-12)
    assert inline.rkd_angle(s[:2], t[:2]) == inline.rkd_distance(s[:1], t[:1]) == 0.0
    assert inline.cosine(s[0], torch.zeros(4)) == 0.0


def close_enough(ours: object, theirs: object) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(close_enough(ours[k], theirs[k]) for k in ours if k not in ("drops", "nans", "rows"))
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(close_enough, ours, theirs))
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return (
            ours == theirs
            or math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)
            or (math.isnan(ours) and math.isnan(theirs))
        )
    return ours == theirs


def test_the_lowering_to_torch_agrees_with_the_interpreter_within_its_tolerance() -> None:
    """On the CPU; integer results that hang on a comparison of rounded sums may differ, so programs are drawn without them."""
    code, rng = all_reductions(), np.random.default_rng(0)
    for size in (1, 5, 64, 1000):
        x, y = (torch.from_numpy(np.abs(rng.standard_normal((1, size))).astype(np.float32)) for _ in range(2))
        ours, theirs = Cells(code.maps), Cells(code.maps)
        vm.run(code, [vm.View(x.numpy()), vm.View(y.numpy()), None, None, None], vm.Firing(), ours)
        lowered = Lowered(code, theirs, "cpu")
        lowered.fire([x, y, None, None, None], vm.Firing())
        assert lowered.reads == 0
        lowered.drain()
        for (_, _, tag, a), (_, _, other, b) in zip(ours.take(0), theirs.take(0), strict=True):
            assert tag == other
            assert a == pytest.approx(b, rel=1e-9), (size, tag)
    alike = runs = 0
    for number in range(60):
        source = random.Random(f"lower/{number}")
        program_ = gen.program(source)
        try:
            verify(program_, gen.contract(program_.hook_kind), gen.RIGHTS)
        except Rejected:
            continue
        views = gen.inputs(source, program_.hook_kind)
        if any(i.op.name in ("CALL", "CALL_ASYNC") for i in program_.code):
            continue
        ours, theirs = Cells(program_.maps), Cells(program_.maps)
        vm.run(program_, views, vm.Firing(), ours)
        lowered = Lowered(program_, theirs, "cpu")
        lowered.fire([view.tensor() for view in views], vm.Firing())
        lowered.drain()
        runs += 1
        alike += close_enough(read(ours.buffer)["maps"], read(theirs.buffer)["maps"])
    assert runs >= 10
    assert alike >= runs - 2


def test_a_program_lowered_to_torch_lands_its_maps_at_the_end_of_the_step() -> None:
    held, x = loaded(RMS, device="torch"), torch.randn(3, 5, 8)
    assert held.backend == "torch"
    held.fire(forward(x))
    held.land()
    assert held.maps["sumsq"].to_dict()["rows"][0]["values"][0] == pytest.approx(float(x.double().square().sum()))
    assert copy.copy(held.summary())["backend"] == "torch"
