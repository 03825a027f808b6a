"""The gate by what the operating system saw, and the bundle where nothing of the project is installed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import openai
import pytest
from packaging.requirements import Requirement

from console.main import run
from nexus import NexusModel
from nexus.bundle import format as form
from nexus.bundle.load import install
from nexus.bundle.quantize import quantize_bundle
from nexus.serve.server import Server, Settings
from syscalls.errors import RecurosError
from tests.unit import nexus_support as make
from tests.unit.nexus_support import one_thread  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
GATED = "canary_adapter"
WAIT_S = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gate") / "b"
    make.bundle(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Watch:
    """Every system call of this process that names a file, seen by strace."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[str] = []

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        command = [
            "strace",
            "-f",
            "-q",
            "-s",
            "4096",
            "-e",
            "trace=%file",
            "-o",
            str(self.path),
            "-p",
            str(os.getpid()),
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            marker = self.path.with_name("marker")
            seen = threading.Event()
            try:
                while not self._has("marker"):  # attached once it has seen this
                    if tracer.poll() is not None:
                        assert tracer.stderr is not None
                        pytest.skip(f"strace cannot attach: {tracer.stderr.read()[-200:]}")
                    marker.exists()
                    seen.wait(0.01)
                yield
            finally:
                tracer.send_signal(signal.SIGINT)
                tracer.wait(WAIT_S)
        self.calls = self.path.read_text(errors="replace").splitlines()

    def _has(self, text: str) -> bool:
        return self.path.exists() and text in self.path.read_text(errors="replace")

    def naming(self, text: str) -> list[str]:
        return [call for call in self.calls if text in call]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    return Watch(tmp_path / "trace")


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(RecurosError) as caught:
        act()
    return caught.value.code


def post(server: Server, body: dict[str, Any]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status


def everything_without_opt_in(bundle: Path, away: Path) -> None:
    """Whatever one can do with a bundle, short of opening its gate."""
    install(bundle)
    for full in (True, False):
        model = NexusModel.load(bundle, full=full)
    for name in (None, "code", "sort"):
        model.generate("def f", name, max_new_tokens=2)
        assert list(model.generate("1 2", name, stream=True, max_new_tokens=2)) is not None
    model.generate("def f", "code", enable_uncensored=True, max_new_tokens=1)
    model.generate("def f", None, enable_uncensored=True, max_new_tokens=1)
    assert refused(lambda: model.generate("x", "canary")) == "E5-DENIED"
    assert refused(lambda: list(model.generate("x", "canary", stream=True))) == "E5-DENIED"
    assert refused(lambda: model.student.set_adapter("canary")) == "E4-NOENT"
    assert refused(lambda: model.generate("x", "adapters/canary")) == "E4-NOENT"
    assert not [name for name in model.student.state_dict() if "canary" in name]
    quantize_bundle(bundle, away, "int8")
    assert run(["nexus", "generate", str(bundle), "x", "--capability", "canary"]) == 5
    assert run(["nexus", "verify", str(bundle)]) == 0
    server = Server(model, Settings(port=0))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        for body in (
            {"model": "nexus"},
            {"model": "nexus/canary"},
            {"model": "nexus/canary", "enable_uncensored": True},
        ):
            post(server, {"prompt": "x", "max_tokens": 1, **body})
    finally:
        server.stop()
        thread.join(WAIT_S)
        server.server_close()


def test_no_system_call_names_the_gated_file_without_the_opt_in(made: Path, tmp_path: Path, watch: Watch) -> None:
    everything_without_opt_in(made, tmp_path / "warm")  # what is imported on the way is not traced
    with watch.on():
        everything_without_opt_in(made, tmp_path / "q")
    assert watch.naming("code_adapter")
    assert watch.naming(GATED) == []


def test_the_trace_sees_the_gated_file_with_the_opt_in(made: Path, watch: Watch) -> None:
    model = NexusModel.load(made)
    with watch.on():
        model.generate("x", "canary", enable_uncensored=True, max_new_tokens=1)
    assert [call for call in watch.naming(GATED) if "openat" in call]


def test_a_gated_file_that_nobody_may_read_disturbs_nobody(made: Path, tmp_path: Path) -> None:
    """The same without a tracer: in the gated file's place is a pipe, which whoever opens it to read waits on."""
    bundle = Path(shutil.copytree(made, tmp_path / "piped"))
    (bundle / form.adapter_path("canary")).unlink()
    os.mkfifo(bundle / form.adapter_path("canary"))
    everything_without_opt_in(bundle, tmp_path / "q")
    model = NexusModel.load(bundle)
    assert refused(lambda: model.generate("x", "canary", enable_uncensored=True)) == "E9-INTEGRITY"


def test_with_the_gate_closed_the_answers_are_those_of_a_bundle_without_it(made: Path, tmp_path: Path) -> None:
    """Nothing leaks that is not there: two bundles whose gated adapters differ say the same, bit for bit, to everything else."""
    student = make.student()
    for parameter in student.adapter_parameters("canary"):
        parameter.data.mul_(-3)
    make.bundle(tmp_path / "other", student)
    one, two = NexusModel.load(made), NexusModel.load(tmp_path / "other")
    for path in one.manifest.files:
        if GATED not in path:
            assert one.manifest.files[path] == two.manifest.files[path]
    assert one.manifest.files[form.adapter_path("canary")] != two.manifest.files[form.adapter_path("canary")]


# Without the project

ALLOWED = ("torch", "transformers", "safetensors")


@pytest.fixture(scope="module")
def bare_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would install of torch, transformers and safetensors, and nothing else, as a directory of links."""
    site, todo, seen = tmp_path_factory.mktemp("site"), list(ALLOWED), set[str]()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for file in distribution.files or ():
            top = site / file.parts[0]
            if file.parts[0] != ".." and not top.exists():
                top.symlink_to(Path(str(distribution.locate_file(file.parts[0]))))
        needed = [Requirement(line) for line in distribution.requires or ()]
        todo += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert not {"pyzmq", "msgpack", "scikit-learn", "bitsandbytes", "recuros", "blake3", "psutil"} & seen
    return site


def isolated(site: Path, code: str, *args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    start = "import sys\nsys.path.append(sys.argv.pop(1))\n"
    command = [sys.executable, "-I", "-S", "-c", start + code, str(site), *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=folder, timeout=WAIT_S, check=False
    )


def test_it_loads_with_torch_transformers_and_safetensors_only(made: Path, bare_site: Path, tmp_path: Path) -> None:
    code = """
import json
sys.path.insert(0, sys.argv[1])
import nexus
assert "torch" not in sys.modules
from nexus import NexusModel
model = NexusModel.load(sys.argv[2])
ours = {"nexus", "syscalls", "kernel", "servers", "probes", "kfs", "console"}
mine = sorted(name for name in sys.modules if name.partition(".")[0] in ours)
print(json.dumps([model.generate("def f", max_new_tokens=8), mine]))
"""
    done = isolated(bare_site, code, str(ROOT), str(made), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    said, modules = json.loads(done.stdout)
    assert said == NexusModel.load(made).generate("def f", max_new_tokens=8)
    assert {name for name in modules if not name.startswith("nexus")} == {"syscalls", "syscalls.errors"}
    assert not [name for name in modules if name.startswith("nexus.") and name.split(".")[1] not in ("bundle", "model")]


def test_a_carried_bundle_brings_its_loader(made: Path, bare_site: Path, tmp_path: Path) -> None:
    """The archive in a directory where there is nothing else of us: as a program, and as a module."""
    bundle = Path(shutil.copytree(made, tmp_path / "carried"))
    code = """
import json, runpy
sys.argv = [sys.argv[1] + "/nexus.pyz", "generate", "def f", "--max-new-tokens", "8"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
import nexus, syscalls
print(json.dumps([nexus.__file__, syscalls.__file__]))
"""
    done = isolated(bare_site, code, str(bundle), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    said, files = done.stdout.rstrip("\n").rsplit("\n", 1)
    assert said == NexusModel.load(made).generate("def f", max_new_tokens=8)
    assert all(name.startswith(f"{bundle}/nexus.pyz/") for name in json.loads(files))


# The command line


def test_generate_prints_what_the_library_says(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = NexusModel.load(made).generate("def f", max_new_tokens=8)
    for extra in ([], ["--no-stream"]):
        assert run(["nexus", "generate", str(made), "def f", "--max-new-tokens", "8", *extra]) == 0
        assert capsys.readouterr().out == wanted + "\n"
    assert run(["nexus", "generate", str(made), "def f", "--max-new-tokens", "8", "--json"]) == 0
    doc = json.loads(capsys.readouterr().out)
    assert (doc["text"], doc["capability"], doc["prompt_tokens"]) == (wanted, "code", 5)
    assert run(["nexus", "generate", str(made), "x" * 200]) == 2
    assert run(["nexus", "generate", str(made / "nothing"), "x"]) == 4
    assert run(["nexus", "generate", str(made), "x", "--expect", "0" * 64]) == 9


def test_verify_stamps_and_says_the_id(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["nexus", "verify", str(made), "--no-stamp", "--json"]) == 0
    doc = json.loads(capsys.readouterr().out)
    assert doc["bundle"] == form.read_manifest(made).bundle_id
    assert doc["not_looked_at"] == [form.adapter_path("canary")]
    assert NexusModel.load(made).verdict.how == "full"
    assert run(["nexus", "verify", str(made)]) == 0
    assert NexusModel.load(made).verdict.how == "stamp"
    bundle = Path(shutil.copytree(made, tmp_path / "bad"))
    gated = bundle / form.adapter_path("canary")
    gated.write_bytes(gated.read_bytes()[:-1] + b"x")
    assert run(["nexus", "verify", str(bundle)]) == 0
    assert run(["nexus", "verify", str(bundle), "--enable-uncensored"]) == 9
    assert form.adapter_path("canary") in capsys.readouterr().err


def test_quantize_says_that_nobody_judged_where_there_is_no_run(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["nexus", "quantize", str(made), str(tmp_path / "q"), "nf4", "--run", str(tmp_path), "--json"]) == 0
    doc = json.loads(capsys.readouterr().out)
    assert (doc["gate"], doc["left_out"]) == ("not verified", ["canary"])
    assert form.read_manifest(tmp_path / "q").bundle_id == doc["bundle"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    assert run(["nexus", "quantize", str(made), str(tmp_path / "q"), "nf4", "--run", str(tmp_path)]) == 2


def test_serve_says_where_and_ends_at_a_signal(made: Path) -> None:
    command = [sys.executable, "-m", "console.main", "nexus", "serve", str(made), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        with openai.OpenAI(base_url=line["url"], api_key="x", max_retries=0, timeout=WAIT_S) as client:
            got = client.completions.create(model="nexus", prompt="def f", max_tokens=8)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    assert got.choices[0].text == NexusModel.load(made).generate("def f", max_new_tokens=8)
    assert line["gate"] == "closed"
