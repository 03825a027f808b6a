"""The learner's device as the kernel sees it: the guard's verdict, energy of a window, and batches cut smaller after running out of memory.

Responsible for: acting on telemetry. `soft` and worse hold new windows back, so that heat postpones work instead of missing deadlines;
`hard` gives the running window up as well. Each change of verdict is a record. Refuses: to read gauges itself; to cut batches beyond
what the manifest allows.
"""

from __future__ import annotations

from typing import Any, Final

from kernel import outbox
from kernel.state import State, Turn
from kernel.window import Window

MICRO_BATCHES: Final = "micro-batches"
"""The directive that a grant carries to the learner, and the event in the ledger."""
VERDICTS: Final = ("ok", "soft", "hard", "lost")


def sampled(t: Turn, values: dict[str, Any]) -> bool:
    """A sample arrived; True when the running window must be given up."""
    s = t.state
    s.device = {
        **s.device,
        "devices": values["devices"],
        "host": {**s.device.get("host", {}), **values["host"]},
        "guard": values["guard"],
        "driver": values["driver"],
    }
    _note_energy(s, values, t.now_ns)
    verdict = str(values["guard"].get("verdict", "ok"))
    before = s.verdict
    if verdict not in VERDICTS or verdict == before:
        return False
    s.verdict = verdict
    reason = str(values["guard"].get("reason", ""))[:300]
    window = max((w.id for w in s.windows.values()), default=None)
    args = {
        "event": "guard",
        "verdict": verdict,
        "reason": reason,
        "micro_batches": int(s.metrics.get("micro_batches", 1)),
        "window": window,
    }
    outbox.record(t, "device", args, actor="gpu")
    t.event("device", verdict=verdict, reason=reason)
    return verdict in ("hard", "lost")


def may_grant(s: State) -> bool:
    """Whether the guard lets a window begin."""
    return s.verdict == "ok"


def reason(s: State) -> str:
    """Why no window begins, for the record of one that is given up."""
    return str((s.device.get("guard") or {}).get("reason", "")) or f"the guard's verdict is {s.verdict}"


def out_of_memory(t: Turn, w: Window) -> bool:
    """A window ran out of memory: its batches are cut into twice as many parts, if the manifest allows; False when it does not."""
    s = t.state
    asked = [int(args["parts"]) for kind, args in s.directives if kind == MICRO_BATCHES]
    parts = 2 * max([int(s.metrics.get("micro_batches", 1)), *asked])
    if parts > s.config.micro_batches_max:
        return False
    s.directives = [d for d in s.directives if d[0] != MICRO_BATCHES] + [[MICRO_BATCHES, {"parts": parts}]]
    args = {
        "event": MICRO_BATCHES,
        "verdict": s.verdict,
        "reason": w.miss_reason[:300],
        "micro_batches": parts,
        "window": w.id,
    }
    outbox.record(t, "device", args)
    t.event("device", micro_batches=parts, reason=w.miss_reason[:300])
    return True


# --- energy -------------------------------------------------------------------------------------------------------------------


def _note_energy(s: State, values: dict[str, Any], now_ns: int) -> None:
    """Energy counter (mJ) and power (W) of the learner's device with the time of the sample."""
    index = values["driver"].get("index", -1)
    found = [d for d in values["devices"] if d.get("index") == index]
    if index >= 0 and found and found[0].get("energy_mj") is not None:
        s.energy = (
            int(values["host"].get("sampled_ns", now_ns)),
            int(found[0]["energy_mj"]),
            found[0].get("power_w") or 0.0,
        )


def energy_mj(s: State, now_ns: int) -> float | None:
    """The device's energy counter now: the last sample, carried on with its power; None where the device counts no energy."""
    if s.energy is None:
        return None
    at_ns, counted, power_w = s.energy
    return counted + power_w * max(0, now_ns - at_ns) / 1e6


def window_began(s: State, w: Window, now_ns: int) -> None:
    """Remember the counter at the grant."""
    w.energy_mj = energy_mj(s, now_ns)


def window_energy(s: State, w: Window, now_ns: int) -> dict[str, float]:
    """{"joules": J} of a window that was staged now, to a sample's precision; {} where nothing counts energy."""
    now = energy_mj(s, now_ns)
    if now is None or w.energy_mj is None:
        return {}
    return {"joules": round(max(0.0, now - w.energy_mj) / 1e3, 3)}
