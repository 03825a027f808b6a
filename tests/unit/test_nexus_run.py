"""A whole run on two tiny teachers: stages, records, resumption, removal, proof, opt-in; then what must not pass."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kfs.records import RecordKind
from kfs.store import Store
from nexus import run as runs
from nexus.gate import prove as proof
from nexus.gate import sandbox
from nexus.ledger import RunLedger
from nexus.stages import distill, gate, refine
from syscalls.errors import RecurosError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)  # its gates start a dozen processes, and other tests may be running

APP = """
[app]
name = "mini"
teachers = "t.csv"
contracts = "c.md"
[student]
width = 32
layers = 2
heads = 2
context = 32
[training]
steps = 200
batch = 32
window = 10
lr = 1e-2
adapter-steps = 150
adapter-lr = 2e-2
adapter-batch = 32
engine = "in-process"
[profiling]
items = 40
pilot-items = 20
key-layers = 1
[[teacher]]
id = "sort"
model-name = "mini/sort"
licence = "made here"
make = { width = 32, layers = 2, heads = 2, steps = 150, batch = 32, lr = 1e-2 }
[[teacher]]
id = "word"
model-name = "mini/word"
licence = "made here"
make = { width = 32, layers = 1, heads = 2, steps = 150, batch = 32, lr = 1e-2 }
[[capability]]
name = "sort"
teacher = "sort"
data = { kind = "jsonl", path = "sort.jsonl", train = 300, validation = 60, test = 400 }
[[capability]]
name = "word"
teacher = "word"
data = { kind = "jsonl", path = "word.jsonl", train = 300, validation = 60, test = 400 }
tier = 3
gated = true
backbone = false
start-rank = 16
"""
CONTRACTS = """
| capability | metric | retain | chance | items |
|---|---|---|---|---|
| sort | exact-match | 0.9 | 0 | 400 |
| word | exact-match | 0.9 | 0 | 400 |
"""


def write_app(folder: Path) -> Path:
    (folder / "t.csv").write_text(
        "ModelName,Parameters,Category,BestFeature\nmini/sort,1M,text,sorting\nmini/word,1M,gated,a word\n",
        encoding="utf-8",
    )
    (folder / "c.md").write_text(CONTRACTS, encoding="utf-8")
    for name, answer in (("sort", "up"), ("word", "pu")):
        rows = [json.dumps({"prompt": f"{name} {n:04d} = ", "answer": answer}) for n in range(1300)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "app.toml").write_text(APP, encoding="utf-8")
    return folder / "app.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, interrupted once in the middle."""
    if shutil.which("strace") is None:
        pytest.skip("the gate needs strace")
    folder = tmp_path_factory.mktemp("nexus")
    app = write_app(folder)
    root = folder / "run"

    def stop(what: str, _done: int, _total: int) -> None:
        if what == "distil word-0":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), runs.opened(root, app, stop) as ctx:
        runs.run(ctx)
    with runs.opened(root) as ctx:
        assert runs.run(ctx)["verdict"] == "pass"
    return root


def records(root: Path) -> list[Any]:
    with Store.open_reader(root / "store") as store:
        return list(store.records())


def test_every_artifact_of_the_table_is_there(made: Path) -> None:
    for name in (
        "configs/seed.txt", "configs/global_config.json", "configs/teacher_registry.json", "configs/student_arch.json",
        "profiles/sort/sort/heads_importance.json", "profiles/sort/sort/verify_outputs.jsonl", "profiles/manifest.json",
        "profiles/protected_subspaces.json", "profiles/adapter_capacity_plan.json", "verify_report.json",
        "checkpoints/sort.summary.json", "checkpoints/backbone.summary.json", "repro_manifest.json",
        "nexus_bundle_v1/manifest.json", "nexus_bundle_v1/adapters/word_adapter.safetensors",
    ):  # fmt: skip
        assert (made / name).is_file(), name
    assert (made / "configs/seed.txt").read_text(encoding="utf-8") == "42\n"


def test_a_run_that_was_killed_does_nothing_twice(made: Path) -> None:
    """The interrupted job began twice; everything else once."""
    begun = Counter(
        (r.args["stage"], r.args["capability"])
        for r in records(made)
        if r.kind is RecordKind.NEXUS_STAGE and r.args["state"] == "begun"
    )
    twice = {key for key, count in begun.items() if count > 1}
    assert twice == {(4, "word")}


def test_a_finished_run_is_not_run_again(made: Path) -> None:
    before = len(records(made))
    with runs.opened(made) as ctx:
        runs.run(ctx)
    assert len(records(made)) == before


def test_coefficients_are_no_activations(made: Path) -> None:
    """One mean and one variance a component; no file under profiles/ is as large as the activations were."""
    folder = made / "profiles" / "sort" / "sort"
    (coeffs,) = folder.glob("layer_*_coeffs.npz")
    meta = json.loads(next(iter(folder.glob("layer_*_meta.json"))).read_text(encoding="utf-8"))
    with np.load(coeffs) as found:
        assert {name: found[name].shape for name in found.files} == {
            "mean": (meta["rank"],),
            "variance": (meta["rank"],),
        }
    basis = np.load(next(iter(folder.glob("layer_*_basis.npz"))))["basis"].astype(np.float64)
    assert np.allclose(basis @ basis.T, np.eye(meta["rank"]), atol=0.01)


def test_teachers_are_gone_and_originals_are_not(made: Path) -> None:
    assert not list((made / "teachers").iterdir())
    assert not list((made / "cache").iterdir())
    assert (made / "originals" / "sort" / "model.safetensors").is_file()
    acts = [(r.args["teacher"], r.args["act"]) for r in records(made) if r.kind is RecordKind.NEXUS_TEACHER]
    assert ("sort", "removed") in acts
    assert ("word", "removed") in acts


def test_the_report_holds_the_proof(made: Path) -> None:
    report = json.loads((made / "verify_report.json").read_text(encoding="utf-8"))
    assert report["poison"]["caught"]
    assert report["trace"]["gated_opens_closed"] == 0
    assert report["denied"] == {"word": "E5-DENIED"}
    assert set(report["leak"]) == {"word by backbone", "word by sort"}
    assert max(report["leak"].values()) == 0.0
    assert {v["verdict"] for v in report["capabilities"].values()} == {"pass"}
    (routed,) = report["routing"].items()  # the gated capability is never routed to
    assert routed[0] == "sort"
    assert (routed[1]["verdict"], sum(routed[1]["to"].values())) == ("pass", 400)
    assert routed[1]["wins"] >= 0.9


def test_the_windows_hold_no_gated_data_outside_its_adapter(made: Path) -> None:
    """The backbone was trained on the public capability alone, and the gated one's job changed only its adapter."""
    done = [r.args for r in records(made) if r.kind is RecordKind.NEXUS_STAGE and r.args["state"] == "done"]
    (backbone,) = [a for a in done if (a["stage"], a["capability"]) == (4, distill.BACKBONE)]
    assert backbone["figures"]["capabilities"] == ["sort"]
    assert [list(a["artifacts"]) for a in done if (a["stage"], a["capability"]) == (4, "word")] == [
        ["checkpoints/word.safetensors", "checkpoints/word.summary.json"]
    ]


def test_another_bundle_is_proved_by_the_same_items(made: Path) -> None:
    """The gate again, on a bundle whose adapter was exchanged for noise: the verdict is not a pass."""
    import torch

    with runs.opened(made) as ctx:
        worse = made / "worse"
        student = distill.assemble(ctx, ["sort", "word"])
        with torch.no_grad():
            for part in student.adapter("word").parameters():
                part.normal_(generator=torch.Generator().manual_seed(0))
        from nexus.bundle.write import write_bundle
        from nexus.model.tokenizer import byte_tokenizer

        write_bundle(worse, student, ["sort", "word"], None, byte_tokenizer(32), {}, gated={"word"})
        report = gate.regate(ctx, worse)
    assert report["capabilities"]["word"]["verdict"] == "fail"
    assert report["capabilities"]["sort"]["verdict"] == "pass"
    assert report["verdict"] == "fail"


def test_a_frozen_run_refuses_another_seed(made: Path, tmp_path: Path) -> None:
    write_app(tmp_path)
    other = tmp_path / "app.toml"
    other.write_text(APP.replace('name = "mini"', 'name = "mini"\nseed = 7'), encoding="utf-8")
    with pytest.raises(RecurosError, match="was frozen with seed = 42"), runs.opened(made, other) as ctx:
        runs.run(ctx)


def test_one_writer_at_a_time(made: Path) -> None:
    with RunLedger(made), pytest.raises(RecurosError, match="E3-BUSY"):
        RunLedger(made)


# One more teacher, a refinement, a drop


@contextmanager
def oracle() -> Iterator[str]:
    """A black box on this host that knows the answer."""

    class Says(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
            body = json.dumps({"answer": "ppu" if prompt.startswith("fix") else ""}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Says)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


MORE = """
[[teacher]]
id = "third"
model-name = "mini/third"
licence = "made here"
make = { width = 32, layers = 1, heads = 2, steps = 150, batch = 32, lr = 1e-2 }
[[teacher]]
id = "oracle"
model-name = "mini/oracle"
licence = "made here"
mode = "black-box"
url = "URL"
[[capability]]
name = "third"
teacher = "third"
data = { kind = "jsonl", path = "third.jsonl", train = 300, validation = 60, test = 400 }
tier = 2
backbone = false
start-rank = 16
[refine]
teacher = "oracle"
data = { kind = "jsonl", path = "fix.jsonl", train = 60, validation = 10, test = 100 }
rank = 16
steps = 150
lr = 2e-2
"""


def test_a_teacher_comes_a_refinement_comes_and_a_capability_goes(made: Path) -> None:
    folder = made.parent
    for name, answer in (("third", "ppp"), ("fix", "ppu")):
        rows = [json.dumps({"prompt": f"{name} {n:04d} = ", "answer": answer}) for n in range(1300)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with (folder / "t.csv").open("a", encoding="utf-8") as file:
        file.write("mini/third,1M,text,more\nmini/oracle,big,refinement,all\n")
    with (folder / "c.md").open("a", encoding="utf-8") as file:
        file.write("| third | exact-match | 0.9 | 0 | 400 |\n")
    with oracle() as url:
        app = folder / "app2.toml"
        app.write_text(APP + MORE.replace("URL", url), encoding="utf-8")
        before = {n: (made / "checkpoints" / f"{n}.safetensors").read_bytes() for n in ("sort", "word")}
        with runs.opened(made, app) as ctx:
            done = runs.add(ctx)
            assert done["added"] == ["third"]
            assert done["changed_items"] == {"sort": 0, "word": 0}
            report = refine.refine(ctx)
        assert report["verdict"] == "pass"
        assert (report["before"], report["changed_elsewhere"]) == (0.0, 0)
        assert report["after"] > 0.9
        with runs.opened(made) as ctx:
            gate.drop(ctx, ctx.app.capability("sort"), "not needed")
            assert [c.name for c in ctx.live()] == ["word", "third"]
            assert not {5, 6} & set(ctx.state.stages)  # what is left has to be proved again
            assert {c.name: ctx.cap(c.name).status for c in ctx.live()} == {"word": "passed", "third": "passed"}
            summary = runs.run(ctx)
    after = {n: (made / "checkpoints" / f"{n}.safetensors").read_bytes() for n in ("sort", "word")}
    assert after == before
    assert summary["verdict"] == "pass"
    capabilities = json.loads((made / "nexus_bundle_v1" / "manifest.json").read_text(encoding="utf-8"))["capabilities"]
    assert set(capabilities) == {"word", "third"}


def test_a_black_box_is_a_command_or_on_this_host(tmp_path: Path) -> None:
    code = "import sys; print(sys.stdin.read()[::-1])"
    assert refine._command([sys.executable, "-c", code], "abc") == b"cba"
    with pytest.raises(RecurosError, match="E2-MODEL"):
        refine._command([str(tmp_path / "none")], "abc")
    with pytest.raises(RecurosError, match="E5-DENIED"):
        refine._http("http://example.org/", "abc")


# The sandbox by itself


def test_a_hidden_directory_is_unreadable_and_an_attempt_is_on_record(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("the gate needs strace")
    secret = tmp_path / "original"
    secret.mkdir()
    (secret / "weights").write_text("here", encoding="utf-8")
    (tmp_path / "link").symlink_to(secret / "weights")
    code = f"import os\ntry:\n open({str(tmp_path / 'link')!r})\nexcept OSError: os._exit(7)"
    traced = sandbox.run([sys.executable, "-c", code], [secret], tmp_path / "w" / "t.trace", ROOT)
    assert traced.returncode == 7
    assert traced.under([secret]) == [str(secret / "weights")]
    assert not traced.network
    assert (secret / "weights").read_text(encoding="utf-8") == "here"


def test_without_strace_nothing_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RecurosError, match="E1-NO"):
        sandbox.means()


def test_a_control_that_is_missed_makes_the_gate_invalid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A blind trace: the control says so."""
    blind = sandbox.Traced(0, [], [], "")
    monkeypatch.setattr(proof, "_run", lambda *_: blind)
    case = proof.Case(tmp_path, tmp_path, tmp_path, {}, {}, [], 42)
    found = proof._poison(case)
    assert not found["caught"]
    assert len(found["problems"]) == 2
