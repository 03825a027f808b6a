"""Models and data of one's own: the how-to pages' manifests, run as they stand on small models made here.

The pages are the source: TOML and Python are read from them, only the sizes are cut. Then every way in which such a pair can be wrong, with
its sentence and its exit status.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import recuros
from kfs.verify import verify
from servers import manifest as manifests
from servers.dataset.server import load, options
from servers.learner.engine import Engine
from syscalls.errors import RecurosError

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"
RECUROS = [sys.executable, "-P", "-m", "console.main"]
WAIT_S = 150.0
CONTEXT = 128
SHORT: dict[str, object] = {"warmup-steps": 5, "eval-every": 3, "every": 5}
SMALL: dict[str, object] = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
LABELS = {"negative": 0, "positive": 1}


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(
        rf"^```{language}\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found, f"{page} has no {language} block"
    return [str(text) for text in found]


def manifest(page: str, path: Path, **changed: object) -> Path:
    """The page's manifest with some values changed, beside the models that it names."""
    (text,) = blocks(page, "toml")
    for key, value in changed.items():
        text, count = re.subn(rf"^({key}) = [^#\n]*", rf"\1 = {value} ", text, flags=re.MULTILINE)
        assert count, f"{page} sets no {key}"
    path.write_text(text, encoding="utf-8")
    return path


def train(model: Any, batches: Callable[[], dict[str, torch.Tensor]], steps: int, lr: float) -> None:
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine only burn it
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batches()).loss.backward()
        optimizer.step()


def keep(model: Any, tokenizer: Tokenizer, directory: Path) -> None:
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that learnt some of the standard library's source, and that source."""
    home = tmp_path_factory.mktemp("lm")
    text = "".join(p.read_text(encoding="utf-8") for p in sorted(Path(json.__file__).parent.glob("*.py")))
    (home / "data").mkdir()
    (home / "data" / "corpus.txt").write_text(text, encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<eos>"], show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([text], trainer)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "n_positions": CONTEXT, "n_embd": 48, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    stream = torch.tensor(tokenizer.encode(text).ids)
    rng = random.Random(0)

    def batch() -> dict[str, torch.Tensor]:
        rows = torch.stack([stream[i : i + 64] for i in rng.choices(range(len(stream) - 64), k=8)])
        return {"input_ids": rows, "labels": rows}

    train(model, batch, steps=40, lr=5e-3)
    keep(model, tokenizer, home / "models" / "teacher")
    return home


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that tells good words from bad ones, and rows to tell apart."""
    home = tmp_path_factory.mktemp("classifier")
    rng = random.Random(0)
    words = {"positive": ["fine", "clear", "quick", "lovely"], "negative": ["dull", "slow", "broken", "muddy"]}
    filler = ["the", "a", "film", "story", "room", "song", "day", "is", "seemed", "quite", "very", "then"]
    rows = []
    for i in range(240):
        label = rng.choice(sorted(words))
        text = rng.choices(filler, k=rng.randint(4, 9)) + rng.choices(words[label], k=2)
        rng.shuffle(text)
        rows.append({"text": f"{' '.join(text)} {i % 23}", "label": label})
    (home / "data").mkdir()
    write_rows(home / "data" / "reviews.jsonl", rows)
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([row["text"] for row in rows], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, label2id=LABELS, id2label={i: name for name, i in LABELS.items()},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    tokenizer.enable_padding(pad_id=0)

    def batch() -> dict[str, torch.Tensor]:
        some = rng.sample(rows, 24)
        read = tokenizer.encode_batch([row["text"] for row in some])
        columns = {"input_ids": [r.ids for r in read], "attention_mask": [r.attention_mask for r in read]}
        labels = [LABELS[row["label"]] for row in some]
        return {name: torch.tensor(values) for name, values in {**columns, "labels": labels}.items()}

    train(model, batch, steps=40, lr=5e-3)
    tokenizer.no_padding()
    keep(model, tokenizer, home / "models" / "teacher")
    return home


def write_rows(path: Path, rows: list[Any]) -> None:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def until(runtime: recuros.Runtime, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first status that has come so far; the runtime's own errors end the wait."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        status = runtime.status()
        if reached(status):
            return status
        assert not status.get("error"), status["error"]
        runtime.event(0.1)
    raise AssertionError(f"not reached in {WAIT_S} s: {runtime.status()}")


def server(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(dict(s) for s in status["servers"] if s["name"] == name)


def test_a_language_model_of_ones_own_is_distilled_although_its_learner_is_killed(language: Path, run: Path) -> None:
    """The page's recipe for a student, then its manifest; a probe on module names; kill -9 of the learner."""
    (recipe,) = blocks("own-model.md", "python")
    subprocess.run([sys.executable, "-c", recipe], cwd=language, check=True, capture_output=True)
    path = manifest("own-model.md", language / "my.toml", windows=5, steps=10, **{**SHORT, "seq-len": 32})
    with recuros.boot(config=path, run=run) as runtime:
        status = until(runtime, lambda s: s["windows"]["committed"] >= 2)
        os.kill(server(status, "learner")["pid"], signal.SIGKILL)
        runtime.client.interrupt(
            kind="pause"
        )  # no window begins before the probe is there, however slow this process is
        until(runtime, lambda s: server(s, "learner")["restarts"] == 1 and server(s, "learner")["state"] == "ready")
        answer = runtime.client.rl_attach_probe(hook="on_forward:teacher/**.attn", prog="builtin:rms", every=5)
        runtime.client.interrupt(kind="resume")
        status = runtime.wait_for("done", WAIT_S)
        maps = runtime.client.probe_read(id=answer["id"])["maps"]
        figures = {p["id"]: runtime.client.probe_read(id=p["id"])["maps"]["summary"] for p in status["probes"]}
    assert answer["sites"] == ["on_forward:teacher/transformer.h.0.attn", "on_forward:teacher/transformer.h.1.attn"]
    assert server(status, "learner")["restarts"] == 1
    assert status["done_windows"] == status["windows"]["committed"] == 5
    scores = status["scores"]["test"]
    assert scores["student"]["params"] < scores["teacher"]["params"]
    assert all(0.02 < scores[role]["accuracy"] <= 1.0 for role in ("teacher", "student"))  # chance is 0.003
    assert scores["student"]["bits_per_token"] > 0.0
    assert 0.0 <= figures[1]["cka"] <= 1.0
    assert figures[2]["layers"]["student/transformer.h.0.mlp"]["rms"] > 0.0
    assert maps["summary"]["layers"]["teacher/transformer.h.0.attn"]["rms"] > 0.0
    audit = verify(run / "store")
    assert audit.ok, audit.problems


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run directory whose runtime, if a failed test leaves one, is killed."""
    yield tmp_path / "run"
    if pid := recuros.holder(tmp_path / "run"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the supervisor takes everything along
        recuros.wait_gone(tmp_path / "run", 30.0)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    line = [*RECUROS, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_a_student_from_a_config_learns_from_rows(classifier: Path, run: Path) -> None:
    """The page's manifest on the command line, to the document for scripts; what a resume reads is the same manifest."""
    path = manifest("own-data.md", classifier / "my.toml", windows=6, steps=20, **SHORT, **SMALL)
    done = command("--run", run, "boot", "-c", path, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["schema"] == "recuros.boot.report/v1"
    assert report["app"] == "my-classifier"
    assert report["windows"]["committed"] == 6
    assert report["teacher"]["score"] >= 0.9
    assert report["student"]["score"] >= 0.6
    assert report["retention"] == pytest.approx(report["student"]["score"] / report["teacher"]["score"])
    assert report["student"]["params"] < report["teacher"]["params"]
    cka, rms = (next(p for p in report["probes"] if p["attached"] and name in p["prog"]) for name in ("cka", "rms"))
    assert 0.0 <= cka["last"]["cka"] <= 1.0
    assert set(rms["last"]["layers"]) == {"student/bert.encoder.layer.0", "student/bert.encoder.layer.1"}
    assert report["ledger"]["verified"]
    assert manifests.load(run / "manifest.toml") == manifests.load(path)

    data = classifier / "data" / "reviews.jsonl"
    rows = data.read_text(encoding="utf-8")
    first = json.loads(rows.splitlines()[0])
    data.write_text(rows + json.dumps({**first, "text": "one row more"}) + "\n", encoding="utf-8")
    try:
        changed = command("--run", run, "boot")
    finally:
        data.write_text(rows, encoding="utf-8")
    assert changed.returncode == 2
    assert "E2-DATA" in changed.stderr
    assert "another run directory" in changed.stderr


# --- what is refused --------------------------------------------------------------------------------------------------


def broken(home: Path, place: Path, **changed: object) -> Path:
    """The classifier's manifest in a folder of its own, beside links to its teacher and data."""
    (place / "models").mkdir()
    (place / "data").mkdir()
    shutil.copytree(home / "models" / "teacher", place / "models" / "teacher")
    shutil.copy(home / "data" / "reviews.jsonl", place / "data")
    return manifest("own-data.md", place / "my.toml", **{**SHORT, **SMALL, "windows": 1, "steps": 2, **changed})


def first_line(place: Path, line: str) -> None:
    file = place / "data" / "reviews.jsonl"
    file.write_text(line + "\n" + file.read_text(encoding="utf-8"), encoding="utf-8")


def cut(place: Path) -> None:
    file = place / "models" / "teacher" / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def other_words(place: Path) -> None:
    """A student's directory whose tokenizer has two words the other way round."""
    shutil.copytree(place / "models" / "teacher", place / "models" / "student")
    file = place / "models" / "student" / "tokenizer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    words = document["model"]["vocab"]
    words["fine"], words["clear"] = words["clear"], words["fine"]
    file.write_text(json.dumps(document), encoding="utf-8")
    path = place / "my.toml"
    text = path.read_text(encoding="utf-8")
    start, end = text.index("[model.student]"), text.index("[kd]")
    path.write_text(text[:start] + '[model.student]\nkind = "hf"\npath = "models/student"\n' + text[end:])


def odd_label(label: object) -> Callable[[Path], None]:
    return lambda place: first_line(place, json.dumps({"text": "a film", "label": label}))


def integers(place: Path) -> None:
    write_rows(place / "data" / "reviews.jsonl", [{"text": f"film {i}", "label": i % 3} for i in range(9)])


def nothing(_place: Path) -> None:
    pass


BAD: list[tuple[str, dict[str, object], Callable[[Path], object], str, str]] = [
    ("no directory", {}, lambda p: shutil.rmtree(p / "models" / "teacher"), "E2-MODEL", "models/teacher is not a directory"),
    ("no model", {}, lambda p: (p / "models" / "teacher" / "config.json").unlink(), "E2-MODEL", "missing config.json"),
    ("cut weights", {}, cut, "E2-MODEL", "it was cut off"),
    ("other tokenizer", {}, other_words, "E2-MODEL", "tokenizers of teacher and student differ"),
    ("small vocabulary", {"vocab_size": 20}, nothing, "E2-DATA", "the student's vocab_size is 20"),
    ("classes", {"num_labels": 3}, nothing, "E2-MODEL", "the teacher has 2 classes, the student 3"),
    ("column", {"text-column": '"body"'}, nothing, "E2-DATA", "reviews.jsonl:1: column 'body' is missing; found columns 'label', 'text'"),
    ("bad line", {}, lambda p: first_line(p, '{"text": '), "E2-DATA", "reviews.jsonl:1: not JSON"),
    ("unknown label", {}, odd_label("good"), "E2-DATA", "none of the model's labels: negative, positive"),
    ("label range", {}, integers, "E2-DATA", "reviews.jsonl:3: column 'label' is 2, expected one of 2 classes, 0..1"),
    ("empty", {}, lambda p: write_rows(p / "data" / "reviews.jsonl", []), "E2-DATA", "holds no usable row"),
    ("too long", {"seq-len": CONTEXT + 1}, nothing, "E2-DATA", f"data.seq-len = {CONTEXT + 1} is longer than the teacher's context"),
    ("unknown key", {"seq-len": "32\nseq-length = 32"}, nothing, "E2-MANIFEST", "data.seq-length: unknown key"),
]  # fmt: skip


def start(path: Path) -> None:
    """The launcher's check, then the dataset server's and the learner's start, in the order in which a boot meets them."""
    document = manifests.boot_document(manifests.load(path), path.parent, path.parent, detached=False)
    config = document["servers"][0]["config"]
    load(options(config), config["model"])
    Engine(dict(config["model"]), int(config["seed"]))


@pytest.mark.parametrize(("changed", "harm", "code", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_pair_that_is_wrong_is_refused_with_the_way_out(
    classifier: Path, tmp_path: Path, changed: dict[str, object], harm: Callable[[Path], object], code: str, says: str
) -> None:
    path = broken(classifier, tmp_path, **changed)
    harm(tmp_path)
    with pytest.raises(RecurosError, match=re.escape(says)) as caught:
        start(path)
    assert caught.value.code == code
    assert caught.value.exit_status == 2
    assert caught.value.hint


def test_what_a_server_refuses_at_its_start_ends_the_boot_with_its_sentence(
    classifier: Path, tmp_path: Path, run: Path
) -> None:
    path = broken(classifier, tmp_path)
    first_line(tmp_path, '{"text": ')
    done = command("--run", run, "boot", "-c", path)
    assert done.returncode == 2
    where = tmp_path / "data" / "reviews.jsonl"
    assert f"error[E2-DATA]: {where}:1: not JSON" in done.stderr
    assert 'try: correct the row, or set data.on-error = "skip"' in done.stderr
    assert recuros.holder(run) is None
