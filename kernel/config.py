"""The boot document as the kernel sees it: plain dataclasses, checked once.

Responsible for: refusing a document that the launcher should never have sent. The launcher has validated the manifest
in full; this is the second side of the same check, so that a kernel started by hand fails with a sentence too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from syscalls import abi, limits
from syscalls.errors import RecurosError

MS = 1_000_000


@dataclass(frozen=True)
class ServerConfig:
    """One stanza of the manifest."""

    name: str
    entry: str
    edf: bool
    rank: int
    rights: abi.Right
    calls: tuple[str, ...]
    restart: str
    weight: int
    mailbox_messages: int
    mailbox_bytes: int
    mailbox_policy: str
    config: dict[str, Any]
    reservation: tuple[int, int, int] | tuple[()] = ()  # of a fair server: budget, deadline, period in ns
    overrun: str = "rollback"
    direct: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phase:
    """A run of windows with one training target; `spec` goes to the learner as it is."""

    name: str
    windows: int
    steps: int
    end: str
    repeat: bool
    spec: dict[str, Any]
    end_every: int = 1


@dataclass(frozen=True)
class Config:
    """Everything that does not change after boot."""

    run: str
    app: str
    seed: int
    deterministic: bool
    detached: bool
    steps: int
    budget_ns: int
    period_ns: int
    deadline_ns: int
    phases: tuple[Phase, ...]
    probes: tuple[dict[str, Any], ...]
    policy: dict[str, Any]
    eval_every: int
    operator_rights: abi.Right
    servers: dict[str, ServerConfig]
    background_slots: int
    micro_batches_max: int = 1

    @property
    def times(self) -> tuple[int, int, int]:
        """Budget, deadline and period of a window as the manifest has them, in nanoseconds."""
        return self.budget_ns, self.deadline_ns, self.period_ns

    @property
    def planned(self) -> int:
        """Windows of the whole plan, each phase once."""
        return sum(phase.windows for phase in self.phases)


def parse(doc: dict[str, Any]) -> Config:
    """Boot document to `Config`; E2-MANIFEST names what is missing or out of range."""
    try:
        window = doc["window"]
        servers = {s["name"]: _server(s) for s in doc["servers"]}
        config = Config(
            run=doc["run"],
            app=doc["app"],
            seed=int(doc["seed"]),
            deterministic=bool(doc["deterministic"]),
            detached=bool(doc["detached"]),
            steps=int(window["steps"]),
            budget_ns=int(window["budget_ms"]) * MS,
            period_ns=int(window["period_ms"]) * MS,
            deadline_ns=int(window["deadline_ms"]) * MS,
            phases=tuple(_phase(i, p) for i, p in enumerate(doc["phases"])),
            probes=tuple(doc["probes"]),
            policy=dict(doc["policy"]),
            eval_every=int(doc["eval_every"]),
            operator_rights=abi.parse_rights(doc["operator_rights"]),
            servers=servers,
            background_slots=max(1, len(doc.get("background_cpus", [0]))),
            micro_batches_max=int((doc.get("device") or {}).get("micro_batches_max", 1)),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise RecurosError(
            "E2-MANIFEST", f"boot document: {type(e).__name__}: {e}", hint="recuros boot writes it from the manifest"
        ) from e
    _check(config)
    return config


def _server(s: dict[str, Any]) -> ServerConfig:
    return ServerConfig(
        name=s["name"],
        entry=s["entry"],
        edf=s["class"] == "edf",
        rank=int(s["rank"]),
        rights=abi.parse_rights(s["rights"]),
        calls=tuple(s["calls"]),
        restart=s["restart"],
        weight=int(s.get("weight", 1)),
        mailbox_messages=int(s.get("mailbox", {}).get("messages", limits.MAILBOX_MESSAGES_DEFAULT)),
        mailbox_bytes=int(s.get("mailbox", {}).get("bytes", limits.MAILBOX_BYTES_DEFAULT)),
        mailbox_policy=str(s.get("mailbox", {}).get("policy", limits.MAILBOX_POLICIES[0])),
        config=dict(s["config"]),
        reservation=_reservation(s),
        direct=tuple(s.get("direct", ())),
        overrun=str(s.get("overrun") or ("rollback" if s["class"] == "edf" else "throttle")),
    )


def _reservation(s: dict[str, Any]) -> tuple[int, int, int] | tuple[()]:
    if not s.get("budget_ms"):
        return ()
    period = int(s["period_ms"])
    return int(s["budget_ms"]) * MS, int(s.get("deadline_ms") or period) * MS, period * MS


def _phase(index: int, p: dict[str, Any]) -> Phase:
    spec = {**p, "index": index}
    windows, steps, end_every = (int(p.get(key, 1)) for key in ("windows", "steps", "end_every"))
    return Phase(p["name"], windows, steps, p.get("end", ""), bool(p.get("repeat", False)), spec, end_every)


def _check(config: Config) -> None:
    for needed in ("archivist", "dataset", "learner", "observer"):
        if needed not in config.servers:
            raise RecurosError("E2-MANIFEST", f"no server stanza for {needed!r}", hint=f"add [server.{needed}]")
    if not config.phases or len(config.phases) > limits.PHASES_MAX:
        raise RecurosError("E2-MANIFEST", f"{len(config.phases)} phases; the limit is 1 to {limits.PHASES_MAX}")
    for server in config.servers.values():
        known = server.mailbox_policy in limits.MAILBOX_POLICIES
        if not known or (server.mailbox_policy == "drop-oldest" and not abi.may_drop(server.name)):
            raise RecurosError(
                "E2-MANIFEST",
                f"{server.name}: mailbox policy {server.mailbox_policy!r:.40}; drop-oldest is for telemetry only",
                hint=f"policies: {', '.join(limits.MAILBOX_POLICIES)}",
            )
        if not set(server.direct) <= set(server.calls):
            raise RecurosError(
                "E2-MANIFEST",
                f"{server.name}: direct names {sorted(set(server.direct) - set(server.calls))}, which it may not call",
                hint="add them to calls",
            )
        for callee in server.calls:
            if callee not in config.servers or config.servers[callee].rank >= server.rank:
                raise RecurosError(
                    "E2-MANIFEST",
                    f"{server.name} (rank {server.rank}) may not call {callee}: a server calls only servers of lower rank",
                    hint="lower the callee's rank or drop the call",
                )
