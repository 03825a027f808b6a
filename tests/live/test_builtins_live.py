"""Every built-in attached to a running job: admitted, fired, read, and no bit of the run changed by it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from test_lifecycle import of_kind, short_manifest, until, weights

import recuros
from kfs.records import RecordKind
from probes import catalogue

GLOBS = {"on_forward": ":student/blocks.**", "on_grad": ":student/blocks.**", "on_attention": ":student/**"}


def figures(client: Any, number: int) -> dict[str, Any]:
    summary: dict[str, Any] = client.probe_read(id=number)["maps"]["summary"]
    return summary


def run_to_the_end(base: Path, *, probed: bool) -> tuple[dict[str, str], dict[str, dict[str, Any]], dict[str, Any]]:
    """One short plan; the weights it ends with, the figures of each built-in, and the last status."""
    changes = {'pack = "starter"': 'pack = "static"', 'end = "swap:ema"': "", "windows = 20": "windows = 40"}
    manifest = short_manifest(base / "m.toml", **changes)
    runtime = recuros.boot(config=manifest, run=base / "run", detach=True)
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(runtime.kill)
        client: Any = stack.enter_context(recuros.connect(base / "run"))
        status = lambda: client.status()["status"]  # noqa: E731
        if probed:
            until(lambda: status()["phase"].get("train") == "student", "distillation")
            numbers = {}
            for name, builtin in catalogue.BUILTINS.items():
                hook = builtin.hooks[0] + GLOBS.get(builtin.hooks[0], "")
                prog = f"builtin:{name}" + (",windows=1" if hook == "on_snapshot" else "")
                numbers[name] = client.rl_attach_probe(hook=hook, prog=prog, every=2)["id"]
            until(
                lambda: all(row["fired"] > 4 for row in client.probe_list()["probes"] if "prune" not in row["hook"]),
                "all have fired",
            )
            until(lambda: figures(client, numbers["mahalanobis"])["distance"] is not None, "rows are scored")
            found = {name: figures(client, number) for name, number in numbers.items()}
            found["rows"] = {row["program"]: row for row in client.probe_list()["probes"]}
        last = until(lambda: (s := status())["state"] in ("done", "idle") and s, "the plan is done")
        client.shutdown()
        runtime.wait()
    return weights(base / "run"), found, last


@pytest.mark.timeout(300)
def test_every_built_in_runs_in_a_live_job_and_changes_no_bit_of_it(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "probed").mkdir()
    plain, _, _ = run_to_the_end(tmp_path / "plain", probed=False)
    probed, found, status = run_to_the_end(tmp_path / "probed", probed=True)
    assert probed == plain
    rows = found.pop("rows")
    assert [row["evicted"] for row in rows.values() if row["evicted"]] == []
    assert status["windows"]["rolled_back"] == status["windows"]["missed"] == 0
    assert found["cka"]["cka"] is not None
    assert 0 <= found["ece"]["ece"] <= 1
    assert found["fisher"]["trace"] > 0
    assert found["jacobian"]["drift"] > 0
    assert found["attn-kl"]["layers"] == 2
    assert found["svcca"]["pairs"]
    assert found["mahalanobis"]["outliers"] is not None
    assert len(found["attn-entropy"]["layers"]) == 2
    assert of_kind(tmp_path / "probed" / "run", RecordKind.SCHED_REFUSE) == []
