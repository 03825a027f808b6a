"""A page that was lent and revoked: who keeps it is killed, who lets go of it is not. Real processes, real mappings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Live, document

from syscalls import harden

CAP_SYS_PTRACE = 19
MAY_LOOK = os.geteuid() == 0 and harden.prctl(harden.PR_CAPBSET_READ, CAP_SYS_PTRACE) == 1


@pytest.mark.skipif(not MAY_LOOK, reason="without CAP_SYS_PTRACE nobody may look into what a server maps")
def test_a_server_that_keeps_a_revoked_page_is_killed_and_one_that_lets_go_is_not(tmp_path: Path) -> None:
    doc = document(tmp_path / "run")
    learner, dataset = doc["servers"][3], doc["servers"][2]
    learner |= {"entry": "fake_lender", "calls": ["archivist", "dataset"]}
    learner["rights"] = [*learner["rights"], "grant", "revoke"]
    dataset["entry"] = "fake_keeper"
    runtime = Live(tmp_path / "run", doc)
    try:
        runtime.up()
        runtime.until(lambda: runtime.server("dataset")["incarnation"] == 2, "the keeper was killed")
        runtime.goes_on(2)
        assert runtime.refused("page lease") == 1, "the page that was let go of cost nobody anything"
        events = runtime.client.events(limit=4096)["events"]
        (fault,) = [e for e in events if e["kind"] == "fault" and "after it was revoked" in e["message"]]
        assert (fault["name"], fault["code"]) == ("dataset", "E5-DENIED")
        restarts = {s["name"]: s["restarts"] for s in runtime.status()["servers"]}
        assert restarts == {"archivist": 0, "gpu": 0, "dataset": 1, "learner": 0, "observer": 0}
        runtime.halt()
    finally:
        runtime.clean()
