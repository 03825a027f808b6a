"""What a program's contract is made of: the sizes that a hook has shown, or that its module declares."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kernel.sched import Reservation, admit_probe
from probes import isa, sizes
from probes.hooks import Dispatcher
from servers.models.patch import PatchConfig, PatchTransformer
from syscalls import limits
from syscalls.errors import RecurosError


class Fused(nn.Module):
    """Attention that returns no probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).reshape(*x.shape[:2], 2, 4).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class FusedAttention(Fused):
    """Named so that it is taken for what it is."""


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(on_evict=lambda probe, reason: None)


def step(dispatcher: Dispatcher, model: nn.Module, *inputs: torch.Tensor) -> None:
    dispatcher.step(0)
    model(*inputs)


def test_before_the_first_firing_only_what_a_module_declares_is_known(dispatcher: Dispatcher) -> None:
    dispatcher.install("student", PatchTransformer(PatchConfig(layers=2, width=16, heads=2, mlp_ratio=3)))
    assert dispatcher.match("on_forward:student/**.fc1") == (
        ["on_forward:student/blocks.0.fc1", "on_forward:student/blocks.1.fc1"],
        {"width": 48},
        0,
    )
    assert dispatcher.match("on_forward:student/blocks.*")[1] == {}, (
        "a block declares nothing: the reference is assumed"
    )
    assert dispatcher.seen("on_forward", "student") == {}


def test_the_first_firing_shows_every_size_and_costs_nothing_afterwards(dispatcher: Dispatcher) -> None:
    model = PatchTransformer(PatchConfig(layers=2, width=16, heads=2, mlp_ratio=3))
    dispatcher.install("student", model)
    step(dispatcher, model, torch.rand(5, 8, 8))
    assert dispatcher.match("on_forward:student/blocks.*")[1] == {"rows": 5 * 16, "width": 16}
    assert dispatcher.match("on_forward:student/**")[1] == {"rows": 80, "width": 48}, "the largest of all matches"
    assert dispatcher.match("on_forward:student/head")[1] == {"rows": 5, "width": 10}
    assert dispatcher.seen("on_forward", "student") == {"rows": 80, "width": 48}
    assert all(site.programs == () for site in dispatcher._by_role["student"]["on_forward"])
    with dispatcher.quiet():
        model(torch.rand(50, 8, 8))
    assert dispatcher.match("on_forward:student/head")[1] == {"rows": 5, "width": 10}, "an evaluation is no step"


def test_attention_sizes_and_the_price_of_the_path(dispatcher: Dispatcher) -> None:
    model = PatchTransformer(PatchConfig(layers=1, width=16, heads=2))
    dispatcher.install("student", model)
    unseen = dispatcher.match("on_attention")[2]
    assert unseen > 0
    step(dispatcher, model, torch.rand(5, 8, 8))
    _, found, units = dispatcher.match("on_attention:student/**")
    assert found == {"batch": 5, "heads": 2, "queries": 16, "keys": 16}
    assert units == 5 * 2 * 16 * 16 < unseen, "eager: rows are checked to sum to 1"
    fused = nn.Sequential(FusedAttention())
    dispatcher.install("student", fused)
    step(dispatcher, fused, torch.rand(3, 7, 8))
    _, found, units = dispatcher.match("on_attention:student/**")
    assert found == {"batch": 3, "heads": 2, "queries": 7, "keys": 7}
    assert units > 16 * 3 * 2 * 7 * 7, "recomputed: projections, scores, and the comparison with the output"


def test_gradients_have_the_sizes_of_their_parameters(dispatcher: Dispatcher) -> None:
    dispatcher.install("student", PatchTransformer(PatchConfig(layers=1, width=16, heads=2)))
    assert dispatcher.match("on_grad:student/head.weight")[1] == {"rows": 10, "cols": 256}
    assert dispatcher.match("on_grad:student/head.*")[1] == {"rows": 10, "cols": 256}
    assert dispatcher.match("on_grad:student/head.bias")[1] == {"rows": 1, "cols": 10}


def test_a_hook_that_matches_nothing_says_what_there_is(dispatcher: Dispatcher) -> None:
    dispatcher.install("student", nn.Sequential(nn.Linear(4, 4)))
    for hook, says in (
        ("on_forward:student/blocks.*", "nearest: 0"),
        ("on_attention:student/**", "no on_attention site"),
        ("on_moon:x", "hooks: on_"),
        ("on_forward:teacher/**", "no teacher is loaded"),
    ):
        with pytest.raises(RecurosError, match=says) as refused:
            dispatcher.match(hook)
        assert refused.value.code == "E4-HOOK"


def test_scalars_vectors_and_empty_outputs_have_sizes_of_at_least_one() -> None:
    for shape, rows, width in (((), 1, 1), ((7,), 1, 7), ((0, 4), 1, 4), ((2, 3, 4), 6, 4), ((2, 0), 1, 1)):
        assert sizes.of_output(torch.zeros(shape)) == {"rows": rows, "width": width}
    assert sizes.of_matrix(torch.zeros(3, 4, 5)) == {"rows": 3, "cols": 20}
    assert sizes.of_matrix(torch.zeros(())) == {"rows": 1, "cols": 1}
    assert sizes.largest([]) == {}
    assert sizes.largest([{"rows": 3, "width": 9}, {"rows": 5}]) == {"rows": 5}


def test_every_symbol_that_sizes_tell_is_one_of_the_hooks() -> None:
    known = set(isa.REFERENCE_DIMS)
    assert set(sizes.of_output(torch.zeros(2, 2))) <= known
    assert set(sizes.of_matrix(torch.zeros(2, 2))) <= known


def test_a_copied_model_does_not_show_its_sizes_as_the_live_one(dispatcher: Dispatcher) -> None:
    model = PatchTransformer(PatchConfig(layers=1, width=16, heads=2))
    dispatcher.install("student", model)
    twin = copy.deepcopy(model)
    dispatcher.step(0)
    twin(torch.rand(9, 8, 8))
    assert dispatcher.seen("on_forward", "student") == {}


# --- the scheduler's word on a probe ---------------------------------------------------------------------------------------

MS = 1_000_000
WINDOW = Reservation("replay", 400 * MS, 1000 * MS, 1000 * MS)


@pytest.mark.parametrize(
    ("window_ms", "others_ms", "cost_ms", "admitted"),
    [
        (0, 0, 0, True),
        (300, 0, 100, True),
        (300, 0, 101, False),  # more than its share, and more than the budget
        (301, 0, 100, False),  # the window uses the rest
        (0, 60, 40, True),
        (0, 61, 40, False),
        (400, 0, 0, True),
        (401, 0, 0, False),
    ],
)
def test_a_probe_fits_its_share_and_the_budget_or_is_refused_with_the_reason(
    window_ms: int, others_ms: int, cost_ms: int, admitted: bool
) -> None:
    ok, witness = admit_probe(WINDOW, window_ms * MS, others_ms * MS, cost_ms * MS)
    assert ok is admitted
    assert witness["probe_ns"] == cost_ms * MS
    assert witness["budget_ns"] == WINDOW.budget_ns
    assert witness["share_max_ns"] == limits.PROBE_SHARE_MAX * WINDOW.budget_ns
    assert ("reason" in witness) is not admitted
