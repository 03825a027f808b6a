"""Probe programs in the simulated runtime: loading, attaching, resuming, and never making anybody else wait."""

from __future__ import annotations

import time
from typing import Any

import pytest
from invariants import check_ledger
from world import MS, SLICE_NS, S, World, digest, document

from kernel import programs
from kernel.events import Continue, Event
from probes import isa
from probes.isa import BY_NAME, Bytecode, Instruction, MapKind, MapSpec
from syscalls import limits
from syscalls.errors import RecurosError

WHO = "operator:7.1"


def op(name: str, d: int = 0, a: int = 0, b: int = 0, aux: int = 0, imm: int | float = 0) -> Instruction:
    return Instruction(BY_NAME[name], d, a, b, aux, imm)


def program(
    name: str = "rms", *, hook: str = "on_forward:student/blocks.*", body: tuple[Instruction, ...] = ()
) -> bytes:
    """The sum of squares of the output into a per-site cell, after `body`."""
    code = (
        *body,
        op("VARG", 0),
        op("SUMSQ", 0, 0),
        op("ICONST", 0),
        op("MADD", 0, 0, 0, aux=0),
        op("EXIT"),
    )
    return isa.encode(Bytecode(name, hook, 5, (MapSpec("sums", MapKind.ARRAY, 1, per_site=True),), code))


def hostile(name: str = "hostile") -> bytes:
    """As much work for the verifier as bytes allow: nested loops whose facts change from round to round, to the last instruction."""
    inner = tuple(op("IADD", 4 + i % 8, 4 + (i + 1) % 8, 4 + (i + 3) % 8) for i in range(4000))
    start = tuple(op("ICONST", i, imm=i) for i in range(16))
    loops = (op("FOR", 0, 12), op("FOR", 1, 13), *inner, op("ENDFOR"), op("ENDFOR"))
    return program(name, body=(*start, *loops))


def booted(**options: Any) -> World:
    world = World(7, document(**options))
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "running", 30 * S)
    world.hello()
    return world


def answer(world: World, call: int) -> dict[str, Any]:
    """The answer to a call; raises the error that it carries."""
    key = (WHO, call)
    assert world.run(lambda: key in world.answers, 60 * S), "nobody answered"
    reply = world.answers[key]
    if not reply.ok:
        raise RecurosError.from_wire(reply.payload)
    from syscalls import abi

    return abi.SYSCALL_BY_NAME[world.asked[key]].check_reply(reply.payload)


def call(world: World, name: str, /, **args: Any) -> dict[str, Any]:
    return answer(world, world.operator(name, **args))


def commit(world: World, windows: int = 1) -> None:
    """Let windows commit; what no commit stands before is not resumed."""
    assert world.state is not None
    goal = world.state.committed_window + windows
    assert world.run(lambda: world.state is not None and world.state.committed_window >= goal, 60 * S)


def test_a_program_is_durable_and_recorded_before_it_is_acknowledged() -> None:
    world = booted()
    data = program()
    done = call(world, "rl_load_probe", program=data)
    assert done["digest"] == "sha256:" + isa.digest(data)
    record = world.disk.log[done["seq"]]
    assert record.kind == "probe.load"
    assert record.actor == WHO
    assert world.disk.blobs[record.input_ids[0]] == data
    assert record.args == {
        "prog": "rms", "digest": isa.digest(data), "hook": "on_forward:student/blocks.*", "bytes": len(data)
    }  # fmt: skip
    certificate = done["certificate"]
    assert certificate["program"] == isa.digest(data)
    assert certificate["cost"] > isa.REFERENCE_DIMS["rows"] * isa.REFERENCE_DIMS["width"]
    (row,) = call(world, "probe_programs")["programs"]
    assert (row["digest"], row["owner"], row["probes"]) == (done["digest"], WHO, [])


def test_loading_the_same_program_again_answers_with_the_first_record() -> None:
    world = booted()
    first, second = (call(world, "rl_load_probe", program=program()) for _ in range(2))
    assert first["seq"] == second["seq"]
    assert sum(r.kind == "probe.load" for r in world.disk.log) == 1


def test_a_loaded_program_is_attached_by_a_prefix_of_its_digest() -> None:
    world = booted()
    done = call(world, "rl_load_probe", program=program())
    attached = call(world, "rl_attach_probe", hook="", prog=done["digest"][: len("sha256:") + 8], every=0)
    record = world.disk.log[attached["seq"]]
    assert record.args["prog"] == done["digest"] + ",every=5"
    assert record.args["hook"] == "on_forward:student/blocks.*"
    assert world.disk.blobs[record.input_ids[0]] == program()
    assert call(world, "probe_programs")["programs"][0]["probes"] == [attached["id"]]
    assert call(world, "probe_page", id=attached["id"])["page"] > 0
    call(world, "rl_detach_probe", id=attached["id"])
    with pytest.raises(RecurosError, match="no probe has id"):
        call(world, "probe_page", id=attached["id"])


@pytest.mark.parametrize(
    ("prog", "code", "says"),
    [
        ("sha256:", "E2-USAGE", "at least 8"),
        ("sha256:1234567", "E2-USAGE", "at least 8"),
        ("sha256:ABCDEF12", "E2-USAGE", "hexadecimal"),
        ("sha256:00000000", "E4-NOENT", "rms"),
    ],
)
def test_a_name_that_is_no_loaded_program_is_refused_with_those_there_are(prog: str, code: str, says: str) -> None:
    world = booted()
    call(world, "rl_load_probe", program=program())
    with pytest.raises(RecurosError, match=says) as refused:
        call(world, "rl_attach_probe", hook="", prog=prog)
    assert refused.value.code == code


def test_a_program_does_not_run_on_a_hook_it_was_not_written_for() -> None:
    world = booted()
    done = call(world, "rl_load_probe", program=program())
    with pytest.raises(RecurosError, match="written for on_forward") as refused:
        call(world, "rl_attach_probe", hook="on_kd_step", prog=done["digest"])
    assert refused.value.exit_status == 8


@pytest.mark.parametrize("at", [0, 5, 9, 40, 200, -33, -1])
def test_flipped_and_truncated_bytes_are_refused_and_nothing_is_kept(at: int) -> None:
    world = booted()
    data = bytearray(program())
    data[at] ^= 4
    for bad in (bytes(data), program()[: at % len(data)]):
        with pytest.raises(RecurosError) as refused:
            call(world, "rl_load_probe", program=bad)
        assert refused.value.code in ("E8-ENCODING", "E9-VERSION")
    assert not world.disk.blobs
    assert world.state is not None
    assert not world.state.checks


def test_what_the_verifier_refuses_is_refused_with_its_rule_and_instruction() -> None:
    world = booted()
    with pytest.raises(RecurosError) as refused:
        call(world, "rl_load_probe", program=program(body=(op("FADD", 1, 2, 3),)))
    assert refused.value.code == "E8-VERIFY"
    assert refused.value.details["pc"] == 0
    assert refused.value.details["rule"].startswith("E8-VERIFY:")
    assert not world.disk.blobs


def test_rights_are_those_of_the_capability_that_was_used() -> None:
    """A session that hands itself a narrower capability is held to it."""
    world = booted()
    done = call(world, "rl_load_probe", program=program())
    slot = call(world, "cap_derive", cap=1, rights=["attach-probe"])["slot"]
    from kernel.events import Received
    from syscalls import abi, wire

    row = abi.SYSCALL_BY_NAME["rl_attach_probe"]
    for number, (cap, right) in enumerate(((slot, "read-trace"), (99, "slot 99")), 900):
        world.asked[WHO, number] = row.name
        args = row.bind({"hook": "", "prog": done["digest"]})
        world.step(Received(WHO, WHO.encode(), wire.Call(number, row.nr, cap, args)))
        with pytest.raises(RecurosError, match=right) as refused:
            answer(world, number)
        assert refused.value.code == "E5-DENIED"


def test_an_operator_without_the_right_neither_loads_nor_attaches() -> None:
    doc = document()
    doc["operator_rights"] = ["steer"]
    world = World(7, doc)
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "running", 30 * S)
    world.hello()
    for name, args in (
        ("rl_load_probe", {"program": program()}),
        ("rl_attach_probe", {"hook": "", "prog": "sha256:" + "0" * 64}),
        ("probe_page", {"id": 1}),
    ):
        with pytest.raises(RecurosError) as refused:
            call(world, name, **args)
        assert refused.value.code == "E5-DENIED"


def test_cost_beyond_the_windows_share_is_refused_with_a_witness_on_record() -> None:
    world = booted()
    costly = program("costly", body=(op("VARG", 0), *(op("SUMSQ", 1, 0) for _ in range(40))))
    done = call(world, "rl_load_probe", program=costly)
    with pytest.raises(RecurosError, match="share") as refused:
        call(world, "rl_attach_probe", hook="", prog=done["digest"], every=1)
    assert refused.value.code == "E6-ADMIT"
    assert refused.value.exit_status == 6
    witness = refused.value.details
    assert witness["probe_ns"] > witness["share_max_ns"] == int(limits.PROBE_SHARE_MAX * witness["budget_ns"])
    refusals = lambda: [r for r in world.disk.log if r.kind == "sched.refuse"]  # noqa: E731
    assert world.run(lambda: bool(refusals()), S)
    (record,) = refusals()
    assert record.args["witness"]["probe_ns"] == witness["probe_ns"]
    assert record.actor == WHO


def test_probes_share_their_part_of_the_budget() -> None:
    """Each alone fits; together they do not, and detaching one makes room again."""
    world = booted(detached=True)
    body = (op("VARG", 0), *(op("SUMSQ", 1, 0) for _ in range(2)))
    programs_ = [program(f"p{i}", body=body) for i in range(4)]
    *some, last = (call(world, "rl_load_probe", program=data)["digest"] for data in programs_)
    ids = [call(world, "rl_attach_probe", hook="", prog=digest_, every=4)["id"] for digest_ in some]
    with pytest.raises(RecurosError) as refused:
        call(world, "rl_attach_probe", hook="", prog=last, every=4)
    assert refused.value.code == "E6-ADMIT"
    call(world, "rl_detach_probe", id=ids[0])
    call(world, "rl_attach_probe", hook="", prog=last, every=4)


def test_a_hostile_program_of_the_largest_size_delays_no_window() -> None:
    """It is verified for many slices; nobody waits for more than one of them, and windows go on meanwhile."""
    world = booted(detached=True, windows=(3, 5000, 2))
    world.late_ns_max = world.slices = 0
    spent: list[int] = []
    plain = world.step

    def timed(event: Event) -> None:
        begun = time.thread_time_ns()
        plain(event)
        if isinstance(event, Continue):
            spent.append(time.thread_time_ns() - begun)

    world.step = timed  # type: ignore[method-assign]
    loads = [hostile(f"hostile{i}") for i in range(limits.PROGRAM_CHECKS_MAX)]
    calls = [world.operator("rl_load_probe", program=data) for data in loads]
    committed = world.state.counts["committed"] if world.state else 0
    visits = sum(answer(world, number)["certificate"]["visits"] for number in calls)
    assert visits > 0.9 * isa.VISITS_MAX * len(calls)
    assert world.slices >= visits // programs.VISITS_PER_SLICE
    assert world.late_ns_max <= 2 * SLICE_NS
    assert world.state is not None
    assert world.state.counts["committed"] > committed
    spent.sort()
    assert spent[len(spent) * 9 // 10] <= MS, "nine slices of ten take less than a millisecond"


def test_checks_are_bounded_and_take_turns() -> None:
    world = booted()
    long = [world.operator("rl_load_probe", program=hostile()) for _ in range(limits.PROGRAM_CHECKS_MAX - 1)]
    short = world.operator("rl_load_probe", program=program())
    full = world.operator("rl_load_probe", program=program("another"))
    with pytest.raises(RecurosError) as refused:
        answer(world, full)
    assert refused.value.code == "E75-FULL"
    assert answer(world, short)["seq"] > 0
    assert all((WHO, number) not in world.answers for number in long)


def test_loaded_programs_are_bounded_and_the_oldest_idle_one_makes_room() -> None:
    world = booted(detached=True)
    used = call(world, "rl_load_probe", program=program("used"))["digest"]
    call(world, "rl_attach_probe", hook="", prog=used, every=1000)
    for i in range(limits.PROGRAMS_MAX + 1):
        call(world, "rl_load_probe", program=program(f"p{i}"))
    names = [p["name"] for p in call(world, "probe_programs")["programs"]]
    assert len(names) == limits.PROGRAMS_MAX
    assert "used" in names
    assert "p0" not in names
    assert f"p{limits.PROGRAMS_MAX}" in names


def test_an_attached_program_comes_back_with_the_next_boot_and_with_a_new_learner() -> None:
    world = booted(detached=True)
    commit(world)
    digest_ = call(world, "rl_load_probe", program=program())["digest"]
    attached = call(world, "rl_attach_probe", hook="", prog=digest_, every=7)
    world.end(world.processes["learner"], -9)
    page = lambda: world.state.probes[attached["id"]].page if world.state else 0  # noqa: E731
    before = page()
    assert world.run(lambda: page() not in (0, before), 30 * S), "the new learner attached it"
    for commits in (0, 3):  # from the tail of the ledger, and from the last commit
        commit(world, commits)
        world.power_cut()
        world.boot()
        assert world.run(lambda: bool(world.state and world.state.probes and page()), 60 * S)
        assert world.state is not None
        probe = world.state.probes[attached["id"]]
        assert (probe.prog, probe.every, probe.owner) == (digest_ + ",every=7", 7, WHO)
    attaches = [r for r in world.disk.log if r.kind == "probe.attach" and r.args["id"] == attached["id"]]
    assert len(attaches) == 1, "putting it back is no new decision"
    check_ledger(world.disk, built=digest("built"), policies=False)


@pytest.mark.parametrize("after_ms", range(60, 90, 3))
def test_a_program_comes_back_also_when_the_archivist_dies_while_it_is_fetched(after_ms: int) -> None:
    world = booted(detached=True)
    commit(world)
    digest_ = call(world, "rl_load_probe", program=program())["digest"]
    attached = call(world, "rl_attach_probe", hook="", prog=digest_)
    learner = world.processes["learner"]
    world.end(learner, -9)
    back = lambda: world.processes["learner"] is not learner and world.processes["learner"].alive  # noqa: E731
    assert world.run(back, 30 * S)
    world.run(lambda: False, after_ms * MS)
    world.end(world.processes["archivist"], -9)
    alive = lambda: bool(world.state and world.state.probes[attached["id"]].live and world.state.store_open)  # noqa: E731
    assert world.run(alive, 60 * S)
    commit(world)


def test_a_program_whose_owner_lost_the_right_does_not_come_back() -> None:
    world = booted(detached=True)
    commit(world)
    digest_ = call(world, "rl_load_probe", program=program())["digest"]
    attached = call(world, "rl_attach_probe", hook="", prog=digest_)
    world.power_cut()
    world.document["operator_rights"] = ["steer"]
    world.boot()
    assert world.run(lambda: any(r.kind == "fault" for r in world.disk.log), 60 * S)
    fault = next(r for r in world.disk.log if r.kind == "fault")
    assert fault.args["code"] in ("E5-DENIED", "E8-VERIFY")
    assert world.state is not None
    assert attached["id"] not in world.state.probes


def test_a_stored_program_that_is_not_the_one_named_is_found() -> None:
    world = booted()
    digest_ = call(world, "rl_load_probe", program=program())["digest"]
    (name,) = world.disk.blobs
    world.disk.blobs[name] = program("another")
    with pytest.raises(RecurosError) as refused:
        call(world, "rl_attach_probe", hook="", prog=digest_)
    assert refused.value.code == "E9-INTEGRITY"


def test_a_drain_answers_whoever_waits_for_the_verifier() -> None:
    world = booted()
    waiting = world.operator("rl_load_probe", program=hostile())
    world.operator("shutdown", mode="now", reason="enough")
    assert world.run(lambda: world.exit is not None, 60 * S)
    assert (WHO, waiting) in world.answers
    assert any(r.kind == "halt" for r in world.disk.log)
