"""The status map: what an operator sees of the kernel. Its keys are listed in docs/reference/status.md."""

from __future__ import annotations

from typing import Any

from kernel.state import Server, State, Turn
from kernel.window import WindowState
from syscalls.abi import right_names


def status(t: Turn) -> dict[str, Any]:
    """Plain data, made afresh at every call."""
    s = t.state
    return {
        "state": "paused" if s.paused and s.phase == "running" else s.phase,
        "app": s.config.app,
        "boot": s.boot_id,
        "run": s.config.run,
        "seed": s.config.seed,
        "pid": s.pid,
        "detached": s.config.detached,
        "uptime_ns": t.now_ns - s.booted_ns,
        "resumed_from": s.resumed_from,
        "phase": _phase(s),
        "generation": s.generation,
        "window": _window(t),
        "windows": dict(s.counts),
        "planned": s.config.planned,
        "done_windows": s.committed_window,
        "metrics": s.metrics,
        "scores": s.scores,
        "reference": s.reference,
        "probes": [
            {"id": p.id, "hook": p.hook, "prog": p.prog, "sites": p.sites, "owner": p.owner} for p in s.probes.values()
        ],
        "charged": dict(s.charged),
        "policy": s.policy,
        "policies": s.policy_count,
        "kd": s.kd,
        "gate": s.gate,
        "directives": s.directives,
        "snapshot": s.committed,
        "ledger": {"size": s.ledger_size, "root": s.ledger_root},
        "servers": [
            {
                "name": x.name,
                "class": "edf" if s.config.servers[x.name].edf else "fair",
                "rank": s.config.servers[x.name].rank,
                "pid": x.pid,
                "state": _server_state(s, x),
                "incarnation": x.incarnation,
                "restarts": max(0, x.incarnation - 1),
                "rss_bytes": x.rss_bytes,
                "cpu_ns": x.cpu_ns,
                "queued": len(x.queue),
                "rights": right_names(s.config.servers[x.name].rights),
            }
            for x in s.servers.values()
        ],
        "kernel": {
            "pid": s.pid,
            "rss_bytes": s.kernel_usage[0],
            "cpu_ns": s.kernel_usage[1],
            **s.environment.get("kernel", {}),
        },
        "device": s.device,
        "cka": s.cka,
        "error": s.error,
        "refused": s.refused,
    }


def _server_state(s: State, x: Server) -> str:
    """A learner that has not yet proved the state it starts from takes no work: ready would be a promise."""
    return "restoring" if x.name == "learner" and x.state == "ready" and not s.learner_ok else x.state


def _phase(s: State) -> dict[str, Any]:
    if s.cursor.phase >= len(s.config.phases):
        return {"name": "", "index": s.cursor.phase, "window": 0, "windows": 0, "repeat": False}
    phase = s.config.phases[s.cursor.phase]
    return {
        "name": phase.name,
        "index": s.cursor.phase,
        "window": s.cursor.window,
        "windows": phase.windows,
        "repeat": phase.repeat,
        "train": phase.spec.get("train", ""),
    }


def _window(t: Turn) -> dict[str, Any]:
    running = [w for w in t.state.windows.values() if w.state in (WindowState.RUNNING, WindowState.MISSED)]
    for w in running or list(t.state.windows.values()):
        return {
            "id": w.id,
            "state": str(w.state),
            "phase": w.phase["name"],
            "step": w.step,
            "steps": w.steps,
            "deadline_ns": w.deadline_ns,
            "left_ns": w.deadline_ns - t.now_ns,
            "budget_ns": w.budget_ns,
            "used_ns": w.used_ns,
            "live": w.live,
        }
    return {}
