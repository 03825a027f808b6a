"""SCHED_DEADLINE for a process: granted and seen by the host, or refused with the reason and nothing changed. Each case in a process."""

from __future__ import annotations

import json
import subprocess
import sys

TRY = """
import json, os, sys, threading
from syscalls import hostsched
{before}
cpus = sorted(os.sched_getaffinity(0))
policy, why = hostsched.ask()
in_force = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
started = threading.Thread(target=lambda: None); started.start(); started.join()
print(json.dumps([policy, why, in_force, cpus == sorted(os.sched_getaffinity(0))]))
"""


def tried(before: str = "") -> tuple[str, str, int, bool]:
    done = subprocess.run([sys.executable, "-c", TRY.format(before=before)], capture_output=True, text=True, check=True)
    policy, why, in_force, same = json.loads(done.stdout)
    return policy, why, in_force, same


def test_what_is_said_is_what_the_host_has_in_force() -> None:
    policy, why, in_force, same = tried()
    if why:
        assert policy == "SCHED_OTHER"
        assert in_force == 0
        assert same, "a refused process keeps its CPUs"
    else:
        assert policy.startswith("SCHED_DEADLINE")
        assert in_force == 6


def test_a_process_without_the_privilege_is_refused_and_told_so() -> None:
    drop = "from syscalls.harden import harden; harden()"
    policy, why, in_force, same = tried(drop)
    assert (policy, in_force, same) == ("SCHED_OTHER", 0, True)
    assert "refused" in why


def test_an_unknown_machine_is_refused_and_told_so() -> None:
    policy, why, in_force, _ = tried("import platform; platform.machine = lambda: 'pdp11'")
    assert (policy, in_force) == ("SCHED_OTHER", 0)
    assert "pdp11" in why


def test_asking_whether_it_is_permitted_changes_nothing() -> None:
    code = (
        "import os; from syscalls import hostsched; a = os.sched_getscheduler(0), os.sched_getaffinity(0);"
        "print(hostsched.permitted()); assert a == (os.sched_getscheduler(0), os.sched_getaffinity(0))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
