"""What teachers of each kind teach, against plain oracles; what cannot teach is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nexus.app import TeacherTable
from nexus.data import sets, teachers
from nexus.data.samples import Samples, item_scores, pack
from nexus.data.towers import PixelTower, VisionTeacher
from nexus.model.tokenizer import EOS, VOCABULARY
from nexus.profiler import causal
from nexus.quiet import quiet
from nexus.servers.models import spread
from nexus.stages.refine import hard_targets
from syscalls.errors import RecurosError


def table(**values: Any) -> TeacherTable:
    return TeacherTable.model_validate({"id": "t", "model-name": "t", "licence": "x", "path": ".", **values})


def bpe(texts: list[str]) -> Any:
    """A byte-level BPE with real merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with its own tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    path = tmp_path_factory.mktemp("gpt")
    tokenizer = bpe(["the cat sat on the mat", "the dog sat on the log"] * 20)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5
    )
    with quiet():
        GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_bytes_of_a_token_teacher_are_sums_over_its_tokens(gpt: Path) -> None:
    """The oracle loops over the whole vocabulary at every byte."""
    teacher = teachers.load(table(tokenizer="own"), gpt)
    assert isinstance(teacher, teachers.TokenTeacher)
    text = b"the cat sat"
    samples = pack([(text[:1], text[1:])], 32, end=False)
    _, ids, mask = next(samples.batches())
    found = teacher.log_probs(samples, slice(0, 1), ids, mask)[0].exp()
    tokens = teacher.tokenizer(text.decode(), add_special_tokens=False).input_ids
    assert len(tokens) < len(text)  # merges are at work
    names = teachers.token_bytes(teacher.tokenizer, len(teacher.tokenizer))
    start = teacher.tokenizer.bos_token_id
    given = torch.tensor([[tokens[0] if start is None else start, *tokens]])
    probs = torch.softmax(teacher.module(input_ids=given).logits[0], dim=-1)
    at = 0
    for place, token in enumerate(tokens):
        for j in range(len(names[token])):
            if at:
                mass = torch.zeros(VOCABULARY)
                for other, piece in enumerate(names):
                    if len(piece) > j and piece[:j] == names[token][:j]:
                        mass[piece[j]] += probs[place, other]
                assert torch.allclose(found[at - 1], mass / mass.sum(), atol=1e-3)
            at += 1
    assert at == len(text)


def test_a_classifier_teaches_the_text_of_its_labels(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = bpe(["good bad"] * 20)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "good", 1: "great"}, label2id={"good": 0, "great": 1}, initializer_range=0.5,
    )  # fmt: skip
    with quiet():
        BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    teacher = teachers.load(table(mode="classifier", tokenizer="own"), tmp_path)
    samples = pack([(b"so ", b"great")], 16)
    _, ids, mask = next(samples.batches())
    found = teacher.log_probs(samples, slice(0, 1), ids, mask)[0].exp()
    p = torch.softmax(teacher.module(**tokenizer(["so "], return_tensors="pt")).logits[0], dim=-1)
    assert found[2].argmax() == ord("g")
    assert float(found[2, ord("g")]) == pytest.approx(1.0, abs=1e-4)
    assert float(found[3, ord("o")]) == pytest.approx(float(p[0]), abs=1e-4)
    assert float(found[3, ord("r")]) == pytest.approx(float(p[1]), abs=1e-4)
    assert float(found[7, EOS]) == pytest.approx(1.0, abs=1e-4)  # after "great" comes the end


class Fixed:
    """An encoder whose vectors are written down."""

    def embed(self, texts: list[str]) -> Tensor:
        rows = {"q": [1.0, 0.0], "near": [0.8, 0.6], "far": [0.0, 1.0]}
        return torch.tensor([rows[t] for t in texts])


def test_an_encoder_answers_by_cosine() -> None:
    teacher = teachers.EmbeddingTeacher(None, None)
    teacher.embed = Fixed().embed  # type: ignore[method-assign]
    letters, probs = teacher.answers(["q?\nA:far\nB:near\nC:far\nD:far\n>"])
    cosine = torch.tensor([0.0, 0.8, 0.0, 0.0]) / teachers.CHOICE_TEMPERATURE
    assert letters == [b"A", b"B", b"C", b"D"]
    assert torch.allclose(probs[0], torch.softmax(cosine, dim=-1))
    with pytest.raises(RecurosError, match="E2-DATA"):
        teacher.answers(["no options"])


def test_an_encoder_reads_a_disturbed_question_too() -> None:
    """The profiler drops and swaps bytes; the five lines stay five lines, and the answer may be another one."""
    samples = sets.make("choice", {"train": 20, "validation": 20, "test": 20}, 42, 160)["test"]
    teacher = teachers.EmbeddingTeacher(None, None)
    teacher.embed = lambda texts: torch.nn.functional.one_hot(torch.tensor([len(t) % 4 for t in texts]), 4).float()  # type: ignore[method-assign]
    for disturbed in (causal.dropped(samples, 0.5, 1), causal.typos(samples, 0.5, 1)):
        assert not np.array_equal(disturbed.ids, samples.ids)
        assert teacher.answers([prompt for prompt, _ in disturbed.texts()])[1].shape == (20, 4)


def test_a_vision_teacher_sees_what_the_tower_wrote() -> None:
    from servers.models.patch import PatchConfig, PatchModel

    torch.manual_seed(0)
    module = PatchModel(PatchConfig(layers=1, width=16, heads=2)).module.eval()
    data = sets.make("digit-images", {"train": 20, "validation": 20, "test": 20}, 42, 128)["test"]
    teacher = VisionTeacher(module)
    images = PixelTower().decode([prompt for prompt, _ in data.texts()])
    with torch.no_grad():
        guess = module(torch.from_numpy(images))[0].argmax(dim=-1)
    truth = torch.tensor([int(answer) for _, answer in data.texts()])
    assert np.array_equal(teacher.scores(data, "exact-match") == 1.0, (guess == truth).numpy())


@pytest.mark.parametrize(
    ("change", "mode", "said"),
    [
        (lambda p: (p / "model.safetensors").unlink(), {}, "has no weights"),
        (lambda p: (p / "tokenizer.json").unlink(), {"tokenizer": "own"}, "has no tokenizer"),
        (lambda p: edit(p, "architectures", ["GPT2Model"]), {}, "no language-model head"),
        (lambda p: edit(p, "n_layer", 3), {}, "lacks"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(gpt: Path, tmp_path: Path, change: Any, mode: Any, said: str) -> None:
    import shutil

    path = tmp_path / "copy"
    shutil.copytree(gpt, path)
    change(path)
    with pytest.raises(RecurosError, match="E2-MODEL") as caught:
        teachers.load(table(**mode), path)
    assert said in caught.value.message


def edit(path: Path, key: str, value: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), key: value}), encoding="utf-8")


def test_cached_targets_are_a_distribution() -> None:
    logp = torch.log_softmax(torch.randn(3, 5, VOCABULARY, generator=torch.Generator().manual_seed(0)), dim=-1)
    top, index = logp.topk(16, dim=-1)
    dense = spread(index, top, VOCABULARY)
    assert torch.allclose(dense.exp().sum(dim=-1), torch.ones(3, 5), atol=1e-5)
    assert torch.equal(dense.gather(-1, index), top)
    assert torch.equal(dense.argmax(dim=-1), logp.argmax(dim=-1))


def test_hard_targets_put_the_mass_on_what_was_said() -> None:
    samples = pack([(b"a", b"\x00\x03z")], 16)
    made = hard_targets(samples, 4)
    assert made.top_ids[0, :4, 0].tolist() == [0, 3, ord("z"), EOS]
    assert all(len(set(row)) == 4 for row in made.top_ids[0])


@pytest.mark.parametrize("kind", ["stdlib", "digit-sort", "secrets", "choice"])
def test_splits_share_no_item_and_come_out_alike(kind: str) -> None:
    sizes = {"train": 50, "validation": 20, "test": 40}
    once, again = (sets.make(kind, dict(sizes), 42, 256) for _ in range(2))
    rows = {s: {r[:n].tobytes() for r, n in zip(v.ids, v.lengths, strict=True)} for s, v in once.items()}
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not rows[a] & rows[b]
    assert all(np.array_equal(once[s].ids, again[s].ids) for s in sizes)


def test_item_scores() -> None:
    hit = np.array([[True, False, True], [True, True, False]])
    scored = np.array([[True, True, False], [True, True, False]])
    assert item_scores(hit, scored, "byte-accuracy").tolist() == [0.5, 1.0]
    assert item_scores(hit, scored, "exact-match").tolist() == [0.0, 1.0]


def test_an_item_without_an_answer_is_refused() -> None:
    with pytest.raises(RecurosError, match="E2-DATA"):
        Samples(np.zeros((1, 2), np.int16), np.zeros((1, 2), bool), np.ones(1, np.int64))
    with pytest.raises(RecurosError, match="takes 5 tokens"):
        pack([(b"abc", b"d")], 4)
