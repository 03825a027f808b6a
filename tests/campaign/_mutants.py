"""Mutants: the store with one write barrier taken out, or with two steps in the other order. Each must break a promise.

A barrier is a sync call site: what it syncs and the functions that asked for it. The sites are those that occur in the traces, so a
barrier that is added to the store is in the next campaign without being listed anywhere. A mutant is a change of the log, not of the
program: the calls and the acknowledgements are the same, but for what the mutation takes away or moves.

Where two barriers protect the same thing, taking one out breaks nothing; such a mutant counts as caught when a state shows that it
holds what the other, taken out too, would have held: broken without both, and not broken without the other alone.

One order is left out because it breaks nothing by design: the signing key may get its name before it is synced, since FORMAT, which
makes it count, comes after both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.campaign._disk import Disk, Op
from tests.campaign._power import CREATION_CALLS, Count, Images, Violation, crash_everywhere, trace

Log = list[Op]
Traces = dict[int, Log]
"""Seed -> log."""
Site = tuple[str, str]
_NOTHING = Op("nothing")
_QUICK_STATES = 30
_AFTERMATH = 30  # entries after a change of the log in which the power goes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: the state that caught it (None: nothing did), and the second barrier that was out with it."""

    mutant: str
    caught: Violation | None
    beside: str = ""
    states: int = 0


def sites(logs: Traces) -> list[Site]:
    """Every barrier that the traces run into, in the order of the first time."""
    return list(
        dict.fromkeys((op.what, op.site) for log in logs.values() for op in log if op.what in ("sync", "syncdir"))
    )


def without(log: Log, *out: Site) -> Log:
    """The log of a store that lacks these barriers; entries keep their numbers. A sync with nothing to sync stays."""
    if not any(op.site and (op.what, op.site) in out for op in log):
        return log
    disk = Disk()
    changed = []
    for op in log:
        left_out = (op.what, op.site) in out and disk.in_doubt(op.inode)
        changed.append(_NOTHING if left_out else op)
        disk.apply(changed[-1])
    return changed


def hunt(
    logs: Traces,
    mutate: Callable[[Log], Log],
    images: Images,
    count: Count,
    *,
    samples: int = 3,
    states_max: int = 1 << 60,
) -> Iterator[Violation]:
    """Violations of a mutant in the traces that it changes, soon after the change; gives up after `states_max` states more."""
    enough = count.states + states_max
    for seed, log in logs.items():
        if count.states >= enough:
            return
        changed = mutate(log)
        if changed is log:
            continue
        places = [at for at, (old, new) in enumerate(zip(log, changed, strict=True)) if old is not new]
        entries = {at + later for at in places for later in range(_AFTERMATH)}
        if entries:
            yield from crash_everywhere(changed, seed, images, count, samples=samples, entries=entries)


def drop(logs: Traces, site: Site, images: Images, **limits: int) -> Verdict:
    """Take one barrier out; when nothing breaks, take a second one on the same thing out with it."""
    name, count = f"without {site[0]} of {site[1]}", Count()
    caught = next(hunt(logs, lambda log: without(log, site), images, count, **limits), None)
    if caught is not None:
        return Verdict(name, caught, states=count.states)
    thing = site[1].partition(":")[0]
    concerned = {seed: log for seed, log in logs.items() if any((op.what, op.site) == site for op in log)}
    others = [other for other in sites(logs) if other != site and other[1].partition(":")[0] == thing]
    for other in sorted(others, key=lambda other: "_clean_folders" not in other[1]):  # opening doubles the most
        for found in hunt(concerned, lambda log, o=other: without(log, site, o), images, count, **limits):  # type: ignore[misc]
            single = without(logs[found.seed], other)
            again = crash_everywhere(
                single, found.seed, images, Count(), samples=found.sample + 1, entries={found.entry}
            )
            if not any(violation.sample == found.sample for violation in again):
                return Verdict(name, found, other[1], count.states)
    return Verdict(name, None, states=count.states)


# --- the other order ----------------------------------------------------------------------------------------------------------


def _last(log: Sequence[Op], start: int, what: str, site: str) -> int:
    """The entry before `start` that does `what` to `site`, in the same process; -1 when there is none."""
    for at in range(start - 1, -1, -1):
        if log[at].what == "open":
            return -1
        if log[at].what == what and log[at].site.startswith(site):
            return at
    return -1


def _move(log: Log, at: int, after: int) -> None:
    """Take the entry at `at` to just after the entry at `after`."""
    log.insert(after, log.pop(at)) if at < after else log.insert(after + 1, log.pop(at))


def publish_before_sync(final: str, temp: str) -> Callable[[Log], Log]:
    """A file gets its name first and is synced then."""

    def mutate(log: Log) -> Log:
        changed = list(log)
        for at, op in enumerate(log):
            if op.what in ("rename", "link") and op.site == final:
                sync = _last(changed, at, "sync", temp)
                if sync >= 0:
                    _move(changed, sync, at)
        return changed

    return mutate


def acknowledge_before(barrier: str, what: str) -> Callable[[Log], Log]:
    """The caller hears `what` before the barrier that it waits for."""

    def mutate(log: Log) -> Log:
        changed = list(log)
        for at, op in enumerate(log):
            if op.what == "ack" and op.ack[0] == what:
                for kind in ("sync", "syncdir"):
                    sync = _last(changed, at, kind, barrier)
                    if sync >= 0 and not any(o.what == "ack" for o in changed[sync:at]):
                        _move(changed, at, sync - 1)
                        break
        return changed

    return mutate


def _follows(log: Sequence[Op], at: int, what: str, site: str) -> int:
    """The next entry that does `what` to `site`, in the same process; -1 when there is none."""
    for after in range(at + 1, len(log)):
        if log[after].what == "open":
            return -1
        if log[after].what == what and log[after].site.startswith(site):
            return after
    return -1


def sign_before_sync(log: Log) -> Log:
    """The checkpoint goes out first, the records that it covers are synced (and acknowledged) then."""
    changed = list(log)
    for op in [op for op in log if op.what == "sync" and "AppendFile.append" in op.site]:
        at = next(i for i, o in enumerate(changed) if o is op)
        end = _follows(changed, at, "rename", "store/checkpoint")
        if end < 0:
            continue
        moved = [op, *(o for o in changed[at:end] if o.what == "ack" and o.ack[0] == "records")]
        rest = [o for o in changed[at : end + 1] if not any(o is m for m in moved)]
        changed[at : end + 1] = [*rest, *moved]
    return changed


def record_before_pack(log: Log) -> Log:
    """A record is durable first, the name of the pack that it needs then; both are acknowledged after that."""
    changed = list(log)
    for op in [op for op in log if op.what == "rename" and op.site.startswith("store/packs/")]:
        at = next(i for i, o in enumerate(changed) if o is op)
        synced = _follows(changed, at, "syncdir", "store/packs:")
        end = _follows(changed, at, "sync", "store/ledger/records: AppendFile.append")
        if synced < 0 or end < synced:
            continue
        moved = [op, changed[synced], *(o for o in changed[at:end] if o.what == "ack")]
        rest = [o for o in changed[at : end + 1] if not any(o is m for m in moved)]
        changed[at : end + 1] = [*rest, *moved]
    return changed


def checkpoint_before_highest(log: Log) -> Log:
    """The checkpoint is published first, the highest signed size persisted then."""
    changed = list(log)
    for op in [op for op in log if op.what == "rename" and op.site == "keys/ID.signed"]:
        at = next(i for i, o in enumerate(changed) if o is op)
        synced = _follows(changed, at, "syncdir", "keys:")
        end = _follows(changed, at, "rename", "store/checkpoint")
        if synced < 0 or end < synced:
            continue
        moved = [op, changed[synced]]
        rest = [o for o in changed[at : end + 1] if not any(o is m for m in moved)]
        changed[at : end + 1] = [*rest, *moved]
    return changed


def format_first(log: Log) -> Log:
    """FORMAT, which says that a store is complete, is there before the rest of it."""
    changed = list(log)
    links = [i for i, op in enumerate(log) if op.what == "link" and op.site == "store/FORMAT"]
    if not links:
        return changed
    link = links[0]
    start = max(i for i, op in enumerate(log[:link]) if op.what == "create" and op.inode == log[link].inode)
    end = _follows(log, link, "syncdir", "store:")
    made = next(i for i, op in enumerate(log) if op.what == "mkdir" and op.name == "store")
    if end < 0 or any(op.what == "open" for op in log[:link]):
        return changed
    rest = [*log[made + 1 : start], *log[end + 1 :]]
    return [*log[: made + 1], *log[start : end + 1], *rest]


ORDERS: dict[str, Callable[[Log], Log]] = {
    "a pack is renamed before it is synced": publish_before_sync("store/packs/ID.safetensors", "store/packs/*"),
    "ID.signed is renamed before it is synced": publish_before_sync("keys/ID.signed", "keys/*"),
    "checkpoint is renamed before it is synced": publish_before_sync("store/checkpoint", "store/*"),
    "FORMAT is linked before it is synced": publish_before_sync("store/FORMAT", "store/*"),
    "the record file is linked before it is synced": publish_before_sync("store/ledger/records", "store/ledger/*"),
    "records are acknowledged before they are synced": acknowledge_before("store/ledger/records", "records"),
    "objects are acknowledged before their pack has its name": acknowledge_before("store/packs:", "objects"),
    "a checkpoint is acknowledged before it has its name": acknowledge_before("store:", "checkpoint"),
    "a tree is signed before its records are synced": sign_before_sync,
    "a record is written before the pack that it names": record_before_pack,
    "the checkpoint is published before the highest signed size": checkpoint_before_highest,
    "FORMAT is written first": format_first,
}


def reorder(logs: Traces, name: str, images: Images, **limits: int) -> Verdict:
    """Do two steps in the other order."""
    count = Count()
    caught = next(hunt(logs, ORDERS[name], images, count, **limits), None)
    return Verdict(name, caught, states=count.states)


def judge(traces: int, images: Images, *, first: int = 0, quick: int = 0) -> Iterator[Verdict]:
    """Every mutant there is, in so many traces; what creating a store does is judged by traces that do nothing else.

    With `quick` a mutant is first tried in the first `quick` traces and a few states of each; only what escapes gets the rest.
    """
    logs = {seed: trace(seed) for seed in range(first, first + traces)}
    made = (*range(-CREATION_CALLS, 0), *range(first, first + (4 if quick else 8)))
    creations = {seed: trace(seed, steps=0) for seed in made}
    few = dict(list(logs.items())[:quick])
    for site in sites(logs | creations):
        if any(name in site[1] for name in ("_create", "make_folder", "sure_folder")):
            yield drop(creations, site, images, samples=9)
            continue
        verdict = drop(few, site, images, states_max=_QUICK_STATES)
        yield verdict if verdict.caught else drop(logs, site, images)
    for name in ORDERS:
        verdict = reorder(few, name, images)
        yield verdict if verdict.caught else reorder(logs, name, images)
