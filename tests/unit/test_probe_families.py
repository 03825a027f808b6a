"""Hugging Face models of several families, from configs: every hook fires by glob, attention says its path, no bit changes."""

import json

import pytest
import torch
from torch import nn

from probes import isa, library
from probes.hooks import Dispatcher
from probes.jit import Compiler

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {**SMALL, "vocab_size": 40, "max_position_embeddings": 16}
# Dropout stays on where it does not reach the attention's output: steps then draw random numbers that no probe may shift.
CONFIGS = {
    "llama": lambda layers: transformers.LlamaConfig(
        **TOKENS | {"num_hidden_layers": layers, "num_key_value_heads": 1}
    ),
    "gpt2": lambda layers: transformers.GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    ),
    "bert": lambda layers: transformers.BertConfig(
        **TOKENS | {"num_hidden_layers": layers}, num_labels=5, attention_probs_dropout_prob=0.0
    ),
    "vit": lambda layers: transformers.ViTConfig(
        **SMALL | {"num_hidden_layers": layers}, image_size=8, patch_size=2, num_channels=1, num_labels=5
    ),
}
AUTO = {
    "llama": "AutoModelForCausalLM",
    "gpt2": "AutoModelForCausalLM",
    "bert": "AutoModelForSequenceClassification",
    "vit": "AutoModelForImageClassification",
}
# A block, its attention, and the parameters of its feed-forward part, by the names that these models have.
GLOBS = {
    "llama": ("model.layers.*", "model.layers.*.self_attn", "model.layers.*.mlp.**"),
    "gpt2": ("transformer.h.*", "transformer.h.*.attn", "transformer.h.*.mlp.**"),
    "bert": ("bert.encoder.layer.*", "bert.encoder.layer.*.attention.self", "bert.encoder.layer.*.output.**"),
    "vit": ("vit.layers.*", "vit.layers.*.attention", "vit.layers.*.mlp.**"),
}
STEPS = 3
FAMILIES = list(CONFIGS)


@pytest.fixture(scope="module")
def compiler():
    made = Compiler()
    yield made
    made.close()


def model_of(family, layers, implementation="sdpa"):
    torch.manual_seed(layers)
    auto = getattr(transformers, AUTO[family])
    return auto.from_config(CONFIGS[family](layers), attn_implementation=implementation)


def batch_of(family, step):
    generator = torch.Generator().manual_seed(step)
    if family == "vit":
        return {"pixel_values": torch.rand(6, 1, 8, 8, generator=generator)}
    ids = torch.randint(0, 40, (6, 9), generator=generator)
    return {"input_ids": ids} | ({} if family in ("llama", "gpt2") else {"attention_mask": torch.ones_like(ids)})


def twelve(family):
    """Twelve probes over every kind of hook."""
    block, attention, feed_forward = GLOBS[family]
    return {
        "rms": f"on_forward:{block}",
        "nan-watch": f"on_forward:teacher/{block}",
        "dead-units": f"on_forward:{block}.**",
        "deep-knn": f"on_forward:{block}",
        "attn-entropy": f"on_attention:{attention}",
        "gradnorm": f"on_grad:{feed_forward}",
        "gradnoise": f"on_grad:{block}.**",
        "movement": "on_grad:**",
        "cka": "on_kd_step",
        "ece": "on_kd_step",
        "disagreement": "on_kd_step",
        "pruned": "on_prune",
    }


def distil(family, dispatcher=None, probes=(), compiler=None):
    """A few steps of distillation; every bit that they leave behind, and what was attached."""
    student, teacher = model_of(family, 2), model_of(family, 3)
    student.train()
    teacher.eval()
    programs = {}
    if dispatcher is not None:
        dispatcher.install("student", student)
        dispatcher.install("teacher", teacher)
        for number, (name, hook) in enumerate(dict(probes).items(), 1):
            if compiler is not None and not compiler.unavailable:
                compiler.compile(isa.encode(library.compile(f"builtin:{name},every=1")))
            programs[name] = library.build(f"builtin:{name}", every=1, compiler=compiler)
            assert dispatcher.attach(number, hook, programs[name])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    torch.manual_seed(5)
    for step in range(STEPS):
        batch = batch_of(family, step)
        if dispatcher is not None:
            dispatcher.step(step)
        with torch.no_grad():
            given = teacher(**batch, output_hidden_states=True)
        out = student(**batch, output_hidden_states=True)
        labels = given.logits.argmax(-1)
        pairs = [
            ("1:1", out.hidden_states[1], given.hidden_states[1]),
            ("2:3", out.hidden_states[2], given.hidden_states[3]),
        ]
        if dispatcher is not None:
            dispatcher.fire(
                "on_kd_step", student_logits=out.logits.detach(), teacher_logits=given.logits, labels=labels,
                hidden=[(name, s.detach(), t) for name, s, t in pairs],
            )  # fmt: skip
        logits = out.logits.flatten(0, -2)
        loss = nn.functional.cross_entropy(logits, labels.flatten()) + (pairs[1][1] - pairs[1][2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dispatcher is not None:
            name, weight = next((n, p) for n, p in student.named_parameters() if p.dim() == 2)
            dispatcher.fire("on_prune", pruned=[(name, (weight.abs() > 0.01).float(), weight)], sparsity=0.1)
            dispatcher.fire("on_snapshot")
    state = [s for held in optimizer.state.values() for s in held.values()]
    return [t.detach().clone() for t in (*student.parameters(), *state, torch.get_rng_state())], programs


@pytest.mark.parametrize("family", FAMILIES)
def test_twelve_probes_on_every_kind_of_hook_fire_and_change_no_bit(family, compiler):
    evicted = []
    dispatcher = Dispatcher(on_evict=lambda probe, reason: evicted.append((probe, reason)))
    plain, _ = distil(family)
    probed, programs = distil(family, dispatcher, twelve(family), compiler)
    assert evicted == []
    assert len(plain) == len(probed)
    assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=True))
    rows = {row["program"].removeprefix("builtin:"): row for row in dispatcher.stats()}
    assert set(rows) == set(twelve(family))
    assert all(row["fired"] >= STEPS and row["sites"] for row in rows.values())
    if not compiler.unavailable:
        assert {program.backend for program in programs.values()} == {"jit"}
    for program in programs.values():
        found = program.summary()
        json.dumps(found, allow_nan=False)
        assert found["ran"]["skipped"] == 0
    assert len(programs["rms"].summary()["layers"]) == 2
    assert len(programs["cka"].summary()["pairs"]) == 2
    assert all(pair["cka"] is not None for pair in programs["cka"].summary()["pairs"].values())
    assert programs["nan-watch"].summary()["events"] == 0
    assert len(programs["movement"].summary()["parameters"]) > 10


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_states_the_path_it_was_read_by_and_agrees_with_the_model(family, implementation):
    evicted = []
    dispatcher = Dispatcher(on_evict=lambda probe, reason: evicted.append((probe, reason)))
    model = model_of(family, 2, implementation).eval()
    dispatcher.install("student", model)
    sites = dispatcher.attach(1, f"on_attention:{GLOBS[family][1]}", library.build("builtin:attn-entropy", every=1))
    assert len(sites) == 2
    dispatcher.step(0)
    batch = batch_of(family, 0)
    with torch.no_grad():
        model(**batch)
        with dispatcher.quiet():
            model.set_attn_implementation("eager")
            expected = model(**batch, output_attentions=True).attentions
    assert evicted == []
    path = "eager" if implementation == "eager" else "recompute"
    assert {row["path"] for row in dispatcher.describe() if row["site"] in sites} == {path}
    layers = dispatcher.maps(1)["summary"]["layers"]
    assert len(layers) == 2
    for layer, probs in zip(layers.values(), expected, strict=True):
        assert layer["path"] == path
        entropy = torch.special.entr(probs.double()).sum(-1).mean(dim=(0, 2))
        assert layer["heads"] == pytest.approx(entropy.tolist(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hook_that_matches_nothing_in_a_family_names_what_there_is(family):
    dispatcher = Dispatcher(on_evict=lambda *_: None)
    dispatcher.install("student", model_of(family, 2))
    with pytest.raises(Exception, match="E4-HOOK") as refused:
        dispatcher.attach(1, "on_attention:blocks.*.attn", library.build("builtin:attn-entropy"))
    assert "nearest" in str(refused.value) or "layer" in str(refused.value) or ".h." in str(refused.value)
