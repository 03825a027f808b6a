"""The student: adapters that act one at a time, a real model of transformers, a real tokenizer, a deterministic router."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from nexus.model.finite import first_not_finite
from nexus.model.router import BUCKETS, Router, features
from nexus.model.student import NexusStudent
from nexus.model.tokenizer import byte_tokenizer
from syscalls.errors import RecurosError
from tests.unit import nexus_support as make
from tests.unit.nexus_support import one_thread  # noqa: F401

IDS = torch.tensor([[104, 105, 32, 200], [1, 2, 3, 4]])


def test_an_adapter_that_was_just_added_changes_nothing() -> None:
    student = make.student(())
    before = student(IDS).logits
    student.add_adapter("new", 7)
    student.set_adapter("new")
    assert torch.equal(student(IDS).logits, before)


def test_adapters_act_independently() -> None:
    student = make.student()
    plain = student(IDS).logits
    student.set_adapter("code")
    code = student(IDS).logits
    with torch.no_grad():
        for parameter in student.adapter_parameters("sort"):
            parameter.fill_(float("nan"))
    assert torch.equal(student(IDS).logits, code)
    assert not torch.equal(code, plain)
    student.set_adapter(None)
    assert torch.equal(student(IDS).logits, plain)
    student.set_adapter("sort")
    assert student(IDS).logits.isnan().any()


def test_training_an_adapter_reaches_nothing_else() -> None:
    student = make.student()
    student.requires_grad_(False)
    for parameter in student.adapter_parameters("code"):
        parameter.requires_grad_(True)
    student.set_adapter("code")
    student(IDS).logits.square().mean().backward()
    touched = {name for name, p in student.named_parameters() if p.grad is not None}
    assert touched == {name for name, _ in student.named_parameters() if name.startswith("adapters.code_adapter.")}
    everything = {id(p) for p in student.parameters()}
    parts = [student.backbone_parameters(), *(student.adapter_parameters(n) for n in student.adapter_names)]
    assert sum(len(part) for part in parts) == len(everything) == len({id(p) for part in parts for p in part})


def test_an_adapter_computes_its_formula() -> None:
    student = make.student(("a",))
    part = student.adapter("a").at[1]
    hidden = torch.randn(3, 5, student.width)
    inner = hidden @ part.down.T + part.bias
    wanted = hidden + (inner * torch.sigmoid(inner)) @ part.up.T
    torch.testing.assert_close(part(hidden), wanted)


def test_hidden_states_are_those_behind_the_adapters() -> None:
    student = make.student(("a",))
    student.set_adapter("a")
    seen: list[torch.Tensor] = []
    handle = student.layers[0].register_forward_hook(lambda _m, _a, out: seen.append(out))
    states = student(IDS, output_hidden_states=True).hidden_states
    handle.remove()
    assert len(states) == len(student.layers) + 1
    assert torch.equal(states[1], seen[0])
    student.set_adapter(None)
    assert not torch.equal(student(IDS, output_hidden_states=True).hidden_states[1], states[1])


def test_a_copy_has_its_own_switch() -> None:
    student = make.student()
    student.set_adapter("code")
    code = student(IDS).logits
    other = copy.deepcopy(student)
    student.set_adapter(None)
    assert torch.equal(other(IDS).logits, code)
    assert not torch.equal(student(IDS).logits, code)


def test_it_saves_and_loads_as_any_model_of_transformers(tmp_path: Path) -> None:
    student = make.student()
    student.save_pretrained(tmp_path)
    other = NexusStudent.from_pretrained(tmp_path)
    for name in (None, "code", "sort", "canary"):
        student.set_adapter(name)
        other.set_adapter(name)
        assert torch.equal(student(IDS).logits, other(IDS).logits)


def test_it_generates_with_a_cache_what_it_generates_without() -> None:
    student = make.student()
    student.set_adapter("code")
    made = student.generate(IDS[:1], attention_mask=torch.ones(1, 4), max_new_tokens=12, do_sample=False)
    ids = IDS[:1]
    for _ in range(12):
        ids = torch.cat([ids, student(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(made, ids)


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_it_goes_around_models_of_other_families(family: str) -> None:
    shape = {"vocab_size": 259, "bos_token_id": 257, "eos_token_id": 258}
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **shape))
    else:
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, **shape)
        )
    model.eval()
    student = NexusStudent.around(model)
    assert torch.equal(student(IDS).logits, model(IDS).logits)
    student.add_adapter("a", 3, layers=[1])
    student.set_adapter("a")
    torch.nn.init.ones_(student.adapter("a").at[1].up)
    assert not torch.equal(student(IDS).logits, model(IDS).logits)


def test_weights_come_from_the_seed_and_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, two = make.student(seed=3), make.student(seed=3)
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    alone = make.student(("sort",), seed=3)
    alone.add_adapter("late", 4)
    one.add_adapter("late", 4)
    assert torch.equal(alone.adapter("late").at[0].down, one.adapter("late").at[0].down)


def test_a_basis_takes_the_first_channels() -> None:
    student = make.student(())
    rows = torch.randn(2, student.width)
    adapter = student.add_adapter("a", 5, layers=[1], basis={1: rows})
    assert torch.equal(adapter.at[1].down[:2], rows)
    with pytest.raises(RecurosError, match=r"\[at most 1, 32\]"):
        student.add_adapter("b", 1, basis={1: rows})


@pytest.mark.parametrize(
    ("name", "rank", "layers", "code"),
    [
        ("../up", 4, None, "E2-USAGE"),
        ("Upper", 4, None, "E2-USAGE"),
        ("code", 4, None, "E2-USAGE"),
        ("a", 0, None, "E2-LIMIT"),
        ("a", True, None, "E2-LIMIT"),
        ("a", 4, [], "E2-LIMIT"),
        ("a", 4, [2], "E2-LIMIT"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(name: str, rank: int, layers: list[int] | None, code: str) -> None:
    with pytest.raises(RecurosError) as caught:
        make.student(("code",)).add_adapter(name, rank, layers=layers)
    assert caught.value.code == code


def test_the_byte_tokenizer_is_bytes_and_survives_its_directory(tmp_path: Path) -> None:
    byte_tokenizer(64).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("héllo\n\t\x00", "<|eos|> is text", "  two  spaces , kept .", "漢字 🙂"):
        ids = tokenizer(text).input_ids
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257, 258)
    assert len(tokenizer) == 259


def test_the_router_chooses_by_wins_and_is_the_same_again(tmp_path: Path) -> None:
    router = make.router()
    assert router.route("class B: def g(): import sys").capability == "code"
    assert router.route("5 5 1 0").capability == "sort"
    router.save(tmp_path / "r")
    again, loaded = make.router(), Router.load(tmp_path / "r")
    for other in (again, loaded):
        assert torch.equal(other.weight, router.weight)
        assert other.route("x 1") == router.route("x 1")


def test_the_router_solves_ridge_regression() -> None:
    texts = [f"text {i} {'ab' if i % 2 else 'ba'}" for i in range(9)]
    wins = [{"a": i % 2 * 0.7, "b": i / 9, "": 0.2} for i in range(9)]
    router = Router.fit(texts, wins)
    matrix = torch.stack([features(t) for t in texts]).double()
    target = torch.tensor([[0.2, w["a"], w["b"]] for w in wins], dtype=torch.float64)
    weight, bias = router.weight.double(), router.bias.double()
    error = matrix @ weight.T + bias - target
    torch.testing.assert_close(error.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    gradient = error.T @ matrix + 1e-2 * 9 * weight
    assert gradient.abs().max() < 1e-5


def test_the_bare_backbone_wins_where_it_scores_higher() -> None:
    router = Router.fit(["aaaa", "bbbb"], [{"": 1.0, "x": 0.1}, {"": 0.1, "x": 1.0}])
    assert router.route("aaaa").capability is None
    assert router.route("bbbb").capability == "x"


def test_features_are_bounded_and_of_length_one() -> None:
    assert features("").norm() == 0
    assert features("\ud800").shape == (BUCKETS,)
    torch.testing.assert_close(features("x" * 10**6).norm(), torch.tensor(1.0))
    assert functional.cosine_similarity(features("def f():"), features("def g():"), dim=0) > 0.5


@pytest.mark.parametrize(
    ("texts", "wins", "code"),
    [
        ([], [], "E2-USAGE"),
        (["a"], [], "E2-USAGE"),
        (["a"], [{"x": float("nan")}], "E2-DATA"),
        (["a"], [{"../x": 1.0}], "E2-USAGE"),
        (["a"], [{"canary": 1.0}], "E5-DENIED"),
    ],
)
def test_a_router_that_cannot_be_fitted_is_refused(texts: list[str], wins: list[dict[str, float]], code: str) -> None:
    with pytest.raises(RecurosError) as caught:
        Router.fit(texts, wins, gated={"canary"})
    assert caught.value.code == code


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_what_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    good = torch.arange(-50.0, 50.0).to(dtype)
    assert first_not_finite({"a": good, "empty": good[:0], "whole": torch.arange(3)}) == ""
    for value in (float("nan"),) if dtype == torch.float8_e4m3fn else (float("nan"), float("inf"), float("-inf")):
        for at in (0, 37, 99):
            bad = good.clone()
            bad[at] = torch.tensor(value).to(dtype)
            assert first_not_finite({"a": good, "b": bad.view(10, 10)}) == "b"
