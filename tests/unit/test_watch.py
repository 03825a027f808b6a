"""`recuros.watch`: a plain loop and a Trainer, with a real archivist as a child; the step's bits, the ledger, and what fails."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import recuros
from console import main as console
from kfs.records import Record
from kfs.store import Store
from kfs.verify import verify
from servers.watch.session import Watch, usual_probes
from syscalls.errors import RecurosError

RMS = ("on_forward:student/*", "builtin:rms")


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 4))


class Loop:
    """A training loop as anybody writes it."""

    def __init__(self) -> None:
        self.model = network()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.data = torch.Generator().manual_seed(5)

    def run(self, steps: int, rows: int = 8, watch: Watch | None = None) -> list[float]:
        losses = []
        for _ in range(steps):
            x = torch.randn(rows, 16, generator=self.data)
            y = (x[:, 0] > 0).long()
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if watch is not None:
                watch.log(loss=loss)
            self.optimizer.step()
            losses.append(loss.item())
        return losses


def records(run: Path, kind: str = "") -> list[Record]:
    with Store.open_reader(run / "store") as store:
        return [r for r in store.records() if kind in ("", r.kind)]


def state(run: Path, snapshot: str) -> dict[str, torch.Tensor]:
    """A snapshot's tensors as a state_dict."""
    found = {}
    with Store.open_reader(run / "store") as store:
        for path, name in store.snapshot(snapshot).items():
            role, module, leaf = path.split("/")
            if role == "student":
                held = store.get(name)
                tensor = torch.frombuffer(bytearray(held.data), dtype=torch.float32).reshape(held.shape)
                found[leaf if module == "." else f"{module}.{leaf}"] = tensor
    return found


def test_a_plain_loop_is_recorded_and_its_bits_are_the_same(tmp_path: Path) -> None:
    alone = Loop()
    expected = alone.run(25)
    loop = Loop()
    run = tmp_path / "run"
    with recuros.watch(loop.model, run, optimizer=loop.optimizer, window=10, every=2) as watch:
        assert loop.run(25, watch=watch) == expected
        figures = watch.read(1)["summary"]["layers"]
        assert 0 < watch.overhead < 1
        assert "builtin:rms" in watch._repr_html_()
    for (name, one), other in zip(alone.model.state_dict().items(), loop.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert set(figures) == {f"student/{i}" for i in range(4)}
    assert all(math.isfinite(row["rms"]) and row["rms"] > 0 for row in figures.values())

    kinds = [r.kind.value for r in records(run)]
    assert kinds[0] == "boot"
    assert kinds[-1] == "halt"
    assert kinds.count("probe.attach") == 2
    commits = records(run, "window.commit")
    assert sum(c.args["steps"] for c in commits) == 25
    assert [c.args["step0"] for c in commits] == [0, *(c.args["step0"] + c.args["steps"] for c in commits[:-1])]
    at = 0
    for commit in commits:
        mean = sum(expected[at : at + commit.args["steps"]]) / commit.args["steps"]
        assert commit.args["metrics"]["loss"] == pytest.approx(mean, rel=1e-5)
        at += commit.args["steps"]
    last = state(run, str(commits[-1].result_snap))
    assert last.keys() == loop.model.state_dict().keys()
    assert all(torch.equal(last[name], value) for name, value in loop.model.state_dict().items())
    assert verify(run / "store").ok
    assert not loop.model._forward_pre_hooks, "the model is left as it was"


def test_the_verbs_that_read_a_run_directory_read_this_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop, run = Loop(), tmp_path / "run"
    with recuros.watch(loop.model, run, name="mine", optimizer=loop.optimizer, window=5, probes=[]) as watch:
        loop.run(5, watch=watch)
        watch.snapshot("half")
        loop.run(5, watch=watch)
    for line, says in {
        "kfs verify": "ok: ",
        "report": "mine: 2 windows committed",
        "snapshot show half": "window      1",
        "kfs log --kind window.": "window.commit",
        "explain window/2": "committed: snapshot b3:",
        f"kfs checkout last {tmp_path / 'out'}": "torch.nn.modules.container.Sequential",
    }.items():
        assert console.run([*line.split(), "--run", str(run)]) == 0, line
        assert says in capsys.readouterr().out, line
    assert console.run(["kfs", "diff", "w1", "w2", "--run", str(run)]) == 1
    capsys.readouterr()
    assert console.run(["boot", "digits", "--run", str(run)]) == 2
    assert "holds what recuros.watch recorded" in capsys.readouterr().err


def test_a_second_session_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    loop, run = Loop(), tmp_path / "run"
    for _ in range(2):
        with recuros.watch(loop.model, run, optimizer=loop.optimizer, window=4, probes=[RMS], every=1) as watch:
            loop.run(4, watch=watch)
    commits = records(run, "window.commit")
    assert [(c.args["window"], c.args["step0"], c.args["steps"]) for c in commits] == [(1, 0, 4), (2, 4, 4)]
    assert commits[1].parent_snap == commits[0].result_snap
    boots = records(run, "boot")
    assert [b.args["resumed_from"] for b in boots] == [-1, commits[0].seq]


def test_a_larger_batch_is_verified_again_and_the_maps_go_on(tmp_path: Path) -> None:
    loop, run = Loop(), tmp_path / "run"
    with recuros.watch(loop.model, run, optimizer=loop.optimizer, window=1000, probes=[RMS], every=1) as watch:
        loop.run(3, rows=4)
        before = watch.read(1)["fired"]
        loop.run(4, rows=400)
        after = watch.read(1)
        [row] = watch.probes
    assert row["evicted"] == ""
    assert after["fired"] > before
    assert not records(run, "probe.evict")


def test_programs_of_ones_own_are_verified_kept_and_read(tmp_path: Path) -> None:
    loop, run = Loop(), tmp_path / "run"
    source = tmp_path / "spin.py"
    source.write_text(
        'hook("on_forward:student/0")\n\n\ndef probe(x):\n    while True:\n        pass\n', encoding="utf-8"
    )
    with recuros.watch(loop.model, run, optimizer=loop.optimizer, probes=[]) as watch:
        for hook, prog, code in (
            ("", str(source), "E8-SYNTAX"),
            ("on_forward:student/nope.*", "builtin:rms", "E4-HOOK"),
            ("on_kd_step", "builtin:cka", "E4-HOOK"),
            ("on_forward:student/0", "builtin:nonsense", "E4-NOENT"),
            ("on_grad:student/**", "builtin:rms", "E8-VERIFY"),
            ("", str(tmp_path / "absent.py"), "E4-NOENT"),
        ):
            with pytest.raises(RecurosError) as refused:
                watch.probe(hook, prog)
            assert refused.value.code == code, prog
        number = watch.probe("", "on_forward:student/0 every 1 { @sizes = hist(rms(x)) }")
        loop.run(6)
        counts = watch.read(number)["maps"]["sizes"]
    assert sum(counts["counts"]) == 5, "from the step after the first on"
    [attach] = records(run, "probe.attach")
    with Store.open_reader(run / "store") as store:
        assert bytes(store.get(attach.input_ids[0]).data).startswith(b"OBPF")


def test_evaluation_passes_fire_nothing(tmp_path: Path) -> None:
    loop = Loop()
    with recuros.watch(loop.model, tmp_path / "run", optimizer=loop.optimizer, probes=[RMS], every=1) as watch:
        loop.run(3)
        fired = watch.read(1)["fired"]
        loop.model.eval()
        loop.model(torch.randn(8, 16))
        loop.model.train()
        assert watch.read(1)["fired"] == fired


def test_training_goes_on_when_the_archivist_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop, run = Loop(), tmp_path / "run"
    watch = recuros.watch(loop.model, run, optimizer=loop.optimizer, window=2, probes=[])
    loop.run(3)
    os.kill(watch._writer.pid, signal.SIGKILL)
    watch._writer._process.wait()
    losses = loop.run(10)
    assert len(losses) == 10
    assert "recording ended at step" in capsys.readouterr().err
    watch.snapshot("ignored")
    with pytest.raises(RecurosError, match="has gone"):
        watch.close()
    assert verify(run / "store").ok, "what was acknowledged is whole"


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits for nothing but to be reaped by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


KILLED = """
import os, signal, sys, torch, recuros
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watch = recuros.watch(model, sys.argv[1], optimizer=optimizer, window=2, probes=[])
for step in range(6):
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
watch.snapshot("safe")
print(watch._writer.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_script_leaves_a_whole_signed_store_and_no_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with recuros.watch(nn.Linear(4, 2), run, probes=[]):  # waits for nobody: the lock must be free, or E3-BUSY
        pass
    assert ended(int(done.stdout))
    assert records(run, "snapshot")[0].args["name"] == "safe"
    assert verify(run / "store").ok


def test_one_run_directory_has_one_writer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with recuros.watch(nn.Linear(4, 2), run, probes=[]), pytest.raises(RecurosError) as busy:
        recuros.watch(nn.Linear(4, 2), run, probes=[])
    assert busy.value.code == "E3-BUSY"
    taken = tmp_path / "runtime"
    taken.mkdir()
    (taken / "manifest.toml").write_text("", encoding="utf-8")
    with pytest.raises(RecurosError, match="run directory of a runtime"):
        recuros.watch(nn.Linear(4, 2), taken)
    with pytest.raises(RecurosError, match="window=0"):
        recuros.watch(nn.Linear(4, 2), run, window=0)


def test_the_usual_probes_look_at_the_blocks() -> None:
    assert usual_probes(network())[0][0] == "on_forward:student/*"
    assert usual_probes(nn.Linear(2, 2))[0][0] == "on_forward:student/**"
    deep = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]), "head": nn.Linear(2, 2)})
    assert usual_probes(deep)[0] == ("on_forward:student/layers.*", "builtin:rms")


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 64, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Any, Path]:
    import warnings

    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    args = TrainingArguments(
        output_dir=str(tmp_path / "hf"), max_steps=12, per_device_train_batch_size=4, logging_steps=4, save_steps=8,
        report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of transformers and accelerate
        callback = recuros.WatchCallback(tmp_path / "run", window=5, every=2)
        trainer = Trainer(model=model, args=args, train_dataset=Rows(), callbacks=[callback])
        trainer.train()
    return model, tmp_path / "run"


def test_a_trainer_needs_one_callback(
    trained: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    model, run = trained
    commits = records(run, "window.commit")
    assert sum(c.args["steps"] for c in commits) == 12
    assert any("loss" in c.args["metrics"] for c in commits)
    assert {r.args["name"] for r in records(run, "snapshot")} >= {"checkpoint-8"}
    assert [r.args["hook"] for r in records(run, "probe.attach")] == [
        "on_forward:student/transformer.h.*",
        "on_grad:student/**",
    ]
    assert verify(run / "store").ok
    assert console.run(["kfs", "checkout", "last", str(tmp_path / "out"), "--run", str(run), "--json"]) == 0
    assert "AutoModelForCausalLM" in json.loads(capsys.readouterr().out)["load"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.cpu()), name


def test_another_process_reads_the_probes_of_a_watched_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, run = Loop(), tmp_path / "run"

    def verb(*words: str, status: int = 0) -> tuple[Any, str]:
        """A verb as another process would run it: nothing but the run directory connects the two."""
        assert console.run(["--run", str(run), *words, "--json"]) == status
        out, err = capsys.readouterr()
        return (json.loads(out) if out else None), err

    own = "on_forward:student/0 every 2 { @rms = hist(rms(x)) }"
    with recuros.watch(loop.model, run, optimizer=loop.optimizer, window=10, every=2, probes=[RMS, ("", own)]) as watch:
        loop.run(4)
        found, said = verb("probe", "ls")
        assert [(row["id"], row["fired"]) for row in found["probes"]] == [(1, 0), (2, 0)]
        assert "no window is recorded yet" in said
        _, said = verb("probe", "stats", "1", status=75)
        assert "E75-AGAIN" in said
        loop.run(16)
        watch.snapshot()
        found, said = verb("probe", "ls")
        assert "as of window 2, step 20" in said
        assert [row["program"] for row in found["probes"]] == [row["program"] for row in watch.probes]
        assert [row["fired"] for row in found["probes"]] == [row["fired"] for row in watch.probes]
        assert all(row["cost_ns"] > 0 for row in found["probes"])
        stats, _ = verb("probe", "stats", "1")
        assert stats["read"] == "ledger"
        assert stats["maps"]["summary"] == json.loads(json.dumps(watch.read(1)["summary"]))
        assert "rms" in verb("probe", "dump", "2")[0]["assembly"]
        _, said = verb("probe", "dump", "1", status=4)
        assert "is a built-in" in said
        _, said = verb("probe", "stats", "7", status=4)
        assert "there are: 1, 2" in said
        _, said = verb("ps", status=3)
        assert "recuros.watch" in said
    assert "the script has ended" in verb("probe", "ls")[1]
