"""The captured step: on the CPU its body runs as it is, which shows that it is the dynamic step; on a GPU it is captured for real."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_engine import DISTIL, SPEC, TEACH, batch_at, run_to

from probes import library
from probes.hooks import Dispatcher
from servers.gpu.graphs import GraphDriver
from servers.learner.driver import Driver
from servers.learner.engine import Engine
from servers.learner.trace import joined
from syscalls.errors import RecurosError


class AlmostCuda(str):
    """The host's device under another type: tensors stay where they are, and the driver takes it for a GPU."""

    type = "cuda"

    def __new__(cls) -> AlmostCuda:
        return super().__new__(cls, "cpu")


def flat(engine: Engine, role: str = "student") -> torch.Tensor:
    return engine.roles[role].arena.flat.detach().cpu()


def distilling(spec: dict[str, Any] | None = None, dispatcher: Dispatcher | None = None) -> Engine:
    engine = Engine(spec or SPEC, 7, dispatcher)
    run_to(engine, 12)
    return engine


def replayed(engine: Engine) -> int:
    return int(engine.path.take()["replayed"])


def pair(spec: dict[str, Any] | None = None) -> tuple[Engine, Engine]:
    dynamic, graph = distilling(spec), distilling(spec)
    graph.capture_step(batch_at(0))
    graph.path.take()
    return dynamic, graph


@pytest.mark.parametrize("train", ["teacher", "student"])
def test_the_captured_step_is_the_dynamic_one_within_single_precision(train: str) -> None:
    engines = [Engine(SPEC, 7), Engine(SPEC, 7)]
    for engine in engines:
        engine.begin(TEACH if train == "teacher" else DISTIL)
    engines[1].capture_step(batch_at(0))
    for step in range(6):
        one, other = (engine.micro_step(batch_at(step)) for engine in engines)
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
        assert other.terms == pytest.approx(one.terms, rel=1e-3)
        assert (one.step, one.lr, one.count) == (other.step, other.lr, other.count)
    assert replayed(engines[1]) == 6
    assert torch.allclose(flat(engines[0], train), flat(engines[1], train), rtol=1e-3, atol=2e-4)


def test_the_trace_of_a_replayed_step_is_that_of_the_dynamic_one() -> None:
    dynamic, graph = pair()
    steps = [[engine.micro_step(batch_at(s)).trace for s in (50, 51)] for engine in (dynamic, graph)]
    tables = [joined([t for t in found if t is not None]) for found in steps]
    assert torch.equal(tables[0]["id"], tables[1]["id"])
    assert torch.allclose(tables[0]["kl"], tables[1]["kl"], atol=1e-3)


def test_numbers_that_a_policy_changes_need_no_new_capture() -> None:
    dynamic, graph = pair()
    held = graph.path.graph
    key = graph.graph_key(batch_at(0))
    for step, policy in enumerate(({"temperature": 3.0}, {"mix": 0.2}, {"alpha": 2.0, "temperature": 1.5}, {})):
        losses = []
        for engine in (dynamic, graph):
            engine.apply_policy(policy)
            losses.append(engine.micro_step(batch_at(70 + step)).loss)
        assert losses[1] == pytest.approx(losses[0], rel=1e-3), policy
    assert graph.path.graph is held
    assert graph.graph_key(batch_at(0)) == key
    assert replayed(graph) == 4


def swap(engine: Engine) -> None:
    engine.swap("ema")


def prune(engine: Engine) -> None:
    engine.prune({"sparsity": 0.5})


def restore(engine: Engine) -> None:
    engine.restore(engine.capture())


def another_phase(engine: Engine) -> None:
    engine.begin({**DISTIL, "index": 3, "name": "other"})


def drop_a_term(engine: Engine) -> None:
    engine.apply_policy({"mix": 1.0})


def cut(engine: Engine) -> None:
    engine.cut_batches(2)


@pytest.mark.parametrize("change", [swap, prune, restore, another_phase, drop_a_term, cut])
def test_a_step_that_changed_takes_the_dynamic_path_and_says_so(change: Any) -> None:
    dynamic, graph = pair()
    for engine in (dynamic, graph):
        change(engine)
    assert graph.micro_step(batch_at(80)).loss == pytest.approx(dynamic.micro_step(batch_at(80)).loss, rel=1e-5)
    told = graph.path.take()
    assert told == {"replayed": 0, "dynamic": 1, "fallback": "the step changed since the capture"}
    assert graph.path.graph is None


def test_another_shape_takes_the_dynamic_path_for_that_step_only() -> None:
    _, graph = pair()
    graph.micro_step(batch_at(90, 5))
    graph.micro_step(batch_at(91))
    assert graph.path.take() == {"replayed": 1, "dynamic": 1}


def test_a_probe_fires_at_its_steps_and_costs_no_capture() -> None:
    dispatcher = Dispatcher(lambda probe, reason: None)
    engine = distilling(dispatcher=dispatcher)
    engine.capture_step(batch_at(0))
    engine.path.take()
    held = engine.path.graph
    program = library.build("builtin:rms", every=5)
    dispatcher.attach(1, "on_forward:student/blocks.0", program)
    for step in range(20):
        engine.micro_step(batch_at(step))
    assert engine.path.graph is held
    assert engine.path.take() == {"replayed": 16, "dynamic": 4}
    dispatcher.detach(1)
    for step in range(5):
        engine.micro_step(batch_at(step))
    assert engine.path.take() == {"replayed": 5, "dynamic": 0}


def test_what_a_graph_cannot_hold_is_refused_with_the_reason() -> None:
    engine = Engine({**SPEC, "kd": {"cka": 0.1}}, 7)
    with pytest.raises(RecurosError, match="no phase has begun"):
        engine.capture_step(batch_at(0))
    engine.begin(DISTIL)
    with pytest.raises(RecurosError, match="the term cka makes choices on the host"):
        engine.capture_step(batch_at(0))
    assert engine.graph_key(batch_at(0)) == ""
    engine = distilling()
    engine.cut_batches(4)
    with pytest.raises(RecurosError, match="batches are cut into 4 parts"):
        engine.capture_step(batch_at(0))


def test_a_replayed_step_that_is_not_finite_is_refused_and_the_state_comes_back() -> None:
    _, graph = pair()
    base = graph.capture()
    bad = batch_at(60)
    bad["x"][0, 0, 0] = math.inf
    with pytest.raises(RecurosError, match="replayed from a graph, and its window rolls back") as caught:
        graph.micro_step(bad)
    assert caught.value.code == "E7-LOSS"
    graph.restore(base)
    assert {k: v.id for k, v in graph.capture().items()} == {k: v.id for k, v in base.items()}


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("train", ["teacher", "student"])
def test_a_real_capture_replays_the_dynamic_step_within_the_tolerance(train: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip(f"needs an NVIDIA GPU and a CUDA build of torch; this is {torch.__version__}")
    spec = {**SPEC, "device": "cuda:0"}
    engines = [Engine(spec, 7), Engine(spec, 7)]
    for engine in engines:
        engine.begin(TEACH if train == "teacher" else DISTIL)
    before = engines[1].digest()
    engines[1].capture_step(batch_at(0))
    assert engines[1].digest() == before, "a capture moves nothing"
    for step in range(10):
        one, other = (engine.micro_step(batch_at(step)) for engine in engines)
        assert other.loss == pytest.approx(one.loss, rel=1e-3)
    assert replayed(engines[1]) == 10
    assert torch.allclose(flat(engines[0], train), flat(engines[1], train), rtol=1e-2, atol=1e-3)


# --- the learner's side of the driver


class FakeGpu:
    """The device server's answers, decided by the real graph driver as on a device."""

    def __init__(self, steady: int = 1) -> None:
        self.caps = {"gpu": 3}
        self.graphs = GraphDriver(steady)
        self.leases: list[int] = []

    def call(self, method: str, **columns: Any) -> dict[str, Any]:
        if method == "gpu.ran":
            self.graphs.report(columns["key"], columns["facts"])
            return {}
        self.leases.append(columns["bytes"])
        return {"granted": columns["bytes"], **self.graphs.plan(columns["key"])}


def windows(engine: Engine, driver: Driver, count: int) -> list[dict[str, Any]]:
    told = []
    for window in range(count):
        driver.before(engine, batch_at(window))
        for step in range(3):
            engine.micro_step(batch_at(10 * window + step))
        told.append(driver.after(engine))
    return told


def test_the_driver_captures_a_steady_step_and_lets_go_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    engine, driver = distilling(), Driver(gpu)  # type: ignore[arg-type] # of a kernel session it uses these two
    monkeypatch.setattr(Engine, "device", property(lambda self: AlmostCuda()), raising=False)
    assert windows(engine, driver, 3) == [{}, {"replayed_steps": 3}, {"replayed_steps": 3}]
    assert set(gpu.leases) == {engine.state_bytes}
    engine.swap("ema")
    assert windows(engine, driver, 3) == [{}, {"replayed_steps": 3}, {"replayed_steps": 3}]
    assert gpu.graphs.counts == {"captures": 2, "replayed_steps": 12, "dynamic_steps": 6, "fallbacks": 1}


def test_a_capture_that_fails_leaves_the_window_on_the_dynamic_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Engine, batch: Any) -> None:
        raise RecurosError("E1-NO", "the step cannot be captured: operation not permitted when stream is capturing")

    gpu = FakeGpu()
    engine, driver = distilling(), Driver(gpu)  # type: ignore[arg-type]
    monkeypatch.setattr(Engine, "device", property(lambda self: AlmostCuda()), raising=False)
    monkeypatch.setattr(Engine, "capture_step", fail)
    assert windows(engine, driver, 4) == [{}] * 4
    assert gpu.graphs.counts["captures"] == 0
    assert gpu.graphs.counts["dynamic_steps"] == 12
    assert "not permitted" in gpu.graphs.reason


def test_on_the_host_memory_is_leased_when_it_changes_and_no_step_is_captured() -> None:
    gpu = FakeGpu()
    engine, driver = distilling(), Driver(gpu)  # type: ignore[arg-type]
    assert windows(engine, driver, 4) == [{}] * 4
    assert gpu.leases == [engine.state_bytes]
    assert gpu.graphs.counts["captures"] == 0


def test_on_the_host_a_window_does_not_wait_for_a_device_server_that_is_restarted() -> None:
    class Restarting(FakeGpu):
        down = "E75-AGAIN"

        def call(self, method: str, **columns: Any) -> dict[str, Any]:
            if self.down:
                raise RecurosError(self.down, "gpu is dead")
            return super().call(method, **columns)

    gpu = Restarting()
    engine, driver = distilling(), Driver(gpu)  # type: ignore[arg-type]
    assert windows(engine, driver, 2) == [{}, {}]
    gpu.down = "E6-ADMIT"
    with pytest.raises(RecurosError, match="gpu is dead"):
        windows(engine, driver, 1)
    gpu.down = ""
    windows(engine, driver, 2)
    assert gpu.leases == [engine.state_bytes]
