"""Changes with a reason, and questions whether a change would be accepted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from test_programs import WHO, booted, call, commit, op, program
from world import S, World, digest, document

from kernel.proposal import ANSWERED_ELSEWHERE, DECIDED_HERE
from kernel.state import State
from kfs.records import RecordKind
from probes import isa
from syscalls import abi
from syscalls.errors import RecurosError

SNAPSHOT = digest("some snapshot")
CHANGES: dict[str, dict[str, Any]] = {
    "rl_set_kd": {"temperature": 3.0},
    "rl_gate_samples": {"criteria": {"drop_low": 0.1}},
    "rl_prune": {"mask_spec": {"sparsity": 0.5}},
    "rl_swap_roles": {"mode": "ema"},
    "rl_snapshot": {"name": "best"},
    "rl_restore": {"snapshot": SNAPSHOT},
    "rl_schedule": {"window": {"budget_ms": 5, "period_ms": 5_000}, "deadline": 5_000},
    "interrupt": {"kind": "pause"},
    "cap_derive": {"cap": 1, "rights": ["steer"], "to": "observer"},
}
KINDS = {
    "rl_set_kd": "kd.set",
    "rl_gate_samples": "gate.set",
    "rl_prune": "prune",
    "rl_swap_roles": "swap",
    "rl_snapshot": "snapshot",
    "rl_restore": "restore",
    "rl_schedule": "sched.set",
    "interrupt": "interrupt",
    "cap_derive": "cap.derive",
}


def propose(world: World, name: str, /, reason: str = "", dry_run: bool = False, **args: Any) -> dict[str, Any]:
    row = abi.SYSCALL_BY_NAME[name]
    return call(world, "propose", syscall=row.nr, args=row.bind(args), reason=reason, dry_run=dry_run)


def decided(state: State) -> dict[str, Any]:
    """What changes change."""
    keys = ("directives", "kd", "gate", "policies", "paused", "phase", "reservation", "drain_mode", "probes")
    held = {who: state.caps.to_list(who) for who in ("observer", "learner", WHO)}
    return copy.deepcopy({**{key: getattr(state, key) for key in keys}, "held": held})


@pytest.fixture(scope="module")
def world() -> World:
    found = booted(windows=(2, 400, 2))
    commit(found, 3)
    return found


def test_every_change_can_be_proposed_and_nothing_else() -> None:
    rights = abi.Right.STEER | abi.Right.INTERRUPT | abi.Right.SCHED_CONTROL | abi.Right.ATTACH_PROBE
    rights |= abi.Right.GRANT | abi.Right.REVOKE
    changes = {row.name for row in abi.SYSCALLS if row.right & rights}
    assert changes == DECIDED_HERE | ANSWERED_ELSEWHERE, "say whether the kernel alone decides the new change"


@pytest.mark.parametrize("name", CHANGES)
def test_a_dry_run_answers_and_changes_and_records_nothing(world: World, name: str) -> None:
    assert world.state is not None
    call(world, "interrupt", kind="pause")
    before, log = decided(world.state), [r.kind for r in world.disk.log]
    answer = propose(world, name, dry_run=True, **CHANGES[name])
    assert answer["reply"] == []
    assert answer["step"] >= 0
    assert repr(decided(world.state)) == repr(before)
    assert KINDS[name] not in [r.kind for r in world.disk.log[len(log) :]]
    call(world, "interrupt", kind="resume")


@pytest.mark.parametrize("name", CHANGES)
def test_a_reason_is_in_the_record_of_the_change(name: str) -> None:
    world = booted(windows=(2, 400, 2))
    commit(world, 3)
    row = abi.SYSCALL_BY_NAME[name]
    answer = propose(world, name, reason="the night shift wants it", **CHANGES[name])
    reply = row.check_reply(answer["reply"])
    record = world.disk.log[reply["seq"]]
    assert record.kind == KINDS[name]
    assert record.args["reason"] == "the night shift wants it"
    assert answer["step"] == reply.get("step", -1)


def test_a_dry_run_is_refused_as_the_change_would_be(world: World) -> None:
    with pytest.raises(RecurosError, match="temperature=9 is outside") as hot:
        propose(world, "rl_set_kd", dry_run=True, temperature=9.0)
    assert hot.value.code == "E2-LIMIT"
    with pytest.raises(RecurosError, match="refused") as full:
        propose(world, "rl_schedule", dry_run=True, window={"budget_ms": 999, "period_ms": 1000}, deadline=1)
    assert full.value.code == "E6-ADMIT"
    assert not any(r.kind is RecordKind.SCHED_REFUSE for r in world.disk.log)


def test_what_cannot_be_proposed_is_named(world: World) -> None:
    with pytest.raises(RecurosError, match="not 3"):
        propose(world, "status")
    with pytest.raises(RecurosError, match="a dry run of its own"):
        propose(world, "kfs_gc", dry_run=True, ids=[], scores=[])
    with pytest.raises(RecurosError, match="1001 characters"):
        propose(world, "rl_swap_roles", reason="x" * 1001, mode="ema")


def test_a_dry_run_of_a_program_verifies_it_and_keeps_nothing(world: World) -> None:
    assert world.state is not None
    call(world, "interrupt", kind="pause")
    before, held, size = decided(world.state), dict(world.disk.blobs), len(world.disk.log)
    row = abi.SYSCALL_BY_NAME["rl_load_probe"]
    proved = row.check_reply(propose(world, "rl_load_probe", dry_run=True, program=program())["reply"])
    assert proved["digest"] == "sha256:" + isa.digest(program())
    assert proved["seq"] == -1
    assert proved["certificate"]["cost"] > 0
    assert call(world, "probe_programs")["programs"] == []
    assert dict(world.disk.blobs) == held
    assert not any(r.kind is RecordKind.PROBE_LOAD for r in world.disk.log[size:])
    with pytest.raises(RecurosError) as refused:
        propose(world, "rl_load_probe", dry_run=True, program=program(body=(op("FOR", 0, 7),)))
    assert refused.value.code.startswith("E8-")
    assert repr(decided(world.state)) == repr(before)
    call(world, "interrupt", kind="resume")


def test_a_dry_run_of_a_probe_says_where_it_would_sit_and_attaches_nothing() -> None:
    world = booted(windows=(2, 400, 2))
    commit(world, 3)
    call(world, "interrupt", kind="pause")
    digest_ = call(world, "rl_load_probe", program=program())["digest"]
    assert world.state is not None
    row, size, before = abi.SYSCALL_BY_NAME["rl_attach_probe"], len(world.disk.log), set(world.state.probes)
    found = row.check_reply(propose(world, "rl_attach_probe", dry_run=True, hook="", prog=digest_)["reply"])
    assert (found["id"], found["seq"]) == (0, -1)
    assert len(found["sites"]) > 0
    assert set(world.state.probes) == before
    assert not any(r.kind is RecordKind.PROBE_ATTACH for r in world.disk.log[size:])
    attached = call(world, "rl_attach_probe", hook="", prog=digest_)
    assert attached["id"] == max(before) + 1, "a probe that was only tried takes no number"
    assert attached["sites"] == found["sites"]


def test_a_dry_run_of_a_probe_that_costs_too_much_is_refused_and_not_recorded() -> None:
    world = booted(windows=(2, 400, 2))
    commit(world, 3)
    body = (op("VARG", 0), *(op("SUMSQ", 1, 0) for _ in range(40)))
    dear = call(world, "rl_load_probe", program=program("dear", body=body))["digest"]
    with pytest.raises(RecurosError, match="share") as refused:
        propose(world, "rl_attach_probe", dry_run=True, hook="", prog=dear, every=1)
    assert refused.value.code == "E6-ADMIT"
    assert not any(r.kind is RecordKind.SCHED_REFUSE for r in world.disk.log)


def test_a_dry_run_of_a_shutdown_leaves_the_runtime_up(world: World) -> None:
    assert world.state is not None
    assert propose(world, "shutdown", dry_run=True, mode="now")["reply"] == []
    assert not world.state.halting
    with pytest.raises(RecurosError, match="shutdown mode"):
        propose(world, "shutdown", dry_run=True, mode="soon")


@pytest.mark.parametrize("name", ["rl_calibrate", "evaluate"])
def test_a_dry_run_of_what_the_observer_answers_asks_nobody(world: World, name: str) -> None:
    size = sum(r.kind in ("calibrate", "evaluate") for r in world.disk.log)
    assert propose(world, name, dry_run=True)["step"] >= 0
    assert sum(r.kind in ("calibrate", "evaluate") for r in world.disk.log) == size
    fresh = booted(windows=(2, 400, 2))
    assert fresh.state is not None
    if not fresh.state.committed:
        with pytest.raises(RecurosError, match="no window is committed yet"):
            propose(fresh, name, dry_run=True)


def test_a_proposal_needs_the_right_of_the_change() -> None:
    doc = document(windows=(2, 400, 2)) | {"operator_rights": ["attach-probe", "read-trace"]}
    world = World(7, doc)
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "running", 30 * S)
    world.hello()
    with pytest.raises(RecurosError, match="steer") as denied:
        propose(world, "rl_set_kd", dry_run=True, temperature=3.0)
    assert denied.value.code == "E5-DENIED"


def test_going_back_travels_inside_the_next_window_and_survives_a_crash() -> None:
    world = booted(windows=(2, 400, 2))
    commit(world, 3)
    call(world, "interrupt", kind="pause")
    answer = call(world, "rl_restore", snapshot=SNAPSHOT)
    assert world.disk.log[answer["seq"]].args["snapshot"] == SNAPSHOT
    assert world.state is not None
    assert ["restore", {"snapshot": SNAPSHOT}] in world.state.directives
    with pytest.raises(RecurosError, match="is not a root id"):
        call(world, "rl_restore", snapshot="best")
    seq = answer["seq"]
    call(world, "interrupt", kind="resume")
    commit(world, 3)
    grant = next(r for r in world.disk.log[seq:] if r.kind is RecordKind.WINDOW_GRANT)
    assert ["restore", {"snapshot": SNAPSHOT}] in grant.args["directives"]
