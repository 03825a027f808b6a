"""From a seed to a checked history.

A seed decides the plan, the faults, what operators do and when, how often the power fails, and how it ends. Every
history is judged by `invariants`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from invariants import check_end, check_ledger, check_positions, require
from world import MS, Faults, S, World, digest, document

from probes import isa

HORIZON_NS = 900 * S

PROGRAM = isa.encode(
    isa.Bytecode(
        "count",
        "on_kd_step",
        1,
        (isa.MapSpec("count", isa.MapKind.ARRAY),),
        tuple(isa.Instruction(isa.BY_NAME[name]) for name in ("ICONST", "MINC", "EXIT")),
    )
)

COMMANDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rl_set_kd", {"temperature": 2.5}),
    ("rl_set_kd", {"mix": 0.5, "alpha": 2.0, "proj": "linear"}),
    ("rl_swap_roles", {"mode": "ema"}),
    ("rl_swap_roles", {"mode": "checkpoint", "dry_run": True}),
    ("rl_prune", {"mask_spec": {"sparsity": 0.5}}),
    ("rl_gate_samples", {"criteria": {"drop_low": 0.1}}),
    ("rl_gate_samples", {"criteria": {}}),
    ("rl_snapshot", {"name": "mine"}),
    ("rl_attach_probe", {"hook": "on_kd_step", "prog": "builtin:entropy"}),
    ("rl_load_probe", {"program": PROGRAM}),
    ("rl_load_probe", {"program": PROGRAM}),
    ("rl_load_probe", {"program": PROGRAM[:-5]}),
    ("rl_attach_probe", {"hook": "", "prog": "sha256:" + isa.digest(PROGRAM)}),
    ("rl_attach_probe", {"hook": "", "prog": "sha256:" + isa.digest(PROGRAM)[:8], "every": 3}),
    ("rl_detach_probe", {"id": 1}),
    ("rl_detach_probe", {"id": 2}),
    ("probe_programs", {}),
    ("probe_page", {"id": 2}),
    ("rl_calibrate", {}),
    ("rl_schedule", {"window": {"budget_ms": 300, "period_ms": 600}, "deadline": 500}),
    ("rl_schedule", {"window": {"budget_ms": 600}, "deadline": 500}),
    ("probe_list", {}),
    ("probe_read", {"id": 1}),
    ("evaluate", {}),
    ("interrupt", {"kind": "pause"}),
    ("interrupt", {"kind": "resume"}),
    ("cap_derive", {"cap": 1, "rights": ["steer"], "to": "observer"}),
    ("cap_revoke", {"cap": 1}),
    ("sched_show", {}),
    ("channel_list", {}),
    ("status", {}),
    ("events", {}),
)


@dataclass
class Outcome:
    """What a history came to."""

    seed: int
    boots: int
    steps: int
    commits: int
    misses: int
    state: str
    ledger: bytes
    trace: str
    direct: int  # calls that were served over direct channels


def faults_of(rng: random.Random) -> Faults:
    """A quiet world, one kind of trouble, or a bit of everything."""
    kinds = ["late", "hang", "loss", "crash", "kill", "lost_ack", "inexact", "no_space", "bad_policy", "slow_policy"]
    kinds.append("stall")
    rates = {"late": 0.2, "hang": 0.02, "loss": 0.02, "crash": 0.01, "kill": 1.0, "lost_ack": 0.1, "inexact": 0.5}
    rates |= {"no_space": 0.1, "bad_policy": 0.3, "slow_policy": 0.2, "stall": 0.01}
    how = rng.random()
    if how < 0.1:
        chosen = []
    elif how < 0.5:
        chosen = [rng.choice(kinds)]
    else:
        chosen = [k for k in kinds if rng.random() < 0.5]
    if "inexact" in chosen:
        chosen.append("late")
    scale = 1.0 if len(chosen) < 3 else 0.4
    values = {k: rates[k] * (scale if k != "kill" else 1.0) for k in chosen}
    return Faults(**values, early=rng.random() < 0.1, until_ns=S + rng.randrange(1, 20) * S)


def run(seed: int) -> Outcome:
    """One history, checked; raises Violation (or whatever the kernel raised) when it is not as it must be."""
    rng = random.Random(seed ^ 0x5EED)
    directly = random.Random(seed ^ 0xD12EC7)
    direct = directly.random() < 0.4
    doc = document(
        deterministic=rng.random() < 0.8,
        windows=tuple(rng.randrange(1, 6) for _ in range(rng.randrange(1, 4))),
        detached=rng.random() < 0.15,
        slots=rng.choice((1, 1, 2, 3)),
        direct=direct,
    )
    world = World(seed, doc, faults=faults_of(rng))
    world.direct = direct
    cuts = rng.choice((0, 0, 0, 1, 2))
    for _ in range(cuts):
        world.boot()
        _operate(world, rng)
        _revoke(world, directly)
        world.run(lambda: False, rng.randrange(100, 6_000) * MS)
        check_ledger(world.disk, built=digest("built"), policies=False)
        world.power_cut()
    world.boot()
    _operate(world, rng)
    _revoke(world, directly)
    _end(world, rng)
    commits = check_ledger(world.disk, built=digest("built"), policies=not cuts and doc["deterministic"])
    check_positions(commits, doc)
    assert world.state is not None
    misses = sum(r.kind == "window.miss" for r in world.disk.log)
    state = "failed" if world.exit else "halted"
    return Outcome(
        seed,
        world.boots,
        world.steps,
        len(commits),
        misses,
        state,
        b"".join(world.disk.ledger),
        world.trace.hexdigest(),
        world.served_directly,
    )


def _operate(world: World, rng: random.Random) -> None:
    """Operators come and go; whoever pauses resumes."""
    world.at(300 * MS, world.hello)
    for _ in range(rng.choice((0, 0, 3, 8))):
        name, args = rng.choice(COMMANDS)
        after = 310 * MS + rng.randrange(4_000) * MS
        world.at(after, lambda n=name, a=args: world.operator(n, **a))
        if args.get("kind") == "pause":
            world.at(after + rng.randrange(2_000) * MS, lambda: world.operator("interrupt", kind="resume"))


def _revoke(world: World, rng: random.Random) -> None:
    """An operator takes channels while calls are under way over them; now and then the endpoint, and every call with it."""

    def take(endpoint: bool) -> None:
        s = world.state
        assert s is not None
        for channel in list(s.channels.values())[:1]:
            cap = s.caps.find(channel.caller, channel.slot)
            if cap is not None and "operator:7.1" in s.operators:
                slot = cap.parent[1] if endpoint and cap.parent else cap.slot
                world.took = True
                world.operator("cap_take", principal=channel.caller, cap=slot)

    if world.direct:
        for _ in range(rng.choice((0, 1, 1, 2))):
            endpoint = rng.random() < 0.15
            world.at(320 * MS + rng.randrange(6_000) * MS, lambda e=endpoint: take(e))


def _end(world: World, rng: random.Random) -> None:
    """Some let the plan finish, some stop in the middle; everybody ends."""
    s = lambda: world.state  # noqa: E731
    patience = rng.choice((HORIZON_NS, HORIZON_NS, rng.randrange(10, 8_000) * MS))
    if world.document["detached"]:
        patience = min(patience, 10 * S)  # a phase that repeats is never done
    done = world.run(lambda: s().phase in ("done", "failed"), patience)
    if patience == HORIZON_NS and not world.document["detached"]:
        require(done, f"the plan is not done after {HORIZON_NS // S} s of a world that became quiet: {_where(world)}")
    mode = rng.choice(("drain", "drain", "now", "signal"))
    if world.exit is None:
        if mode == "signal":
            world.signal()
        else:
            if "operator:7.1" not in s().operators:
                world.hello()
            world.operator("shutdown", mode=mode, reason="the history ends")
    world.run(lambda: world.exit is not None, 60 * S)
    require(world.exit is not None, f"still running a minute after the shutdown: {_where(world)}")
    check_end(world, drained=True)


def _where(world: World) -> str:
    s = world.state
    assert s is not None
    pending = [(p.kind, p.server) for p in s.pending.values()]
    servers = {x.name: x.state for x in s.servers.values()}
    windows = {w.id: str(w.state) for w in s.windows.values()}
    return (
        f"phase {s.phase}, halting {s.halting!r}, cursor {s.cursor}, windows {windows}, pending {pending}, servers {servers},"
        f" awaiting {s.awaiting_policy}, filling {s.filling}, prefetch {list(s.prefetch)}, in flight"
        f" {s.in_flight and s.in_flight.kinds}, outbox {s.outbox.kinds}, fair {s.fair.to_list()}, error {s.error}"
    )
