"""Every built-in attached to a running job: admitted, fired, read, and no bit of the run changed by it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_lifecycle import of_kind, short_manifest, until
from test_probes_live import alive, snapshots

import recuros
from kfs.records import RecordKind
from probes import catalogue

GLOBS = {"on_forward": ":student/blocks.**", "on_grad": ":student/blocks.**", "on_attention": ":student/**"}


@contextlib.contextmanager
def booted(base: Path) -> Iterator[Any]:
    base.mkdir()
    changes = {'pack = "starter"': 'pack = "static"', "windows = 20": "windows = 60"}
    runtime = recuros.boot(config=short_manifest(base / "m.toml", **changes), run=base / "run", detach=True)
    try:
        with recuros.connect(base / "run") as client:
            yield client
            client.syscall("shutdown")
        until(lambda: not alive(base / "run"), "the run has ended")
    finally:
        runtime.kill()


def status(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.status()["status"]
    return found


def attach_all(client: Any) -> dict[str, int]:
    """Ids by name."""
    numbers = {}
    for name, builtin in catalogue.BUILTINS.items():
        hook = builtin.hooks[0] + GLOBS.get(builtin.hooks[0], "")
        prog = f"builtin:{name}" + (",windows=1" if hook == "on_snapshot" else "")
        numbers[name] = client.rl_attach_probe(hook=hook, prog=prog, every=5)["id"]
    return numbers


def figures(client: Any, number: int) -> dict[str, Any]:
    summary: dict[str, Any] = client.probe_read(id=number)["maps"]["summary"]
    return summary


@pytest.mark.timeout(300)
def test_every_built_in_runs_in_a_live_job_and_changes_no_bit_of_it(tmp_path: Path) -> None:
    with booted(tmp_path / "probed") as client:
        until(lambda: status(client)["phase"].get("train") == "student", "distillation")
        numbers = attach_all(client)
        until(lambda: figures(client, numbers["mahalanobis"])["distance"] is not None, "rows are scored")
        until(lambda: figures(client, numbers["fisher"])["trace"] is not None, "a window's end was looked at")
        found = {name: figures(client, number) for name, number in numbers.items()}
        rows = {row["program"]: row for row in client.probe_list()["probes"]}
        last = status(client)
    assert {name: row["evicted"] for name, row in rows.items() if row["evicted"]} == {}
    assert last["windows"]["rolled_back"] == last["windows"]["missed"] == 0
    assert of_kind(tmp_path / "probed" / "run", RecordKind.SCHED_REFUSE) == []
    assert all(row["fired"] > 0 for row in rows.values() if "on_prune" not in row["hook"])
    assert found["cka"]["cka"] is not None
    assert 0 <= found["ece"]["ece"] <= 1
    assert found["fisher"]["trace"] > 0
    assert found["jacobian"]["drift"] > 0
    assert found["attn-kl"]["layers"] == len(found["attn-entropy"]["layers"]) == 2
    assert found["svcca"]["svcca"] is not None
    assert rows["builtin:fisher"]["charged_ns"] > 0
    goal = last["done_windows"]
    with booted(tmp_path / "plain") as client:
        until(lambda: status(client)["done_windows"] >= goal, "as many windows")
    probed, plain = (snapshots(tmp_path / name / "run") for name in ("probed", "plain"))
    common = sorted(set(plain) & set(probed))
    assert len(common) >= goal
    assert [plain[window] for window in common] == [probed[window] for window in common]
