"""Interrupts that the Observer's policy has a say in: new data, a constraint, a changed objective.

Responsible for: the way of one request. Bounds are checked; the request is a record with the window and micro-step it arrived at; new
data becomes an object that the dataset server reads through (little of it comes in the frame, more in a page, which the archivist reads
and the kernel does not); the Observer considers it; its verdict, or that none came in time, is a record, and only then does anything
change, from the next window on. Refuses: bodies outside their bounds, data that the dataset server cannot use, a second request while
one is considered (E75-AGAIN). A request that nobody decides is rejected: silence changes nothing.
"""

from __future__ import annotations

from typing import Any, Final

from kernel import outbox, plan, steer
from kernel.broker import answer, answer_error, move_page, release_page, request
from kernel.policy import BOUNDS
from kernel.state import KERNEL, Caller, Turn
from syscalls import limits
from syscalls.errors import RecurosError

KINDS: Final = ("data", "constraint", "objective")
OBJECTIVE: Final = ("temperature", "alpha", "mix", *limits.TERMS)
MS: Final = 1_000_000


def ask(t: Turn, caller: Caller, args: dict[str, Any]) -> None:
    """Syscall rl_interrupt."""
    s = t.state
    kind, body, data = args["kind"], args["body"], args["data"]
    if kind not in KINDS:
        raise RecurosError("E2-USAGE", f"rl_interrupt kind {kind!r:.40}", hint=f"kind={', '.join(KINDS)}")
    if not 1 <= args["timeout_ms"] <= limits.INTERRUPT_TIMEOUT_MS_MAX:
        raise RecurosError(
            "E2-LIMIT", f"rl_interrupt timeout_ms={args['timeout_ms']} is outside 1..{limits.INTERRUPT_TIMEOUT_MS_MAX}"
        )
    body = CHECKS[kind](body, data) if not args["page"] else check_paged(kind, body, data)
    if plan.plan_complete(s):
        raise RecurosError(
            "E4-NOENT", "the plan is complete, no window will run", hint="boot a repeating phase, --detach"
        )
    if s.interrupt:
        raise RecurosError(
            "E75-AGAIN", f"an interrupt ({s.interrupt}) is being considered", hint="try again in a moment"
        )
    s.interrupt = kind
    asked = {
        "kind": kind,
        "body": body,
        "caller": caller,
        "at": _place(t),
        "timeout_ms": args["timeout_ms"],
        "data": data,
        "page": move_page(t, caller.principal, args["page"], KERNEL).slot if args["page"] else 0,
    }
    outbox.record(
        t,
        "interrupt",
        {**asked["at"], "kind": kind, "reason": "", "body": body, "verdict": "asked"},
        actor=caller.principal,
        cap=t.cap,
        then="interrupt_asked",
        then_data=asked,
    )


def _place(t: Turn) -> dict[str, int]:
    """The window and the micro-step that the learner is at."""
    s = t.state
    running = [w for w in s.windows.values() if w.step < w.steps]
    return {
        "window": running[0].id if running else s.committed_window,
        "step": running[0].step if running else 0,
    }


def recorded(t: Turn, data: dict[str, Any], seq: int) -> None:
    """The request is durable: see whether the data can be used, or ask the Observer at once."""
    asked = {**data, "seq": seq}
    t.timer(data["timeout_ms"] * MS, "interrupt", seq=seq, asked=asked)
    t.state.interrupt_seq = seq
    if data["page"]:
        put = {"objects": [["batch", "data"]], "page": data["page"]}
        request(t, "interrupt_kept", "archivist.put", put, asked=asked)
    elif data["kind"] == "data":
        request(t, "interrupt_kept", "archivist.keep", {"kind": "batch", "data": data["data"]}, asked=asked)
    else:
        _consider(t, asked)


def kept(t: Turn, data: dict[str, Any], values: dict[str, Any] | RecurosError) -> None:
    """The bytes are an object: the dataset server reads it through."""
    asked = data["asked"]
    if asked["page"]:
        release_page(t, KERNEL, asked["page"])
        if not isinstance(values, RecurosError):
            values = {"id": values["ids"][0]}
            if not values["id"]:
                values = RecurosError(
                    "E2-WIRE", "the page holds no array `data`", hint="recuros learner interrupt data FILE"
                )
    if isinstance(values, RecurosError):
        _decided(t, asked, "refused", values.message, values)
        return
    asked = {**asked, "object": values["id"], "data": b""}
    extra = _extra(t)
    objects = [*([row[0], row[4]] for row in extra), [values["id"], asked["body"]["name"]]]
    request(t, "interrupt_checked", "dataset.check", {"objects": objects}, asked=asked)


def checked(t: Turn, data: dict[str, Any], values: dict[str, Any] | RecurosError) -> None:
    """The dataset server can use it, or says in which line it cannot."""
    if isinstance(values, RecurosError):
        _decided(t, data["asked"], "refused", values.message, values)
        return
    _consider(t, {**data["asked"], "rows": values["rows"], "total": values["total"]})


def _consider(t: Turn, asked: dict[str, Any]) -> None:
    body = {**asked["body"], **{k: asked[k] for k in ("rows", "total") if k in asked}}
    request(t, "interrupt_considered", "observer.consider", {"kind": asked["kind"], "body": body}, asked=asked)


def considered(t: Turn, data: dict[str, Any], values: dict[str, Any] | RecurosError) -> None:
    """The Observer's word."""
    if isinstance(values, RecurosError):
        _decided(t, data["asked"], "rejected", f"the Observer could not consider it: {values.message}")
        return
    _decided(t, data["asked"], "accepted" if values["accept"] else "rejected", values["reason"])


def timeout(t: Turn, seq: int, asked: dict[str, Any]) -> None:
    """Nobody decided in time."""
    if t.state.interrupt_seq == seq:
        _decided(t, asked, "timeout", f"no verdict within {asked['timeout_ms']} ms")


def _decided(t: Turn, asked: dict[str, Any], verdict: str, reason: str, error: RecurosError | None = None) -> None:
    """Record the verdict and let an accepted request take effect; a verdict that comes after another one is none."""
    s = t.state
    if s.interrupt_seq != asked["seq"]:
        return
    s.interrupt, s.interrupt_seq = "", -1
    caller: Caller = asked["caller"]
    if s.halting:
        answer_error(t, caller, RecurosError("E75-AGAIN", "the runtime is halting", hint="recuros boot"))
        return
    accepted = verdict == "accepted"
    body = {**asked["body"], **({"object": asked["object"], "rows": asked["rows"]} if "rows" in asked else {})}
    values = {"accepted": accepted, "reason": reason[:1000], "step": plan.next_step(s) if accepted else -1}
    outbox.record(
        t,
        "interrupt",
        {
            **_place(t),
            "kind": asked["kind"],
            "reason": reason[:1000],
            "body": body,
            "verdict": verdict,
            "asked": asked["seq"],
        },
        actor="observer" if verdict in ("accepted", "rejected") else "kernel",
        inputs=(asked["object"],) if "object" in asked else (),
        then="interrupt_decided",
        then_data={"caller": caller, "values": values, "error": error.to_wire() if error is not None else None},
    )
    if accepted:
        EFFECTS[asked["kind"]](t, caller, asked)


def answered(t: Turn, data: dict[str, Any], seq: int) -> None:
    """The verdict is durable."""
    if data["error"] is not None:
        answer_error(t, data["caller"], RecurosError.from_wire(data["error"]))
    else:
        answer(t, data["caller"], {**data["values"], "seq": seq})


# --- what an accepted request does, each by a record that a later boot folds -----------------------------------------------


def _new_data(t: Turn, caller: Caller, asked: dict[str, Any]) -> None:
    """From the next window that is not granted the stream is one of the old and the new samples."""
    s = t.state
    phase = s.config.phases[s.cursor.phase]
    extra = [
        *_extra(t),
        [asked["object"], phase.name, plan.stream_step(s, s.cursor), asked["total"], asked["body"]["name"]],
    ]
    s.gate = {**s.gate, "extra": extra}
    outbox.record(
        t,
        "gate.set",
        {"criteria": s.gate, "window": s.next_window},
        actor="kernel:interrupt",
        inputs=(asked["object"],),
    )


def _constraint(t: Turn, caller: Caller, asked: dict[str, Any]) -> None:
    t.state.directives.append(["constrain", asked["body"]])


def _objective(t: Turn, caller: Caller, asked: dict[str, Any]) -> None:
    s = t.state
    kd = {"temperature": -1.0, "alpha": -1.0, "proj": "", "mix": -1.0, **s.kd, "window": s.next_window}
    terms = {k: float(v) for k, v in asked["body"].items() if k in limits.TERMS}
    kd |= {k: float(v) for k, v in asked["body"].items() if k not in limits.TERMS}
    if terms:
        kd["terms"] = {**kd.get("terms", {}), **terms}
    s.directives.append(["kd", kd])
    outbox.record(t, "kd.set", kd, actor="kernel:interrupt")
    steer.operator_set(s, kd)


EFFECTS: Final = {"data": _new_data, "constraint": _constraint, "objective": _objective}


def _extra(t: Turn) -> list[list[Any]]:
    return [list(row) for row in t.state.gate.get("extra", [])]


# --- bounds ------------------------------------------------------------------------------------------------------------------


def check_data(body: dict[str, Any], data: bytes) -> dict[str, Any]:
    """{"name": of the file}; the bytes within what a frame takes."""
    _check_name(body)
    if not 0 < len(data) <= limits.INTERRUPT_BYTES_MAX:
        raise RecurosError(
            "E2-LIMIT",
            f"new data of {len(data)} bytes; 1 to {limits.INTERRUPT_BYTES_MAX} are taken in a message",
            hint="more goes through a page, as `recuros learner interrupt data FILE` does on the machine of the runtime",
        )
    return body


def check_paged(kind: str, body: dict[str, Any], data: bytes) -> dict[str, Any]:
    """As `check_data`, for bytes in a page; its size was checked when it was offered."""
    if kind != "data" or data:
        raise RecurosError("E2-USAGE", "a page holds new data, all of it", hint="kind=data, page=HANDLE and no data")
    _check_name(body)
    return body


def _check_name(body: dict[str, Any]) -> None:
    name = body.get("name")
    if set(body) != {"name"} or not isinstance(name, str) or not 0 < len(name) <= 200:
        raise RecurosError("E2-USAGE", f"new data takes a name of 1 to 200 characters, got {body!r:.80}")


def check_objective(body: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Settings of the loss within their bounds."""
    if not body or data:
        raise RecurosError(
            "E2-USAGE", "an objective change takes settings and no data", hint=f"any of {', '.join(OBJECTIVE)}"
        )
    for key, value in body.items():
        if key not in OBJECTIVE:
            raise RecurosError("E2-USAGE", f"an objective has no {key!r:.40}", hint=f"any of {', '.join(OBJECTIVE)}")
        low, high = BOUNDS[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise RecurosError("E2-LIMIT", f"objective {key}={value!r:.40} is outside [{low:g}, {high:g}]")
    return body


def check_constraint(body: dict[str, Any], data: bytes) -> dict[str, Any]:
    """{"allow" or "forbid": [class, ...], "implies": [[label, [class, ...]], ...], "weight"}; {} takes the constraint back."""
    if data:
        raise RecurosError("E2-USAGE", "a constraint takes no data")
    unknown = sorted(str(key) for key in set(body) - {"allow", "forbid", "implies", "weight"})
    if unknown or {"allow", "forbid"} <= set(body):
        what = f"no {unknown[0]!r:.40}" if unknown else "allow or forbid, not both"
        raise RecurosError("E2-USAGE", f"a constraint takes {what}", hint="allow or forbid, implies, weight")
    for key in ("allow", "forbid"):
        if key in body and not _classes(body[key]):
            raise RecurosError("E2-USAGE", f"{key}={body[key]!r:.60} is no list of classes", hint=f"{key}=[0, 1]")
    implies = body.get("implies", [])
    pairs = isinstance(implies, list) and len(implies) <= limits.CONSTRAINT_CLASSES_MAX
    if not pairs or not all(
        isinstance(p, list) and len(p) == 2 and _classes([p[0]]) and _classes(p[1]) for p in implies
    ):
        raise RecurosError(
            "E2-USAGE", f"implies={implies!r:.60} is no list of [label, [class, ...]]", hint="[[7, [1, 7]]]"
        )
    weight = body.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= limits.TERM_WEIGHT_MAX:
        raise RecurosError("E2-LIMIT", f"constraint weight={weight!r:.40} is outside [0, {limits.TERM_WEIGHT_MAX:g}]")
    return body


def _classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= limits.CONSTRAINT_CLASSES_MAX
        and all(type(c) is int and 0 <= c < 1 << 31 for c in value)
    )


CHECKS: Final = {"data": check_data, "constraint": check_constraint, "objective": check_objective}
