"""The gate's sandbox and its verdict against whoever would like to get round them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexus.bundle import format as form
from nexus.contracts import Contract
from nexus.gate import prove as proof
from nexus.gate import sandbox
from nexus.judge import FAIL, PASS
from syscalls.errors import RecurosError
from tests.unit import nexus_support as make

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("code", "sort", "canary")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proof") / "b"
    make.bundle(path)
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "weights").write_text("a teacher")
    return tmp_path / "secret"


def run(code: str, secret: Path, tmp_path: Path, *args: str) -> sandbox.Traced:
    try:
        command = [sys.executable, "-I", "-S", "-c", code, str(secret), *args]
        return sandbox.run(command, [secret], tmp_path / "work" / "t.trace", ROOT)
    except RecurosError as error:
        pytest.skip(f"no sandbox here: {error.message}")


WAYS = {
    "by its name": "open(sys.argv[1] + '/weights')",
    "by changing directory": "os.chdir(sys.argv[1]); open('weights')",
    "by an open directory": "os.open('weights', os.O_RDONLY, dir_fd=os.open(sys.argv[1], os.O_RDONLY))",
    "by a link": "os.symlink(sys.argv[1], sys.argv[2]); open(sys.argv[2] + '/weights')",
    "by dots": "open(sys.argv[1] + '/../secret/weights')",
    "by a child": "subprocess.run(['/bin/cat', sys.argv[1] + '/weights'], check=True, stdout=sys.stderr)",
    "by another process's root": "open(f'/proc/{os.getppid()}/root' + sys.argv[1] + '/weights')",
    "by its own root": "open('/proc/self/root' + sys.argv[1] + '/weights')",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_hidden_file_is_neither_read_nor_tried_unseen(way: str, secret: Path, tmp_path: Path) -> None:
    code = f"import os, subprocess, sys\n{WAYS[way]}\nsys.exit(3)"
    traced = run(code, secret, tmp_path, str(tmp_path / "link"))
    assert traced.returncode != 3, "it was read"
    assert traced.under([secret])


def test_what_is_not_hidden_is_no_offence(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    traced = run("import sys; open(sys.argv[2]).read()", secret, tmp_path, str(tmp_path / "other"))
    assert traced.returncode == 0
    assert traced.under([secret]) == []
    assert traced.under([tmp_path / "other"])
    assert traced.network == []


def case(bundle: Path, tmp_path: Path, names: tuple[str, ...] = NAMES) -> proof.Case:
    contracts = {n: Contract(n, "exact-match", 0.97, 0.0, 400) for n in names}
    ones = {n: np.ones(400) for n in names}
    return proof.Case(bundle, tmp_path / "work", tmp_path / "items", ones, contracts, [], 42)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The parts that take processes, played by what the test says they found."""
    found: dict[str, Any] = {
        "scores": {n: [1.0] * 400 for n in NAMES},
        "leak": {"canary by backbone": 0.0},
        "denied": {"canary": "E5-DENIED"},
        "routes": {n: {"to": {n: 400}, "scores": [1.0] * 400} for n in ("code", "sort")},
        "opened": [],
        "hidden": [],
    }
    monkeypatch.setattr(sandbox, "means", lambda: "played")
    monkeypatch.setattr(proof, "_poison", lambda _case: {"problems": []})
    monkeypatch.setattr(proof, "_hidden", lambda _case: found["hidden"])
    monkeypatch.setattr(
        proof, "_check", lambda _case, _about, *, opened: (found, sandbox.Traced(0, found["opened"], [], ""))
    )
    return found


def test_a_good_bundle_passes(made: Path, tmp_path: Path, checked: dict[str, Any]) -> None:
    assert proof.prove(case(made, tmp_path))["verdict"] == PASS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("leak", {"canary by backbone": 0.0025}),
        ("denied", {"canary": ""}),
        ("hidden", ["the hiding control failed"]),
        ("scores", {**{n: [1.0] * 400 for n in NAMES}, "sort": [0.9] * 400}),
        ("routes", {"sort": {"to": {"code": 40, "sort": 360}, "scores": [0.0] * 40 + [1.0] * 360}}),
    ],
)
def test_one_fault_is_enough(made: Path, tmp_path: Path, checked: dict[str, Any], key: str, value: Any) -> None:
    checked[key] = value
    assert proof.prove(case(made, tmp_path))["verdict"] == FAIL


def test_the_gated_file_opened_with_the_gate_closed_is_enough(
    made: Path, tmp_path: Path, checked: dict[str, Any]
) -> None:
    checked["opened"] = [str((made / form.adapter_path("canary")).resolve())]
    assert proof.prove(case(made, tmp_path))["verdict"] == FAIL


def test_a_capability_that_nobody_judged_does_not_pass(made: Path, tmp_path: Path, checked: dict[str, Any]) -> None:
    for names in ((), ("code", "sort"), ("other",)):
        with pytest.raises(RecurosError, match="has no contract"):
            proof.prove(case(made, tmp_path, names))
