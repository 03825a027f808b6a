import copy
import gc
import json
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from probes import catalogue, library
from probes.helpers.subject import Subject
from probes.hooks import Dispatcher
from probes.maps import Array
from probes.program import Program
from servers.models.patch import PatchConfig, PatchTransformer
from syscalls.errors import RecurosError


class Count(Program):
    """Counts its firings and remembers where and when."""

    def __init__(self, every=1, act=None):
        self.name, self.every, self.act = "count", every, act
        self.held = Array(1)
        self.maps = {"held": self.held}
        self.seen = []

    def fire(self, context):
        self.held.add(0, 1)
        self.seen.append((context.step, context.site))
        if self.act:
            self.act(context)

    def summary(self):
        return {"count": self.held.values[0]}


def student(seed=0, layers=2):
    torch.manual_seed(seed)
    return PatchTransformer(PatchConfig(layers=layers, width=16, heads=2))


def images(seed=0):
    return torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def evicted():
    return []


@pytest.fixture
def dispatcher(evicted):
    return Dispatcher(on_evict=lambda probe_id, reason: evicted.append((probe_id, reason)))


def train(dispatcher, model, teacher, steps, after_step=lambda step: None):
    """A distillation loop; returns every bit that it leaves behind."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    labels = torch.tensor([1, 2, 3, 4])
    for step in range(steps):
        if dispatcher:
            dispatcher.step(step)
        optimizer.zero_grad()
        x = images(step) + 0.01 * torch.rand(4, 8, 8)  # draws from the global generator, as augmentation does
        with torch.no_grad():
            t_logits, t_hidden, _ = teacher(x, need_hidden=True)
        s_logits, s_hidden, _ = model(x, need_hidden=True)
        if dispatcher:
            pairs = [("blocks.0", s_hidden[1], t_hidden[2]), ("blocks.1", s_hidden[2], t_hidden[4])]
            dispatcher.fire("on_kd_step", student_logits=s_logits, teacher_logits=t_logits, labels=labels, hidden=pairs)
        kl = nn.functional.kl_div(s_logits.log_softmax(-1), t_logits.log_softmax(-1), log_target=True, reduction="sum")
        (nn.functional.cross_entropy(s_logits, labels) + kl).backward()
        optimizer.step()
        after_step(step)
    tensors = [*model.parameters(), *(s for p in optimizer.state.values() for s in p.values())]
    return [t.detach().clone() for t in tensors] + [torch.get_rng_state()]


GLOBS = {"on_forward": ":**", "on_grad": ":**", "on_attention": ":blocks.*.attn"}
HOOKS = {name: f"{(hook := builtin.hooks[0])}{GLOBS.get(hook, '')}" for name, builtin in catalogue.BUILTINS.items()}


def test_a_step_is_bit_identical_without_dispatcher_with_it_and_with_every_builtin_attached(dispatcher, evicted):
    def run(hosted, attached):
        torch.manual_seed(7)
        model, teacher = student(1), student(2, layers=4)
        if hosted:
            dispatcher.install("student", model)
            dispatcher.install("teacher", teacher)
        programs = []
        for probe_id, (name, hook) in enumerate(HOOKS.items() if attached else ()):
            prog = f"builtin:{name},windows=2" if hook == "on_snapshot" else f"builtin:{name}"
            programs.append(library.build(prog, every=1, subject=lambda: looked_at(dispatcher, model, teacher)))
            dispatcher.attach(probe_id, hook, programs[-1])

        def end_of_window(step):
            if hosted:
                mask = (model.head.weight.detach().abs() > 0.1).float()
                dispatcher.fire("on_prune", pruned=[("head.weight", mask, model.head.weight)], sparsity=0.5)
                dispatcher.fire("on_snapshot")
            for program in programs:
                program.worker.serve()
                program.land()

        return train(dispatcher if hosted else None, model, teacher, steps=6, after_step=end_of_window)

    plain, empty, probed = run(False, False), run(True, False), run(True, True)
    for a, b, c in zip(plain, empty, probed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert evicted == []
    assert all(row["fired"] >= 6 for row in dispatcher.stats())
    assert len(dispatcher.stats()) == len(library.SOURCES)
    for probe_id, name in enumerate(HOOKS):
        summary = dispatcher.maps(probe_id)["summary"]
        json.dumps(dispatcher.maps(probe_id), allow_nan=False)
        assert summary["ran"]["firings"] >= 6, name
        assert summary.get("status", "ok") == "ok", name


def looked_at(dispatcher, model, teacher):
    """The two models as a helper at a window's end sees them."""

    def forward(role, batch):
        logits = {"student": model, "teacher": teacher}[role](batch["x"])[0]
        return logits, batch["labels"]

    batch = {"x": images(3), "labels": torch.tensor([1, 2, 3, 4])}
    return Subject({"student": model, "teacher": teacher}, forward, batch, dispatcher.quiet)


def test_programs_fire_only_at_their_cadence_and_only_after_the_first_step(dispatcher):
    model = student()
    dispatcher.install("student", model)
    program = Count(every=3)
    assert dispatcher.attach(1, "on_forward:blocks.*", program) == [
        "on_forward:student/blocks.0",
        "on_forward:student/blocks.1",
    ]
    model(images())
    assert program.seen == []
    for step in range(7):
        dispatcher.step(step)
        model(images())
    assert program.seen == [(s, f"student/blocks.{b}") for s in (0, 3, 6) for b in (0, 1)]


def test_a_probe_attached_mid_step_fires_in_that_step_when_due(dispatcher):
    dispatcher.step(50)
    program, late = Count(every=25), Count(every=20)
    dispatcher.attach(1, "on_kd_step", program)
    dispatcher.attach(2, "on_kd_step", late)
    assert dispatcher.wants("on_kd_step")
    assert not dispatcher.wants("on_snapshot")
    dispatcher.fire("on_kd_step")
    assert (len(program.seen), len(late.seen)) == (1, 0)


def test_a_raising_probe_is_evicted_everywhere_reported_once_and_training_goes_on(dispatcher, evicted):
    def act(context):
        if context.step == 2:
            raise ZeroDivisionError("bad probe")

    model, healthy = student(), Count()
    dispatcher.install("student", model)
    dispatcher.attach(1, "on_forward:blocks.*", Count(act=act))
    dispatcher.attach(2, "on_forward:blocks.*", healthy)
    for step in range(4):
        dispatcher.step(step)
        assert torch.isfinite(model(images())[0]).all()
    assert evicted == [(1, "ZeroDivisionError: bad probe")]
    bad, good = dispatcher.stats()
    assert (bad["evicted"], bad["fired"], good["evicted"], good["fired"]) == ("ZeroDivisionError: bad probe", 5, "", 8)
    assert dispatcher.maps(1)["summary"] == {"count": 5}  # readable after the fault, until it is detached
    assert torch.is_grad_enabled()


def test_a_probe_that_writes_is_evicted_and_taints_the_window(dispatcher, evicted):
    model = student()
    dispatcher.install("student", model)
    dispatcher.attach(3, "on_forward:head", Count(act=lambda context: context.tensor("output").zero_()))
    dispatcher.step(0)
    model(images())
    assert "wrote into output at on_forward:student/head" in dispatcher.tainted
    assert evicted == [(3, dispatcher.tainted)]


def test_a_program_sees_detached_tensors_and_no_autograd(dispatcher, evicted):
    def act(context):
        x = context.tensor("output")
        assert not x.requires_grad
        assert not (x * 2).requires_grad
        assert not torch.is_grad_enabled()

    model = student()
    dispatcher.install("student", model)
    dispatcher.attach(1, "on_forward:**", Count(act=act))
    dispatcher.step(0)
    model(images())[0].sum().backward()
    assert evicted == []


@pytest.mark.parametrize("hook", ["on_kd_step", "on_snapshot", "on_prune"])
def test_event_hooks_fire_at_one_site_of_their_own_name(dispatcher, hook):
    program = Count()
    assert dispatcher.attach(1, hook, program) == [hook]
    assert hook in dispatcher.sites()
    dispatcher.step(0)
    dispatcher.fire(hook, ids=torch.arange(3))
    assert program.seen == [(0, hook)]


def test_a_firing_without_a_view_that_the_program_reads_is_skipped_and_counted(dispatcher, evicted):
    dispatcher.attach(1, "on_kd_step", library.build("builtin:disagreement", every=1))
    dispatcher.step(0)
    dispatcher.fire("on_kd_step", student_logits=torch.ones(2, 3))
    summary = dispatcher.maps(1)["summary"]
    assert (summary["rows"], summary["ran"]["skipped"], summary["ran"]["firings"]) == (0, 1, 0)
    assert evicted == []


def test_no_program_fires_inside_quiet(dispatcher):
    model, program = student(), Count()
    dispatcher.install("student", model)
    dispatcher.attach(1, "on_forward:head", program)
    dispatcher.step(0)
    with dispatcher.quiet():
        model(images())
        assert not dispatcher.wants("on_kd_step")
    assert program.seen == []
    model(images())
    assert len(program.seen) == 1


def test_a_copied_model_does_not_fire_the_originals_probes(dispatcher):
    model, program = student(), Count()
    dispatcher.install("student", model)
    dispatcher.attach(1, "on_forward:head", program)
    dispatcher.step(0)
    ema = copy.deepcopy(model)
    ema(images())
    assert program.seen == []


def test_reinstalling_after_a_swap_keeps_programs_and_resolves_their_globs_again(dispatcher):
    first, second, program = student(), student(1, layers=4), Count()
    dispatcher.install("student", first)
    dispatcher.install("teacher", second)
    dispatcher.attach(1, "on_forward:blocks.*", program)
    dispatcher.step(0)
    first(images())
    dispatcher.install("student", second)
    dispatcher.install("teacher", first)
    dispatcher.step(1)
    first(images())
    second(images())
    assert [site for step, site in program.seen if step == 1] == [f"student/blocks.{i}" for i in range(4)]
    assert dispatcher.maps(1)["installs"] == 1
    assert len(dispatcher.stats()[0]["sites"]) == 4


def test_a_glob_that_matches_nothing_after_a_swap_stays_attached_without_sites(dispatcher):
    dispatcher.install("student", student(layers=2))
    dispatcher.attach(1, "on_forward:blocks.1", Count())
    dispatcher.install("student", student(layers=1))
    assert dispatcher.stats()[0]["sites"] == []
    dispatcher.install("student", student(layers=2))
    assert dispatcher.stats()[0]["sites"] == ["on_forward:student/blocks.1"]


def test_uninstalling_leaves_no_hook_behind(dispatcher):
    model, program = student(), Count()
    dispatcher.install("student", model)
    dispatcher.attach(1, "on_forward:**", program)
    dispatcher.attach(2, "on_grad:**", program)
    dispatcher.uninstall("student")
    dispatcher.step(0)
    model(images())[0].sum().backward()
    assert program.seen == []
    assert all(not layer._forward_hooks for layer in model.modules())


def hooks_on(model):
    """How many of PyTorch's hooks there are on a model and its parameters."""
    layers = sum(len(layer._forward_hooks) for layer in model.modules())
    return layers + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


def test_pytorchs_hooks_are_on_the_sites_of_due_programs_and_only_in_their_steps(dispatcher):
    model = student()
    other = model.head.register_forward_hook(lambda *_: None)  # somebody else's stays, and comes later
    dispatcher.install("student", model)
    dispatcher.step(0)
    model(images())  # sites tell their sizes
    dispatcher.step(1)
    assert hooks_on(model) == 1
    program = Count(every=3)
    dispatcher.attach(1, "on_forward:student/head", program)
    dispatcher.attach(2, "on_grad:student/head.*", Count(every=6))
    held = []
    for step in range(2, 8):
        dispatcher.step(step)
        held.append(hooks_on(model) - 1)
        model(images())
    assert held == [0, 1, 0, 0, 1 + 2, 0]
    assert program.seen == [(3, "student/head"), (6, "student/head")]
    dispatcher.step(9)
    assert next(iter(model.head._forward_hooks)) != other.id  # the layer's own output is read before others touch it
    dispatcher.detach(1)
    dispatcher.step(12)
    assert hooks_on(model) - 1 == 2
    dispatcher.uninstall("student")
    assert hooks_on(model) == 1


def test_unknown_hooks_and_globs_say_what_exists(dispatcher):
    dispatcher.install("student", student())
    with pytest.raises(RecurosError, match=r"blocks\.0\.attn") as caught:
        dispatcher.attach(1, "on_attention:block.0.attn", Count())
    assert caught.value.code == "E4-HOOK"
    with pytest.raises(RecurosError, match="no teacher is loaded"):
        dispatcher.attach(1, "on_forward:teacher/**", Count())
    with pytest.raises(RecurosError, match="event hook"):
        dispatcher.fire("on_forward")
    assert dispatcher.stats() == []


def test_maps_of_a_detached_probe_are_freed_after_one_step(dispatcher):
    program = Count()
    dispatcher.attach(1, "on_kd_step", program)
    dispatcher.step(0)
    dispatcher.fire("on_kd_step")
    dispatcher.detach(1)
    dispatcher.fire("on_kd_step")
    assert dispatcher.maps(1)["summary"] == {"count": 1}
    alive = weakref.ref(program)
    del program
    dispatcher.step(1)
    gc.collect()
    assert alive() is None
    for call in (dispatcher.maps, dispatcher.detach):
        with pytest.raises(RecurosError) as caught:
            call(1)
        assert caught.value.code == "E4-NOENT"


def test_probes_are_bounded_and_ids_unique(dispatcher):
    for probe_id in range(64):
        dispatcher.attach(probe_id, "on_kd_step", Count())
    for probe_id, says in ((1, "in use"), (64, "limit is 64")):
        with pytest.raises(RecurosError, match=says) as caught:
            dispatcher.attach(probe_id, "on_kd_step", Count())
        assert caught.value.code == "E2-LIMIT"


def test_a_thousand_attach_detach_cycles_leave_nothing_attached(dispatcher):
    model = student()
    dispatcher.install("student", model)
    before = [site.programs for site in dispatcher._all_sites()]
    for cycle in range(1000):
        dispatcher.attach(cycle, "on_forward:**", Count())
        dispatcher.detach(cycle)
        dispatcher.step(cycle)
    assert dispatcher.stats() == []
    assert not dispatcher._detached
    assert [site.programs for site in dispatcher._all_sites()] == before


def test_maps_can_be_put_back(dispatcher):
    for probe_id in (1, 2):
        dispatcher.attach(probe_id, "on_kd_step", library.build("builtin:ece", every=1))
    dispatcher.step(0)
    dispatcher.fire("on_kd_step", student_logits=torch.randn(8, 3), labels=torch.zeros(8, dtype=torch.long))
    document = json.loads(json.dumps(dispatcher.maps(1)))
    dispatcher.detach(2)
    dispatcher.attach(3, "on_kd_step", library.build("builtin:ece", every=1))
    dispatcher.restore(3, document)
    restored = dispatcher.maps(3)
    for found in (document, restored):
        del found["summary"]["ran"]
    assert restored == {**document, "installs": 0}


def test_gradients_fire_once_per_trainable_parameter(dispatcher):
    model, program = student(), library.build("builtin:gradnorm", every=1)
    model.head.bias.requires_grad_(False)
    dispatcher.install("student", model)
    matched = dispatcher.attach(1, "on_grad:head.*", program)
    assert matched == ["on_grad:student/head.weight"]
    dispatcher.step(0)
    model(images())[0].sum().backward()
    norm = np.linalg.norm(model.head.weight.grad.double().numpy())
    assert program.summary()["parameters"] == {"student/head.weight": pytest.approx(norm, rel=1e-6)}


def test_sites_inside_a_compiled_module_are_listed_as_unable_to_fire(dispatcher):
    model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager"))
    dispatcher.install("student", model)
    assert dispatcher.attach(1, "on_forward:**", Count()) == ["on_forward:student/0"]
    with pytest.raises(RecurosError, match="compiled"):
        dispatcher.attach(2, "on_forward:1.**", Count())
    assert any("compiled" in row["reason"] for row in dispatcher.describe())


# Attention


def entropy_by_loop(probs):
    """[B, H, Q, K] -> mean over batch and queries of each head's row entropy."""
    p = probs.double().numpy()
    rows = np.array([-sum(x * math.log(x) for x in row if x > 0) for row in p.reshape(-1, p.shape[-1])])
    return rows.reshape(p.shape[:3]).mean(axis=(0, 2))


def test_attention_entropy_of_the_patch_model_reads_its_own_probabilities(dispatcher, evicted):
    model = student()
    dispatcher.install("student", model)
    dispatcher.attach(1, "on_attention:blocks.*.attn", library.build("builtin:attn-entropy", every=1))
    dispatcher.step(0)
    _, _, probs = model(images(), need_attention=True)
    layers = dispatcher.maps(1)["summary"]["layers"]
    for i in range(2):
        layer = layers[f"student/blocks.{i}.attn"]
        assert layer["path"] == "eager"
        assert layer["heads"] == pytest.approx(entropy_by_loop(probs[i].detach()), rel=1e-5)
    paths = {row["site"]: row["path"] for row in dispatcher.describe()}
    assert paths["on_attention:student/blocks.0.attn"] == "eager"
    assert evicted == []


class FusedAttention(nn.Module):
    def __init__(self, heads=2, causal=False, dropout=0.0, per_head=False):
        super().__init__()
        self.num_heads, self.is_causal, self.dropout, self.per_head = heads, causal, dropout, per_head
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def heads_of(self, x):
        shape, order = (
            ((self.num_heads, 3), (3, 0, 2, 1, 4)) if self.per_head else ((3, self.num_heads), (2, 0, 3, 1, 4))
        )
        return self.qkv(x).reshape(*x.shape[:2], *shape, -1).permute(*order).unbind(0)

    def forward(self, x):
        mixed = nn.functional.scaled_dot_product_attention(
            *self.heads_of(x), is_causal=self.is_causal, dropout_p=self.dropout
        )
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def probabilities(self, x):
        q, k, _ = self.heads_of(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.is_causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
        return scores.softmax(-1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_fused_attention_is_recomputed_and_checked_against_the_output(dispatcher, evicted, causal, per_head):
    torch.manual_seed(0)
    model, x = nn.Sequential(FusedAttention(causal=causal, per_head=per_head)), torch.randn(3, 5, 8)
    dispatcher.install("student", model)
    qkv = Count()
    dispatcher.attach(1, "on_attention:**", library.build("builtin:attn-entropy", every=1))
    dispatcher.attach(2, "on_forward:0.qkv", qkv)
    dispatcher.step(0)
    model(x)
    assert len(qkv.seen) == 1  # the recomputation's own call of the projection fired nothing
    layer = dispatcher.maps(1)["summary"]["layers"]["student/0"]
    assert evicted == []
    assert layer["path"] == "recompute"
    assert layer["heads"] == pytest.approx(entropy_by_loop(model[0].probabilities(x).detach()), rel=1e-5)


def test_attention_that_cannot_be_reproduced_is_evicted_with_the_reason(dispatcher, evicted):
    torch.manual_seed(0)
    model = nn.Sequential(FusedAttention(dropout=0.5))
    dispatcher.install("student", model)
    dispatcher.attach(1, "on_attention:**", library.build("builtin:attn-entropy", every=1))
    dispatcher.step(0)
    model(torch.randn(3, 5, 8))
    assert "dropout is active" in evicted[0][1]
    assert dispatcher.maps(1)["summary"]["layers"] == {}


class OpaqueAttention(nn.Module):
    def __init__(self, eager):
        super().__init__()
        self.eager = eager

    def forward(self, x):
        probs = torch.softmax(x @ x.transpose(-2, -1), dim=-1)
        return (probs @ x, probs[:, None]) if self.eager else probs @ x


def test_opaque_attention_is_refused_until_it_returns_its_probabilities(dispatcher):
    for eager in (False, True):
        model = nn.Sequential(OpaqueAttention(eager))
        dispatcher.install("student", model)
        with pytest.raises(RecurosError, match="no head count"):
            dispatcher.attach(1, "on_attention:**", Count())
        model(torch.randn(2, 3, 4))
        if eager:
            assert dispatcher.attach(1, "on_attention:**", Count()) == ["on_attention:student/0"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "qwen3"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hugging_face_attention_agrees_with_the_models_own_eager_probabilities(
    dispatcher, evicted, family, implementation
):
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 50, "max_position_embeddings": 32}
    wide = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    configs = {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=4, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
        ),
        "llama": lambda: transformers.LlamaConfig(num_key_value_heads=2, **small, **wide),
        "qwen3": lambda: transformers.Qwen3Config(num_key_value_heads=2, head_dim=8, **small, **wide),
        "bert": lambda: transformers.BertConfig(attention_probs_dropout_prob=0, hidden_dropout_prob=0, **small, **wide),
    }
    torch.manual_seed(0)
    config = configs[family]()
    model = transformers.AutoModel.from_config(config, attn_implementation=implementation)
    ids = torch.randint(0, 50, (3, 7))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 5:] = 0
    dispatcher.install("student", model)
    inner = {"gpt2": "h.*.attn", "bert": "encoder.layer.*.attention.self"}.get(family, "layers.*.self_attn")
    assert len(dispatcher.attach(1, f"on_attention:{inner}", library.build("builtin:attn-entropy", every=1))) == 2
    dispatcher.step(0)
    model(input_ids=ids, attention_mask=mask)
    with dispatcher.quiet():
        model.set_attn_implementation("eager")
        expected = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    assert evicted == []
    layers = dispatcher.maps(1)["summary"]["layers"]
    assert len(layers) == 2
    for layer, probs in zip(layers.values(), expected, strict=True):
        assert layer["path"] == ("eager" if implementation == "eager" else "recompute")
        assert layer["heads"] == pytest.approx(entropy_by_loop(probs.detach()), rel=1e-4)
