"""What must hold of every history, judged from the durable ledger and from the kernel's state at its end.

Written from docs/design and not from the kernel's code: transitions of windows, the chain of commits, rollbacks to
the right base, policies at their lag, one halt record as the last word of a clean end, no page and no capability left
over.
"""

from __future__ import annotations

import itertools
from typing import Any

from world import Disk, Violation, World

from kernel.channels import TABLE_PAGE
from kfs.records import Record, RecordKind


def require(holds: bool, message: str) -> None:
    """Raise Violation unless it holds."""
    if not holds:
        raise Violation(message)


def check_ledger(disk: Disk, *, built: str, policies: bool = True) -> list[Record]:
    """Every window's life in ledger order, across boots; returns the commits."""
    commits: list[Record] = []
    open_grant: Record | None = None
    missed: Record | None = None
    boot = ""
    halted = False
    in_force: dict[int, int] = {}
    for r in disk.log:
        a = r.args
        require(
            not halted
            or r.kind in (RecordKind.EXIT, RecordKind.BOOT, RecordKind.FAULT, RecordKind.SPAWN, RecordKind.RESTART),
            f"{r.kind} after the halt record",
        )
        match r.kind:
            case RecordKind.BOOT:
                boot, open_grant, missed, halted = a["boot"], None, None, False
                last = commits[-1].seq if commits else -1
                require(a["resumed_from"] == last, f"boot resumed from {a['resumed_from']}, the last commit is {last}")
            case RecordKind.POLICY if a["settings"] and "refused" not in a["settings"]:
                in_force[a["applies_at"]] = r.seq
            case RecordKind.WINDOW_GRANT:
                require(open_grant is None, f"window {a['window']} granted while {open_grant} is open")
                expected = commits[-1].args["window"] + 1 if commits else 1
                require(a["window"] == expected, f"window {a['window']} granted, {expected} is next")
                base = commits[-1].result_snap if commits else built
                require(
                    r.parent_snap == base, f"window {a['window']} granted on {r.parent_snap}, the chain ends at {base}"
                )
                require(a["boot"] == boot, "a grant of another boot")
                if policies:
                    seq = max((k, s) for k, s in {0: -1, **in_force}.items() if k <= a["window"])[1]
                    require(a["policy_seq"] in (seq, -1 if seq < 0 else seq), f"grant {a}: policy {seq} is in force")
                open_grant, missed = r, None
            case RecordKind.WINDOW_COMMIT:
                require(open_grant is not None and open_grant.args["window"] == a["window"], f"commit of {a['window']}")
                require(missed is None, f"window {a['window']} committed after its miss")
                require(r.parent_snap == open_grant.parent_snap, f"window {a['window']}: commit names another base")
                require(r.result_snap in disk.objects, f"window {a['window']}: its state is not durable")
                require(a["step0"] == open_grant.args["step0"], "commit and grant name different data")
                commits.append(r)
                open_grant = None
            case RecordKind.WINDOW_MISS:
                require(open_grant is not None and open_grant.args["window"] == a["window"], f"miss of {a['window']}")
                require(missed is None, f"window {a['window']} missed twice")
                missed = r
            case RecordKind.WINDOW_ROLLBACK:
                require(
                    missed is not None and missed.args["window"] == a["window"],
                    f"rollback of {a['window']} without a miss",
                )
                require(a["base"] == open_grant.parent_snap, f"window {a['window']} rolled back to {a['base']}")
                require(a["exact"] == (a["restored"] == a["base"]), "a rollback that is exact only by its word")
                open_grant = missed = None
            case RecordKind.HALT:
                require(open_grant is None, f"halted with window {open_grant and open_grant.args['window']} open")
                halted = True
    numbers = [c.args["window"] for c in commits]
    require(numbers == list(range(1, len(numbers) + 1)), f"committed windows {numbers}")
    for before, after in itertools.pairwise(commits):
        require(after.parent_snap == before.result_snap, "the commits do not form a chain")
    return commits


def check_positions(commits: list[Record], document: dict[str, Any]) -> None:
    """The plan is followed: every position once, in order, swaps where phases end."""
    plan = [(p["name"], i * p["steps"]) for p in document["phases"] for i in range(p["windows"])]
    seen = [(c.args["phase"]["name"], c.args["step0"]) for c in commits]
    if not document["detached"]:
        require(seen == plan[: len(seen)], f"positions {seen}")


def check_end(world: World, *, drained: bool) -> None:
    """After the kernel's Exit."""
    s = world.state
    assert s is not None
    known = set(s.pages) - {TABLE_PAGE}
    require(set(world.pages) == known, f"pages {set(world.pages) ^ known} are known to one side only")
    for name in world.document["servers"]:
        require(not s.caps.held(name["name"]), f"{name['name']} is gone and still holds {s.caps.to_list(name['name'])}")
    if world.exit != 0:
        require(s.phase == "failed" and s.error is not None, "a failure without its reason")
        require(any(r.get("event") == "failed" for r in world.reports), "a failure that nobody was told of")
        return
    require(not known, f"pages left over: {s.pages}")
    require(not s.windows, f"windows left over: {list(s.windows)}")
    require(s.counts["granted"] == s.counts["committed"] + s.counts["rolled_back"], f"counts {s.counts}")
    if drained:
        halts = [r for r in world.disk.log if r.kind is RecordKind.HALT and r.args["boot"] == world.boot_id]
        require(len(halts) == 1, f"{len(halts)} halt records of boot {world.boot_id}")
    require(any(r.get("event") == "halted" for r in world.reports), "the launcher was not told")
