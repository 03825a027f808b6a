"""Probe programs: loaded, verified in slices, admitted by what they cost, attached.

Responsible for: `rl_load_probe` (decode, verify, have the archivist keep the bytes and the record, answer) and the attach
of a loaded program (the learner says which sites match and how large their tensors are; the program is verified once more
for that; the scheduler admits its cost; the learner attaches). The kernel keeps digests and certificates; whenever it
needs the bytes again the archivist fetches them, so a resumed program takes the same way as a new one.

Decoding and verifying are cut into slices of less than a millisecond: each ends with the effect `Again`, the loop serves
whoever waits, and the event `Continue` runs the next slice. Checks under way take turns.

Refuses: programs that the verifier rejects for these tensors and the caller's rights, and cost that the window's budget
does not hold: E6-ADMIT, with a witness on record.
"""

from __future__ import annotations

import math
from typing import Any, Final

from kernel import outbox
from kernel.broker import answer, answer_error, release_page, request
from kernel.events import Again
from kernel.plan import next_step
from kernel.sched import admit_probe
from kernel.state import KERNEL, Caller, Check, Probe, Program, State, Turn
from probes import catalogue, isa, sites
from probes.certificate import Certificate
from probes.verifier import Verification
from syscalls import abi, limits
from syscalls.abi import Right
from syscalls.errors import RecurosError

PREFIX: Final = "sha256:"
DIGITS_MIN: Final = 8
DECODED_PER_SLICE: Final = 120
"""Instructions; about 4 us each."""
VISITS_PER_SLICE: Final = 120
"""Instructions; at most 5 us each."""
BACKENDS: Final = ("jit", "vm")
JIT_FIRING_NS: Final = 10_000
"""What a firing of compiled code takes before its first unit."""
JIT_UNIT_NS: Final = 1.0
"""A unit in compiled code without loops: elements of a reduction in their order in memory."""
JIT_LOOP_UNIT_NS: Final = 3.0
"""A unit in compiled code with loops; the dearest are exp and log that wait for each other. A program is admitted by what will
run it in the end: until its compiled code is there the interpreter takes a few firings, which may cost more. How these figures
were measured, and what they leave out: docs/design/probe-loading.md."""
VM_INSTRUCTION_NS: Final = 100_000
"""An instruction in the interpreter that no loop repeats; the dearest are reductions of few elements."""
VM_UNIT_NS: Final = 4.0
"""A unit beyond that: elements of a reduction."""
VM_LOOP_UNIT_NS: Final = 450.0
"""A unit of a program with loops, where it can be one scalar instruction."""
NEEDED: Final = frozenset({"attach-probe", "read-trace"})


def rights_of(s: State, actor: str) -> tuple[str, ...]:
    """Rights of whoever attached a probe in an earlier boot: what the manifest gives such a principal now."""
    if actor.startswith("operator:"):
        return tuple(abi.right_names(s.config.operator_rights))
    server = s.config.servers.get(actor) or s.config.servers["observer"]
    return tuple(abi.right_names(server.rights))


# --- loading ------------------------------------------------------------------------------------------------------------


def load(t: Turn, caller: Caller, data: bytes, rights: Right) -> None:
    """Syscall rl_load_probe: check the envelope now, the rest in slices."""
    check = Check("load", data, caller, caller.principal, t.cap, tuple(abi.right_names(rights)))
    _begin(t, check)


def _begin(t: Turn, check: Check) -> None:
    s = t.state
    if len(s.checks) >= limits.PROGRAM_CHECKS_MAX:
        raise RecurosError(
            "E75-FULL", f"{len(s.checks)} programs are being verified, the limit", hint="try again in a moment"
        )
    check.decoding = isa.Decoding(check.data)
    s.checks.append(check)
    if len(s.checks) == 1:
        t.emit(Again())


def go_on(t: Turn) -> None:
    """One slice of the check whose turn it is."""
    s = t.state
    if not s.checks:
        return
    check = s.checks.popleft()
    try:
        if s.halting:
            raise RecurosError("E75-AGAIN", "the runtime is halting", hint="recuros boot")
        certificate = _slice(check)
        if certificate is None:
            s.checks.append(check)
        elif check.kind == "load":
            _keep(t, check, certificate)
        else:
            _admit(t, check, certificate)
    except RecurosError as error:
        failed(t, check.caller, check.probe, error)
    if s.checks:
        t.emit(Again())


def _slice(check: Check) -> Certificate | None:
    if check.program is None:
        assert check.decoding is not None
        check.program = check.decoding.step(DECODED_PER_SLICE)
        return None
    if check.verification is None:
        contract = isa.Contract(check.program.hook_kind, check.dims)
        check.verification = Verification(check.program, contract, check.rights, program_digest=isa.digest(check.data))
        return None
    return check.verification.step(VISITS_PER_SLICE)


def _keep(t: Turn, check: Check, certificate: Certificate) -> None:
    """Verified: the bytes become durable before anybody is told."""
    s = t.state
    known = s.programs.get(certificate.program)
    if check.caller is not None and check.caller.trial:
        proved = {"digest": PREFIX + certificate.program, "certificate": summary(certificate), "seq": -1}
        answer(t, check.caller, proved)
        return
    if known is not None and check.caller is not None:
        answer(
            t, check.caller, {"digest": PREFIX + known.digest, "certificate": summary(certificate), "seq": known.seq}
        )
        return
    _make_room(s)
    data = {"kind": "program", "data": check.data}
    request(t, "keep", "archivist.keep", data, check=check, certificate=certificate, caller=check.caller)


def _make_room(s: State) -> None:
    """Forget the oldest program that no probe uses; E2-LIMIT when all are in use."""
    used = {probe.digest for probe in s.probes.values()}
    while len(s.programs) >= limits.PROGRAMS_MAX:
        idle = next((digest for digest in s.programs if digest not in used), None)
        if idle is None:
            raise RecurosError(
                "E2-LIMIT",
                f"{len(s.programs)} programs are loaded, the limit, and all are attached",
                hint="recuros probe detach ID",
            )
        del s.programs[idle]


def kept(t: Turn, data: dict[str, Any], values: dict[str, Any]) -> None:
    """The archivist has the bytes; now the record."""
    check: Check = data["check"]
    certificate: Certificate = data["certificate"]
    assert check.program is not None
    program = Program(
        digest=certificate.program,
        object=values["id"],
        name=check.program.name,
        hook=check.program.hook,
        every=check.program.every,
        size=len(check.data),
        owner=check.actor,
        certificate=certificate.encode(),
        summary=summary(certificate),
    )
    outbox.record(
        t,
        "probe.load",
        {"prog": program.name, "digest": program.digest, "hook": program.hook[:256], "bytes": program.size},
        actor=check.actor,
        cap=check.cap,
        inputs=(program.object,),
        then="loaded",
        then_data={"caller": check.caller, "program": program},
    )


def loaded(t: Turn, data: dict[str, Any], seq: int) -> None:
    """The record is durable: the program exists."""
    program: Program = data["program"]
    program.seq = seq
    t.state.programs.setdefault(program.digest, program)
    if data["caller"]:
        answer(t, data["caller"], {"digest": PREFIX + program.digest, "certificate": program.summary, "seq": seq})


def summary(certificate: Certificate) -> dict[str, Any]:
    """What people and scripts read of a certificate."""
    return {
        "program": certificate.program,
        "isa_version": certificate.isa_version,
        "verifier_version": certificate.verifier_version,
        "hook": certificate.hook,
        "contract": certificate.contract,
        "rights": list(certificate.rights),
        "cost": certificate.cost,
        "visits": certificate.visits,
        "instructions": certificate.instructions,
    }


def to_list(s: State) -> list[dict[str, Any]]:
    """For people: the programs of this boot and the probes that run them."""
    return [
        {
            "digest": PREFIX + p.digest,
            "name": p.name,
            "hook": p.hook,
            "every": p.every,
            "bytes": p.size,
            "object": p.object,
            "owner": p.owner,
            "seq": p.seq,
            "certificate": p.summary,
            "probes": [probe.id for probe in s.probes.values() if probe.digest == p.digest],
        }
        for p in s.programs.values()
    ]


# --- attaching ----------------------------------------------------------------------------------------------------------


def find(s: State, prog: str) -> Program:
    """The loaded program that `sha256:HEX` names; HEX may be cut to DIGITS_MIN digits where that is unambiguous."""
    digits = prog.removeprefix(PREFIX)
    if len(digits) < DIGITS_MIN or set(digits) - set("0123456789abcdef"):
        raise RecurosError(
            "E2-USAGE",
            f"{prog!r:.80} is not {PREFIX} and at least {DIGITS_MIN} hexadecimal digits",
            hint="recuros probe ls --loaded",
        )
    found = [p for digest, p in s.programs.items() if digest.startswith(digits)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{PREFIX}{p.digest[:12]} ({p.name})" for p in (found or list(s.programs.values()))[:8])
    if found:
        raise RecurosError("E2-USAGE", f"{prog!r:.80} names {len(found)} programs: {names}", hint="give more digits")
    raise RecurosError(
        "E4-NOENT", f"no program {prog!r:.80} is loaded; there are: {names or 'none'}", hint="recuros probe load FILE"
    )


def attach(t: Turn, hook: str, prog: str, every: int, caller: Caller | None, actor: str, rights: Right) -> None:
    """Begin to attach a loaded program: ask the learner what the hook selects."""
    s = t.state
    program = find(s, prog)
    where = sites.parse(hook or program.hook)
    kind = program.hook.partition(":")[0]
    if where.kind != kind:
        raise RecurosError(
            "E8-VERIFY",
            f"program {program.name} is written for {kind} and cannot run on {where.kind}",
            hint=f"attach it to {program.hook}",
            details={"rule": "E8-VERIFY:hook", "pc": 0, "line": 0},
        )
    if not 0 <= every <= isa.EVERY_MAX:
        raise RecurosError("E2-LIMIT", f"every={every} is outside 0..{isa.EVERY_MAX} steps")
    held = tuple(abi.right_names(rights))
    check_rights(program.name, held)
    cadence = every or program.every
    probe = Probe(
        _number(s, caller), str(where), f"{PREFIX}{program.digest},every={cadence}", cadence,
        object=program.object, owner=actor,
    )  # fmt: skip
    _match(t, probe, caller, held, fresh=True)


def attach_builtin(
    t: Turn, hook: str, admitted: catalogue.Admitted, caller: Caller | None, actor: str, rights: Right
) -> None:
    """Begin to attach a built-in: the learner compiles it, and what it hands over is verified here like anyone's program."""
    s = t.state
    probe = Probe(_number(s, caller), hook, admitted.prog, int(admitted.params["every"]), owner=actor)
    _match(t, probe, caller, tuple(abi.right_names(rights)), fresh=True)


def _number(s: State, caller: Caller | None) -> int:
    """The next probe's id; one that is only tried has none."""
    if caller is not None and caller.trial:
        return 0
    s.next_probe += 1
    return s.next_probe - 1


def restore(t: Turn, probe: Probe) -> None:
    """Put a program of an earlier boot, or of the learner's earlier incarnation, back: by the same way, and not recorded again."""
    rights = rights_of(t.state, probe.owner)
    try:
        check_rights(probe.prog, rights)
    except RecurosError as error:
        failed(t, None, probe, error)
    else:
        _match(t, probe, None, rights, fresh=False)


def restore_missing(t: Turn) -> None:
    """The archivist is back: programs whose bytes it did not deliver before it died are asked for again."""
    s = t.state
    if not s.learner_ok:
        return  # they all come back with the learner
    under_way = {c.probe.id for c in s.checks if c.probe} | {
        p.data["probe"].id for p in s.pending.values() if p.kind in ("match", "fetch", "attach")
    }
    for probe in list(s.probes.values()):
        if not probe.live and probe.id not in under_way:
            restore(t, probe)


def check_rights(name: str, held: tuple[str, ...]) -> None:
    """Refuse whoever may not attach or not read: E5-DENIED."""
    if missing := sorted(NEEDED - set(held)):
        raise RecurosError(
            "E5-DENIED",
            f"program {name} needs the right {missing[0]}, which the caller does not hold",
            hint=f"grant {missing[0]} to the caller in the app manifest",
        )


def restoring(s: State) -> bool:
    """Whether a probe is on its way that the next window waits for: attached before, or, before the first one, by the manifest."""
    first = s.committed_window == 0
    return any(c.probe and (first or not c.fresh) for c in s.checks) or any(
        p.kind in ("match", "fetch", "attach") and (first or not p.data.get("fresh", True)) for p in s.pending.values()
    )


def _match(t: Turn, probe: Probe, caller: Caller | None, rights: tuple[str, ...], *, fresh: bool) -> None:
    request(
        t, "match", "learner.match", {"hook": probe.hook, "prog": "" if probe.object else probe.prog},
        probe=probe, caller=caller, rights=rights, fresh=fresh, cap=t.cap,
    )  # fmt: skip


def matched(t: Turn, data: dict[str, Any], values: dict[str, Any] | RecurosError) -> None:
    """The learner knows the sites: fetch the bytes, to verify them for what is there."""
    probe: Probe = data["probe"]
    if isinstance(values, RecurosError):
        failed(t, data["caller"], probe, values)
        return
    probe.sites = [str(site)[:1000] for site in values["sites"]]
    probe.backend = values["backend"] if values["backend"] in BACKENDS else "vm"
    probe.dims = _dims(probe, values["dims"])
    probe.extra, probe.pairs = max(0, values["extra"]), max(1, values["pairs"])
    if probe.object:
        request(t, "fetch", "archivist.fetch", {"id": probe.object}, **data)
    else:
        _verify(t, data, values["program"])


def _dims(probe: Probe, dims: dict[str, Any]) -> dict[str, int]:
    known = {symbol for view in isa.HOOK_VIEWS[probe.kind] for symbol in view.dims}
    for symbol, size in dims.items():
        if symbol not in known or type(size) is not int or not 0 < size <= isa.DIM_MAX:
            raise RecurosError("E2-LIMIT", f"the learner says that {symbol!r:.40} of {probe.hook} is {size!r:.40}")
    return dict(dims)


def fetched(t: Turn, data: dict[str, Any], values: dict[str, Any] | RecurosError) -> None:
    """The bytes are here again: verify them for the sites' sizes."""
    probe: Probe = data["probe"]
    if isinstance(values, RecurosError):
        failed(t, data["caller"], probe, values)
    elif isa.digest(values["data"]) != probe.digest:
        error = RecurosError("E9-INTEGRITY", f"object {probe.object} is not program {probe.digest}")
        failed(t, data["caller"], probe, error)
    else:
        _verify(t, data, values["data"])


def _verify(t: Turn, data: dict[str, Any], program: bytes) -> None:
    """Begin to verify a probe's bytes for the sizes at its sites."""
    probe: Probe = data["probe"]
    try:
        check = Check("attach", program, data["caller"], probe.owner, data["cap"], data["rights"])
        check.probe, check.dims, check.fresh = probe, probe.dims, data["fresh"]
        _begin(t, check)
    except RecurosError as error:
        failed(t, data["caller"], probe, error)


def _admit(t: Turn, check: Check, certificate: Certificate) -> None:
    """Verified for these sites: may it cost what it may cost?"""
    s = t.state
    probe, program = check.probe, check.program
    assert probe is not None and program is not None  # noqa: PT018 - a check of kind "attach" has both
    firings = firings_per_window(s, probe) * len(probe.sites) * (probe.pairs if _pairwise(program) else 1)
    probe.units, probe.window = certificate.cost + probe.extra, s.next_window
    probe.window_cost_ns = math.ceil(firing_ns(program, probe) * firings)
    others = _others(s, probe)
    measured, used_ns = s.window_used
    # What was attached since is not in the measure yet.
    window_ns = used_ns + sum(p.window_cost_ns for p in others if p.window > measured)
    others_ns = sum(p.window_cost_ns for p in others)
    ok, witness = admit_probe(s.reservation, window_ns, others_ns, probe.window_cost_ns)
    if not ok:
        _refuse(t, check, probe, witness)
    if check.caller is not None and check.caller.trial:
        answer(t, check.caller, {"id": 0, "sites": probe.sites, "seq": -1, "step": next_step(s)})
        return
    admitted = {
        "object": probe.object,
        "certificate": certificate.encode(),
        "dims": probe.dims,
        "rights": list(check.rights),
    }
    request(
        t, "attach", "learner.attach",
        {"id": probe.id, "hook": probe.hook, "prog": probe.prog, "every": probe.every, "admitted": admitted},
        probe=probe, caller=check.caller, actor=check.actor, cap=check.cap, fresh=check.fresh,
    )  # fmt: skip


def firing_ns(program: isa.Bytecode, probe: Probe) -> float:
    """What a firing may cost by what will run it."""
    loops = any(instruction.op.name == "FOR" for instruction in program.code)
    if probe.backend == "jit":
        return JIT_FIRING_NS + probe.units * (JIT_LOOP_UNIT_NS if loops else JIT_UNIT_NS)
    if loops:
        return probe.units * VM_LOOP_UNIT_NS
    return len(program.code) * VM_INSTRUCTION_NS + probe.units * VM_UNIT_NS


def _pairwise(program: isa.Bytecode) -> bool:
    """Whether a program of on_kd_step fires once for each mapped pair of layers: it reads `hs` or `ht`."""
    views = isa.HOOK_VIEWS[program.hook_kind]
    names = {views[i.aux].name for i in program.code if i.op.name == "VARG" and i.aux < len(views)}
    return bool(names & {"hs", "ht"})


def firings_per_window(s: State, probe: Probe) -> int:
    """The most firings at one site in one window."""
    if probe.kind in ("on_snapshot", "on_prune"):
        return 1
    return math.ceil(max(phase.steps for phase in s.config.phases) / max(1, probe.every))


def _others(s: State, probe: Probe) -> list[Probe]:
    """The other probes, those included that are on their way to the learner."""
    on_the_way = [p.data["probe"] for p in s.pending.values() if p.kind == "attach"]
    return list({p.id: p for p in [*s.probes.values(), *on_the_way] if p.id != probe.id}.values())


def charge(s: State, spent_ns: Any) -> None:
    """Probe time of a window, `id -> ns` as the learner measured it, goes to whoever attached the probe."""
    for number, ns in spent_ns.items() if isinstance(spent_ns, dict) else ():
        probe = s.probes.get(int(number)) if str(number).isdigit() else None
        if probe is not None and type(ns) is int and ns >= 0:
            probe.spent_ns += ns
            s.charged[probe.owner] = s.charged.get(probe.owner, 0) + ns


def _refuse(t: Turn, check: Check, probe: Probe, witness: dict[str, Any]) -> None:
    r = t.state.reservation
    body = {
        "name": f"probe {probe.prog}"[:200],
        "budget_ns": probe.window_cost_ns,
        "period_ns": r.period_ns,
        "deadline_ns": r.deadline_ns,
        "witness": {**witness, "hook": probe.hook, "sites": len(probe.sites), "units": probe.units},
    }
    if check.caller is None or not check.caller.trial:
        outbox.record(t, "sched.refuse", body, actor=check.actor)
    raise RecurosError(
        "E6-ADMIT",
        f"probe at {probe.hook} refused: {witness['reason']}",
        hint="a larger --every, fewer sites, a cheaper program, or a larger window budget (recuros sched set)",
        details=witness,
    )


def failed(t: Turn, caller: Caller | None, probe: Probe | None, error: RecurosError) -> None:
    """Nobody's program gets through: tell whoever asked, or the ledger where nobody did."""
    if probe is not None:
        lost = t.state.probes.pop(probe.id, None)
        if lost is not None:
            release_page(t, KERNEL, lost.page)
    if caller is not None:
        answer_error(t, caller, error)
    elif probe is not None:
        name = f"probe {probe.prog} at {probe.hook}"[:200]
        outbox.record(t, "fault", {"name": name, "code": error.code, "message": error.message[:1000]})


# --- the maps' pages ----------------------------------------------------------------------------------------------------


def page_of(t: Turn, caller: Caller, probe_id: int) -> int:
    """A read-only handle of the caller's on the page that holds a probe's maps; 0 when it keeps none."""
    s = t.state
    probe = s.probes.get(probe_id)
    if probe is None:
        raise RecurosError("E4-NOENT", f"no probe has id {probe_id}", hint="recuros probe ls")
    held = s.caps.find(KERNEL, probe.page)
    if held is None or held.kind != "page":
        return 0
    mine = next((c.slot for c in s.caps.held(caller.principal) if c.kind == "page" and c.obj == held.obj), 0)
    return mine or s.caps.derive(held, caller.principal, Right.MAP).slot


def forget(t: Turn, probe: Probe | None) -> None:
    """The probe is gone; whoever has mapped its page keeps what was mapped."""
    if probe is not None:
        release_page(t, KERNEL, probe.page)
