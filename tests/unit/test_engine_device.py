"""Where the engine computes: batches in parts, the allocator's refusals, and the same states on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_engine import DISTIL, SPEC, TEACH, batch_at, run_to

from servers.learner.device import memory_errors, resolve
from servers.learner.engine import Engine
from servers.learner.parts import cut
from servers.learner.trace import joined
from servers.models.evaluate import evaluate
from syscalls.errors import RecurosError

CPU = torch.device("cpu")


def flat(engine: Engine, role: str = "student") -> torch.Tensor:
    return engine.roles[role].arena.flat.detach().cpu()


def test_parts_cover_the_batch_once_and_their_shares_are_those_of_the_weights() -> None:
    batch = batch_at(0, 10)
    parts = list(cut(batch, 4))
    assert [len(p["x"]) for p, _ in parts] == [3, 3, 3, 1]
    assert torch.equal(torch.cat([p["ids"] for p, _ in parts]), batch["ids"])
    assert sum(share for _, share in parts) == pytest.approx(1.0)
    assert parts[3][1] == pytest.approx(float(batch["weight"][9] / batch["weight"].sum()))
    del batch["weight"]
    assert [share for _, share in cut(batch, 2)] == [0.5, 0.5]


@pytest.mark.parametrize("parts", [2, 3, 8, 64])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(parts: int) -> None:
    whole, cut_up = Engine(SPEC, 7), Engine(SPEC, 7)
    run_to(whole, 10)
    for engine in (whole, cut_up):
        engine.restore(whole.capture())
        engine.begin(DISTIL)
    cut_up.cut_batches(parts)
    batch = batch_at(99)
    one, many = whole.micro_step(batch), cut_up.micro_step(batch)
    grads = [engine.roles["student"].arena.grad for engine in (whole, cut_up)]  # as they went into the update
    assert grads[0] is not None
    assert grads[1] is not None
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-7)
    assert many.loss == pytest.approx(one.loss, rel=1e-5)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    assert many.terms == pytest.approx(one.terms, rel=1e-4)
    assert many.count == one.count
    assert one.trace is not None
    assert many.trace is not None
    a, b = joined([one.trace]), joined([many.trace])
    assert torch.equal(a["id"], b["id"])
    assert torch.allclose(a["kl"], b["kl"], atol=1e-5)


def test_the_number_of_parts_is_state_and_only_grows() -> None:
    engine = Engine(SPEC, 7)
    engine.begin(TEACH)
    before = engine.capture()
    engine.cut_batches(4)
    after = engine.capture()
    engine.restore(before)
    assert engine.micro_batches == 1
    engine.restore(after)
    assert engine.micro_batches == 4
    engine.cut_batches(2)
    assert engine.micro_batches == 4
    with pytest.raises(RecurosError, match=r"65 parts are outside \[1, 64\]"):
        engine.cut_batches(65)


def test_the_allocators_refusal_is_coded_and_other_errors_are_left_alone() -> None:
    with (
        pytest.raises(RecurosError, match=r"cpu: a batch in 4 parts does not fit: .*memory") as caught,
        memory_errors(CPU, 4),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert caught.value.code == "E7-MEMORY"
    with pytest.raises(RecurosError, match="a batch as a whole does not fit"), memory_errors(CPU, 1):
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(CPU, 1):
        raise RuntimeError("shapes do not match")


def test_the_state_of_an_engine_is_what_is_leased() -> None:
    engine = Engine(SPEC, 7)
    frozen = sum(role.arena.flat.nbytes for role in engine.roles.values()) + flat(engine).nbytes
    assert engine.state_bytes == frozen
    engine.begin(TEACH)
    assert engine.state_bytes == frozen + 3 * flat(engine, "teacher").nbytes


def test_a_device_that_is_not_there_is_refused_and_auto_says_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve({}) == resolve({"kind": "auto"}) == CPU
    with pytest.raises(
        RecurosError, match=r"\[device\] kind = 'cuda', but torch .* (has no CUDA|finds no CUDA device)"
    ):
        resolve({"kind": "cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve({"kind": "auto", "index": 1}) == torch.device("cuda", 1)
    with pytest.raises(RecurosError, match=r"index = 2, and this host has 2 CUDA device"):
        resolve({"kind": "cuda", "index": 2})


# --- on a GPU


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip(f"needs an NVIDIA GPU and a CUDA build of torch; this is {torch.__version__}")
    return torch.device("cuda", 0)


def on(device: torch.device) -> dict[str, Any]:
    return {**SPEC, "device": str(device)}


def test_a_teacher_that_rests_between_windows_changes_no_bit() -> None:
    straight, resting = Engine(SPEC, 7), Engine(SPEC, 7)
    resting._roles.offload = True  # on a device the manifest asks for it; here it moves from host memory to host memory
    for engine in (straight, resting):
        run_to(engine, 5)
        engine.begin(DISTIL)
    places = set()
    for number in range(6):
        if number == 3:
            straight.swap("ema")
            resting.swap("ema")
        straight.micro_step(batch_at(number))
        resting.micro_step(batch_at(number))
        resting.rest()
        assert resting._roles._rests
        places.add(resting.roles["teacher"].arena.flat.data_ptr())
    assert len(places) > 1
    assert resting.digest() == straight.digest()
    leaves = resting.capture()
    resting.restore(leaves)
    assert resting.evaluate("teacher", batch_at(1)) == straight.evaluate("teacher", batch_at(1))
    resting.begin(TEACH)  # who is trained is on the device
    resting.rest()
    assert not resting._roles._rests


@pytest.mark.gpu
def test_a_state_moves_between_cpu_and_gpu_without_changing_a_parameter(cuda: torch.device) -> None:
    there, here = Engine(on(cuda), 7), Engine(SPEC, 7)
    run_to(there, 15)
    leaves = there.capture()
    here.restore(leaves)
    moved = here.capture()
    assert {k: v.id for k, v in moved.items()} == {k: v.id for k, v in leaves.items() if k != "rng/cuda/state"}


@pytest.mark.gpu
def test_two_runs_on_one_gpu_agree_bit_for_bit_and_resume_does_too(cuda: torch.device) -> None:
    first, second = Engine(on(cuda), 7), Engine(on(cuda), 7)
    run_to(first, 15)
    run_to(second, 15)
    assert first.digest() == second.digest()
    middle = first.capture()
    run_to(first, 25)
    second.restore(middle)
    run_to(second, 25)
    assert first.digest() == second.digest()


@pytest.mark.gpu
def test_the_gpu_computes_what_the_cpu_does_within_a_tolerance(cuda: torch.device) -> None:
    there, here = Engine(on(cuda), 7), Engine(SPEC, 7)
    run_to(there, 12)
    run_to(here, 12)
    assert torch.allclose(flat(there), flat(here), rtol=1e-3, atol=1e-4)
    batch = batch_at(3, 64)
    scores = [evaluate(engine.roles["teacher"].model, batch) for engine in (there, here)]
    assert scores[0]["nll"] == pytest.approx(scores[1]["nll"], rel=1e-3)


@pytest.mark.gpu
def test_a_resting_teacher_leaves_the_device(cuda: torch.device) -> None:
    engine = Engine({**on(cuda), "offload_teacher": True}, 7)
    run_to(engine, 5)
    engine.begin(DISTIL)
    engine.micro_step(batch_at(0))
    assert engine.roles["teacher"].arena.flat.is_cuda
    engine.rest()
    assert all(not t.is_cuda for t in engine.roles["teacher"].model.module.state_dict().values())
    engine.micro_step(batch_at(1))
    assert engine.roles["teacher"].arena.flat.is_cuda
