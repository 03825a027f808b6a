"""The table: every syscall and every server method, with numbers, positional schemas, rights and one-line help.

Responsible for: being the only place where the two sides of a message meet. Stubs, the shell's help, the reference
page and the golden file are made from this table. Refuses: a value that does not fit its column, on the way out and
on the way in.

Two directions:

* SYSCALLS: a principal (server or operator) asks the kernel. The frame names a capability slot; the right in the row must be
  among that capability's rights.
* METHODS: the kernel delivers a request to a server, on its own account or on that of a caller that holds an endpoint
  capability for the server (the manifest's `calls`).

Columns of type "page" are page handles. A handle means something only together with the principal that holds it; the
kernel replaces it by one of the receiver's own on the way through.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Final

from syscalls import limits
from syscalls.errors import RecurosError

ABI_MAJOR: Final = 1
ABI_MINOR: Final = 0


class Right(enum.IntFlag):
    """What a capability allows. Derived rights only shrink."""

    MAP = 1 << 0
    EXEC = 1 << 1
    READ_TRACE = 1 << 2
    WRITE_PARAMS = 1 << 3
    ATTACH_PROBE = 1 << 4
    SUBMIT_POLICY = 1 << 5
    STEER = 1 << 6
    INTERRUPT = 1 << 7
    KFS_APPEND = 1 << 8
    KFS_READ = 1 << 9
    SCHED_CONTROL = 1 << 10
    DEVICE = 1 << 11
    GRANT = 1 << 12
    REVOKE = 1 << 13


NO_RIGHT: Final = Right(0)
RIGHT_NAMES: Final[dict[str, Right]] = {r.name.lower().replace("_", "-"): r for r in Right if r.name}


def right_names(rights: Right) -> list[str]:
    """The manifest spelling of each right in `rights`, in bit order."""
    return [name for name, r in RIGHT_NAMES.items() if r in rights]


def parse_rights(names: list[str]) -> Right:
    """Inverse of `right_names`; an unknown name is an E2-MANIFEST error that lists the known ones."""
    rights = NO_RIGHT
    for name in names:
        if not isinstance(name, str) or name not in RIGHT_NAMES:
            raise RecurosError(
                "E2-MANIFEST", f"unknown right {name!r:.80}", hint=f"known rights: {', '.join(sorted(RIGHT_NAMES))}"
            )
        rights |= RIGHT_NAMES[name]
    return rights


_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bytes": (bytes,),
    "bool": (bool,),
    "list": (list,),
    "map": (dict,),
    "page": (int,),
    "any": (object,),
}
_PLAIN: Final[dict[str, type]] = {"float": float, "str": str, "bytes": bytes, "bool": bool, "list": list, "map": dict}
_REQUIRED: Final = object()


@dataclass(frozen=True)
class Arg:
    """One positional column. `kind` is a key of _TYPES; a column with a default may be omitted by a caller in Python."""

    name: str
    kind: str
    doc: str = ""
    default: Any = _REQUIRED
    plain: type | None = field(init=False, default=None, compare=False, repr=False)
    """A value of exactly this type fits as it is; any other goes through `check`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", _PLAIN.get(self.kind))

    @property
    def required(self) -> bool:
        """True when there is no default."""
        return self.default is _REQUIRED

    def check(self, value: Any, where: str) -> Any:
        """Return `value` if it fits, else raise E2-WIRE naming column, type and value."""
        ok = isinstance(value, _TYPES[self.kind]) and not (
            isinstance(value, bool) and self.kind in ("int", "float", "page")
        )
        if self.kind in ("int", "page") and ok:
            ok = -(1 << 63) <= value < (1 << 63)
        if not ok:
            raise RecurosError(
                "E2-WIRE", f"{where}: {self.name} must be {self.kind}, got {type(value).__name__} {value!r:.80}"
            )
        return float(value) if self.kind == "float" else value


@dataclass(frozen=True)
class Row:
    """One syscall or method: `nr` is ABI and never reused."""

    nr: int
    name: str
    args: tuple[Arg, ...]
    reply: tuple[Arg, ...]
    doc: str
    right: Right = NO_RIGHT
    server: str = ""
    oneway: bool = False
    pages: tuple[int, ...] = field(init=False, default=())
    reply_pages: tuple[str, ...] = field(init=False, default=(), compare=False, repr=False)
    qualified: str = field(init=False, default="", compare=False, repr=False)
    """`server.method` for methods, the bare name for syscalls."""
    _known: frozenset[str] = field(init=False, default=frozenset(), compare=False, repr=False)
    _answer: Row | None = field(init=False, default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # made once, read on the way of every message
        set_(self, "pages", tuple(i for i, a in enumerate(self.args) if a.kind == "page"))
        set_(self, "reply_pages", tuple(a.name for a in self.reply if a.kind == "page"))
        set_(self, "qualified", f"{self.server}.{self.name}" if self.server else self.name)
        set_(self, "_known", frozenset(a.name for a in self.args))

    def bind(self, kwargs: dict[str, Any]) -> list[Any]:
        """Named arguments to positional ones, defaults filled in; unknown or missing names are E2-USAGE errors."""
        if not kwargs.keys() <= self._known:
            name = next(name for name in kwargs if name not in self._known)
            raise RecurosError(
                "E2-USAGE", f"{self.qualified}: unknown argument {name!r}", hint=f"arguments: {self.usage()}"
            )
        values = []
        for arg in self.args:
            value = kwargs.get(arg.name, arg.default)
            if type(value) is arg.plain:
                values.append(value)
            elif value is _REQUIRED:
                raise RecurosError("E2-USAGE", f"{self.qualified}: missing argument {arg.name!r}", hint=self.usage())
            else:
                values.append(arg.check(value, self.qualified))
        return values

    def usage(self) -> str:
        """A synopsis such as `rl_set_kd temperature=float [mix=0.5]`."""
        parts = [f"{a.name}={a.kind.upper()}" if a.required else f"[{a.name}={a.default!r}]" for a in self.args]
        return " ".join([self.qualified, *parts])

    def check_args(self, args: Any) -> dict[str, Any]:
        """Positional arguments from the wire to a dict; anything that does not fit is E2-WIRE."""
        return _check(self, "", self.args, args)

    def check_reply(self, reply: Any) -> dict[str, Any]:
        """Positional reply values from the wire to a dict."""
        return _check(self, " reply", self.reply, reply)

    def bind_reply(self, values: dict[str, Any]) -> list[Any]:
        """A handler's dict to the positional reply; missing columns take their default."""
        if self._answer is None:  # made when it is first answered
            answer = Row(self.nr, f"{self.name} reply", self.reply, (), "", server=self.server)
            object.__setattr__(self, "_answer", answer)
        assert self._answer is not None
        return self._answer.bind(values)


def _check(row: Row, what: str, columns: tuple[Arg, ...], values: Any) -> dict[str, Any]:
    if type(values) is not list or len(values) != len(columns):
        got = len(values) if isinstance(values, list) else type(values).__name__
        raise RecurosError("E2-WIRE", f"{row.qualified}{what}: expected {len(columns)} values, got {got}")
    checked = {}
    for arg, value in zip(columns, values, strict=True):
        checked[arg.name] = value if type(value) is arg.plain else arg.check(value, row.qualified + what)
    return checked


def _a(name: str, kind: str, doc: str = "", *default: Any) -> Arg:
    return Arg(name, kind, doc, *default)


_SEQ = (
    _a("seq", "int", "ledger sequence number of the change, -1 if none", -1),
    _a("step", "int", "effective at step", -1),
)
R = Right
# fmt: off

SYSCALLS: Final[tuple[Row, ...]] = (
    # --- session -----------------------------------------------------------------------------------------------------
    Row(0, "hello", (_a("major", "int"), _a("minor", "int")),
        (_a("principal", "str"), _a("boot", "str"), _a("caps", "map", "name -> slot"), _a("config", "map")),
        "Open the session; refused when the ABI major differs."),
    Row(1, "ready", (_a("info", "map", "what the server says of itself: env, code, params, ..."),), (),
        "A server has finished its start-up and takes work."),
    Row(2, "fault", (_a("code", "str"), _a("message", "str"), _a("hint", "str", "", "")), (),
        "A server reports why it cannot go on, just before it exits.", oneway=True),
    Row(3, "status", (), (_a("status", "map"),), "The whole runtime at a glance: state, servers, window, figures."),
    Row(4, "events", (_a("after", "int", "last event number seen", 0), _a("limit", "int", "", 256)),
        (_a("events", "list"), _a("last", "int"), _a("dropped", "int", "events that fell out of the ring unseen")),
        "Recent events after a number."),
    Row(5, "shutdown", (_a("mode", "str", "drain | now", "drain"), _a("reason", "str", "", "")), (),
        "Drain, commit and stop; `now` rolls the running window back instead of waiting for it.", R.INTERRUPT),
    # --- capabilities ------------------------------------------------------------------------------------------------
    Row(10, "cap_list", (_a("principal", "str", "empty: the caller", ""),), (_a("caps", "list"),),
        "Capabilities of a principal: slot, kind, object, rights, badge, parent."),
    Row(11, "cap_derive", (_a("cap", "int"), _a("rights", "list", "names; a subset of the parent's"),
                           _a("to", "str", "receiving principal; empty: the caller", ""), _a("badge", "str", "", ""),
                           _a("dry_run", "bool", "check, and change nothing", False)),
        (_a("slot", "int"), _a("seq", "int", "", -1)), "Derive a capability with fewer rights; excess is rejected.", R.GRANT),
    Row(12, "cap_revoke", (_a("cap", "int"), _a("dry_run", "bool", "count, and change nothing", False)),
        (_a("removed", "int"), _a("cancelled", "int", "queued calls taken back", 0), _a("seq", "int", "", -1)),
        "Remove every capability derived from this one; it stays itself.", R.REVOKE),
    Row(13, "cap_take", (_a("principal", "str", "the holder"), _a("cap", "int"), _a("dry_run", "bool", "count, and change nothing", False)),
        (_a("removed", "int"), _a("cancelled", "int", "queued calls taken back", 0), _a("seq", "int", "", -1)),
        "Take a capability, and every one derived from it, from its holder. Servers: only what is derived from their own.", R.REVOKE),
    # --- pages and channels ------------------------------------------------------------------------------------------
    Row(20, "page_release", (_a("page", "int", "handle"),), (), "Give a page handle back.", oneway=True),
    Row(21, "page_list", (), (_a("pages", "list"),), "Pages of the caller: handle, bytes, writer."),
    Row(30, "call", (_a("endpoint", "int", "slot of an endpoint capability"), _a("method", "int", "method number"),
                     _a("args", "list")), (_a("reply", "list"),), "Call a server that the manifest lets the caller call."),
    Row(31, "channel_list", (), (_a("channels", "list"),),
        "Mailboxes: server, messages and bytes waiting, limits, refused, dropped."),
    Row(32, "channel_open", (_a("endpoint", "int", "slot of an endpoint capability"), _a("end", "int", "handle of the callee's end of a pair of sockets")),
        (_a("channel", "int"), _a("pid", "int", "the callee's"), _a("index", "int", "its word in the page of generations"), _a("generation", "int"),
         _a("messages", "int", "credit: calls without an answer"), _a("bytes", "int", "credit: their bytes"), _a("table", "int", "handle of the page of generations")),
        "Open the direct channel to a server that the manifest grants (`direct`)."),
    Row(33, "channel_close", (_a("channel", "int"),), (), "The caller gives a direct channel up.", oneway=True),
    Row(34, "channel_report", (_a("channel", "int"), _a("calls", "int"), _a("refused", "int"), _a("cpu_ns", "int", "spent for the caller"),
                               _a("reason", "str", "how the caller broke the rules; empty: it did not"), _a("fatal", "bool", "the channel is closed")), (),
        "The callee's account of a direct channel since the last one; from the caller: how the callee broke the rules.", oneway=True),
    Row(35, "stage_done", (_a("snapshot", "str", "root id"),), (),
        "The archivist stored a snapshot that came over a direct channel.", R.KFS_APPEND, oneway=True),
    # --- windows and time --------------------------------------------------------------------------------------------
    Row(40, "rl_schedule", (_a("window", "map", "budget_ms, period_ms, steps"), _a("deadline", "int", "relative, ms")),
        (_a("admitted", "bool"), _a("witness", "map"), *_SEQ),
        "Change the replay reservation, if admission allows it.", R.SCHED_CONTROL),
    Row(41, "sched_show", (), (_a("sched", "map"),), "Reservations, lanes, the fair class, counters."),
    Row(42, "sched_admit", (_a("name", "str"), _a("budget_ms", "int"), _a("period_ms", "int"), _a("deadline_ms", "int")),
        (_a("admitted", "bool"), _a("witness", "map")), "Would this reservation be admitted? Changes nothing."),
    Row(43, "sched_yield", (), (), "A fair server at a micro-step gives its slice up and waits for the next one."),
    Row(44, "progress", (_a("window", "int"), _a("step", "int"), _a("metrics", "map")), (),
        "The learner's position inside the running window.", R.EXEC, oneway=True),
    Row(45, "window_staged", (_a("window", "int"), _a("snapshot", "str", "root id"), _a("metrics", "map"),
                              _a("maps", "map", "probe maps"), _a("trace", "page", "0: none")), (),
        "All state of the window is durable in KFS; the deadline is judged at receipt.", R.WRITE_PARAMS),
    Row(46, "window_rolled_back", (_a("window", "int"), _a("code", "str"), _a("reason", "str"), _a("restored", "str", "root id of the state now"),
                                   _a("step", "int", "micro-steps done", 0)), (),
        "The learner restored the base of the window.", R.WRITE_PARAMS),
    Row(47, "probe_evicted", (_a("id", "int"), _a("step", "int"), _a("reason", "str")), (),
        "The learner removed a probe that failed; training goes on.", R.EXEC, oneway=True),
    # --- the recursive learner -----------------------------------------------------------------------------------------
    Row(50, "rl_snapshot", (_a("name", "str", "a label for people", ""),), (_a("snapshot", "str"), *_SEQ),
        "Name the last committed state; it is already durable, and now it is pinned.", R.STEER),
    Row(51, "rl_swap_roles", (_a("mode", "str", "ema | checkpoint | snapshot"), _a("dry_run", "bool", "", False)), _SEQ,
        "The student becomes the teacher at the next window.", R.STEER),
    Row(52, "rl_set_kd", (_a("temperature", "float", "1 to 4", -1.0), _a("alpha", "float", "hint weight; -1 keeps it", -1.0),
                          _a("proj", "str", "hint projector: linear | none; empty keeps it", ""),
                          _a("mix", "float", "share of KD in [0, 1]; -1 keeps it", -1.0),
                          _a("terms", "map", "weights of further terms by name: cka, at, rkd, ...; 0 turns one off", {})), _SEQ,
        "Change temperature, hint weight, projector, mix or the weights of terms from the next window on.", R.STEER),
    Row(53, "rl_attach_probe", (_a("hook", "str", "e.g. on_forward:blocks.*"), _a("prog", "str", "e.g. builtin:rms"),
                                _a("every", "int", "cadence in steps; 0: the program's own", 0)),
        (_a("id", "int"), _a("sites", "list"), *_SEQ), "Attach a probe to the running learner.", R.ATTACH_PROBE),
    Row(54, "rl_detach_probe", (_a("id", "int"),), _SEQ, "Detach a probe; its maps are freed after one step.", R.ATTACH_PROBE),
    Row(55, "rl_gate_samples", (_a("criteria", "map", "drop_low, drop_high: fractions of teacher entropy to leave out"),), _SEQ,
        "Leave the easiest and the most ambiguous samples out from the next window on; {} opens the gate.", R.STEER),
    Row(56, "rl_prune", (_a("mask_spec", "map", "method (magnitude, movement, l0, heads), target (a share) or heads, steps, weight"),), _SEQ,
        "Prune the student from the next window on, at once or over steps; what is gone stays gone.", R.STEER),
    Row(57, "rl_calibrate", (_a("mode", "str", "temperature", "temperature"),), (_a("result", "map"), *_SEQ),
        "Fit a scaling temperature to the last committed student on validation data.", R.STEER),
    Row(58, "probe_list", (), (_a("probes", "list"), _a("sites", "list")), "Attached probes, their cost and counters, and the hook sites."),
    Row(59, "probe_read", (_a("id", "int"),), (_a("maps", "map"),), "The maps of one probe, read while the learner runs.", R.READ_TRACE),
    # --- policy and oversight ------------------------------------------------------------------------------------------
    Row(60, "policy_submit", (_a("window", "int", "whose evidence this rests on"), _a("settings", "map", "empty: no change"),
                              _a("pack", "str"), _a("blobs", "page", "weights and evidence; 0: none", 0)), (_a("seq", "int", "", -1),),
        "Submit a policy; it applies two windows after its evidence.", R.SUBMIT_POLICY),
    Row(61, "evaluate", (_a("snapshot", "str", "root id; empty: the last committed", ""), _a("split", "str", "", "validation")),
        (_a("scores", "map"), _a("seq", "int", "", -1)), "Score a snapshot on data no gradient has seen.", R.STEER),
    Row(62, "interrupt", (_a("kind", "str", "pause | resume | stop"), _a("reason", "str", "", "")), _SEQ,
        "Interrupt the learner; pause and stop go straight to the kernel.", R.INTERRUPT),
    Row(75, "rl_interrupt", (_a("kind", "str", "data | constraint | objective"), _a("body", "map", "what is asked for, by its kind", {}),
                             _a("data", "bytes", "new samples: the file", b""), _a("timeout_ms", "int", "without a verdict by then it is rejected", 10_000),
                             _a("page", "page", "new samples that fit no frame, as the array `data` of a page; 0: none", 0)),
        (_a("accepted", "bool"), _a("reason", "str"), *_SEQ),
        "Ask for new data, a constraint or another objective; the Observer's policy decides, and the verdict is recorded.", R.INTERRUPT),
    # --- storage -------------------------------------------------------------------------------------------------------
    Row(70, "kfs_gc", (_a("ids", "list", "what to give up, as recuros kfs gc plans it"), _a("scores", "list", "the utility of each"),
                       _a("reason", "str", "", ""), _a("dry_run", "bool", "check, and change nothing", False)),
        (_a("seq", "int", "number of the gc.plan record", -1), _a("pending", "list", "plans that are not done")),
        "Give snapshots and artifacts up; the archivist collects them in the background.", R.STEER),
    # --- probe programs ------------------------------------------------------------------------------------------------
    Row(63, "rl_load_probe", (_a("program", "bytes", "encoded oBPF, see the instruction set's page"),),
        (_a("digest", "str", "sha256:HEX"), _a("certificate", "map", "what was proved: cost, visits, instructions, hook, ..."), _a("seq", "int", "", -1)),
        "Verify a probe program and keep it, to be attached by its digest.", R.ATTACH_PROBE),
    Row(64, "probe_programs", (), (_a("programs", "list"),), "Programs loaded in this boot: digest, object, hook, owner, certificate, probes."),
    Row(65, "probe_page", (_a("id", "int"),), (_a("page", "page", "0: this probe keeps no page"),),
        "The page that holds a probe's maps, to be read while the learner writes.", R.READ_TRACE),
    # --- changes, and talk of changes ------------------------------------------------------------------------------------
    Row(80, "propose", (_a("syscall", "int", "number of a change"), _a("args", "list", "its columns"),
                        _a("reason", "str", "goes into its record", ""), _a("dry_run", "bool", "check, and change nothing", False)),
        (_a("reply", "list", "that syscall's; empty for a dry run"), _a("step", "int", "effective at step", -1)),
        "Make a change with a reason for the ledger, or only ask whether it would be accepted. It needs the change's right."),
    Row(81, "rl_restore", (_a("snapshot", "str", "root id of a snapshot of this run"),), _SEQ,
        "Go back to the learner's state in a snapshot at the next window; the plan, the data and the generation go on.", R.STEER),
)

METHODS: Final[tuple[Row, ...]] = (
    # --- every server --------------------------------------------------------------------------------------------------
    Row(100, "ping", (), (), "Heartbeat.", server="any"),
    Row(101, "drain", (), (), "Finish what was taken, then exit 0.", server="any", oneway=True),
    Row(102, "channel", (_a("channel", "int"), _a("caller", "str"), _a("pid", "int", "that made the pair"), _a("index", "int", "word in the page of generations"),
                         _a("generation", "int"), _a("methods", "list", "numbers that the caller's rights allow"), _a("messages", "int"), _a("bytes", "int"),
                         _a("end", "int", "handle of the end"), _a("table", "int", "handle of the page of generations")), (),
        "The kernel grants a caller a direct channel to this server.", server="any"),
    Row(103, "channel_cut", (_a("channel", "int"), _a("reason", "str")), (), "A direct channel was taken back, or its other end died.", server="any", oneway=True),
    Row(104, "shorten", (_a("window", "int"),), (), "End this window after the step in hand: it is over its budget.", server="learner", oneway=True),
    Row(105, "deadline", (_a("window", "int"), _a("deadline_ns", "int")), (), "The window's deadline was moved.", server="learner", oneway=True),
    # --- archivist -----------------------------------------------------------------------------------------------------
    Row(110, "open", (_a("boot", "str"),),
        (_a("commit", "bytes", "last window.commit record, empty if none"), _a("tail", "list", "records after it, as bytes"),
         _a("size", "int"), _a("root", "str"), _a("notes", "list", "what recovery did, for people")),
        "Open the store for this boot; recover what a crash left.", server="archivist"),
    Row(111, "append", (_a("records", "list", "encoded records; seq and t_wall are stamped here"),),
        (_a("seqs", "list"), _a("size", "int"), _a("root", "str")),
        "Append records durably; idempotent in t_mono within a boot.", server="archivist"),
    Row(112, "stage", (_a("window", "int"), _a("refs", "map", "path -> object id, the whole snapshot"),
                       _a("index", "list", "[id, dtype, shape, offset, nbytes] of the objects in the page"), _a("page", "page")),
        (_a("snapshot", "str", "root id"), _a("stored_bytes", "int")),
        "Store a snapshot durably in one pack; objects already held are not sent again.", R.KFS_APPEND, server="archivist"),
    Row(113, "put", (_a("objects", "list", "[kind, name] of arrays of the page"), _a("page", "page", "made by pack_arrays")),
        (_a("ids", "list", "empty string for a name that the page does not hold"),), "Store objects durably.", R.KFS_APPEND, server="archivist"),
    Row(114, "gc", (_a("ids", "list", "what to give up: roots of snapshots, artifacts"), _a("scores", "list", "the utility of each"),
                    _a("reason", "str"), _a("actor", "str"), _a("cap", "int"), _a("dry_run", "bool")),
        (_a("seq", "int", "number of the gc.plan record, -1 for a dry run"), _a("pending", "list", "plans that are not done")),
        "Record a plan and carry it out in the background; refused as a whole when it lists something pinned.", server="archivist"),
    Row(118, "keep", (_a("kind", "str"), _a("data", "bytes")), (_a("id", "str"),), "Store a small object durably; it fits a frame.", server="archivist"),
    Row(119, "fetch", (_a("id", "str"),), (_a("data", "bytes"),), "A small object's bytes, checked against its id.", server="archivist"),
    # --- dataset -------------------------------------------------------------------------------------------------------
    Row(120, "fill", (_a("window", "int"), _a("phase", "map"), _a("step0", "int", "stream position in batches"), _a("steps", "int"),
                      _a("weights", "str", "object id of the sample weights, empty: all one"), _a("gate", "map")),
        (_a("page", "page"), _a("batch", "str", "digest of the sample ids and weights")),
        "Write the batches of a window into a page; a pure function of its arguments and the manifest.", server="dataset"),
    Row(121, "split", (_a("name", "str", "train | validation | test"),), (_a("page", "page"),),
        "A whole split in a page.", server="dataset"),
    Row(122, "check", (_a("objects", "list", "[id, file name] of new data, oldest first"),),
        (_a("rows", "int", "of the last one"), _a("total", "int", "training samples with all of them")),
        "Read new data through; refused with file and line.", server="dataset"),
    # --- learner -------------------------------------------------------------------------------------------------------
    Row(130, "grant", (_a("window", "int"), _a("deadline_ns", "int"), _a("budget_ns", "int"), _a("base", "str", "root id; empty: as built"),
                       _a("phase", "map"), _a("step0", "int"), _a("steps", "int"), _a("policy", "map"), _a("directives", "list"), _a("page", "page")),
        (), "Run a window; answered by window_staged or window_rolled_back.", server="learner", oneway=True),
    Row(131, "abort", (_a("window", "int"), _a("reason", "str")), (),
        "Restore the base of this window and prove it by window_rolled_back.", server="learner", oneway=True),
    Row(132, "committed", (_a("window", "int"),), (), "The window is durable; its base may be forgotten.", server="learner", oneway=True),
    Row(133, "restore", (_a("snapshot", "str"),), (_a("restored", "str", "root id of the state now"),),
        "Load a snapshot from KFS; empty builds the initial state.", server="learner"),
    Row(134, "attach", (_a("id", "int"), _a("hook", "str"), _a("prog", "str"), _a("every", "int"),
                        _a("admitted", "map", "of a program: object, certificate, dims, rights", {})),
        (_a("sites", "list"), _a("step", "int"), _a("page", "page", "the maps; 0: none", 0)), "Attach an admitted probe.", server="learner"),
    Row(135, "detach", (_a("id", "int"),), (_a("step", "int"),), "Detach a probe.", server="learner"),
    Row(136, "probes", (_a("id", "int", "0: all, without maps", 0),), (_a("probes", "list"), _a("sites", "list"), _a("maps", "map")),
        "Probe counters, sites, and the maps of one probe.", server="learner"),
    Row(137, "match", (_a("hook", "str"), _a("prog", "str", "a built-in to compile; empty: none", "")),
        (_a("sites", "list"), _a("dims", "map", "largest size of each symbolic dimension"), _a("extra", "int", "units that the hook itself costs a firing"),
         _a("pairs", "int", "mapped pairs of layers", 1),
         _a("backend", "str", "jit | vm: what would run a program"), _a("program", "bytes", "of the built-in", b"")),
        "The sites that a hook selects, and the sizes that a program would see there.", server="learner"),
    # --- observer ------------------------------------------------------------------------------------------------------
    Row(140, "trace", (_a("window", "int"), _a("snapshot", "str"), _a("metrics", "map"), _a("maps", "map"), _a("policy", "map"), _a("page", "page")),
        (), "Evidence of a staged window; answered by policy_submit.", server="observer"),
    Row(141, "evaluate", (_a("snapshot", "str"), _a("split", "str")), (_a("scores", "map"),),
        "Score a snapshot's roles in the observer's own process.", server="observer"),
    Row(142, "calibrate", (_a("snapshot", "str"), _a("mode", "str")), (_a("result", "map"),),
        "Fit a scaling temperature on validation data.", server="observer"),
    Row(143, "consider", (_a("kind", "str"), _a("body", "map")), (_a("accept", "bool"), _a("reason", "str")),
        "Whether an interrupt is taken.", server="observer"),
    # --- gpu -----------------------------------------------------------------------------------------------------------
    Row(150, "inventory", (), (_a("devices", "list"), _a("host", "map"), _a("note", "str")), "Devices of this host.", server="gpu"),
    Row(151, "telemetry", (), (_a("devices", "list"), _a("host", "map"), _a("guard", "map", "verdict: ok, soft, hard or lost; reason", {}),
                               _a("driver", "map", "lease, path of the step, counts", {})), "One sample of every gauge.", server="gpu"),
    Row(152, "lease", (_a("bytes", "int", "device memory that the learner needs"), _a("key", "str", "digest of what a captured step has burnt in; empty: not capturable")),
        (_a("granted", "int", "bytes"), _a("path", "str", "dynamic | capture | replay"), _a("reason", "str")),
        "Device memory for the next window, and how its step is to run; refused with the numbers.", R.EXEC, server="gpu"),
    Row(153, "ran", (_a("key", "str"), _a("facts", "map", "captured, failed, replayed, dynamic, fallback")), (), "How a window's steps did run.", R.EXEC, server="gpu"),
)
# fmt: on

SYSCALL_BY_NR: Final = {row.nr: row for row in SYSCALLS}
SYSCALL_BY_NAME: Final = {row.name: row for row in SYSCALLS}
METHOD_BY_NR: Final = {row.nr: row for row in METHODS}
METHOD_BY_NAME: Final = {row.qualified: row for row in METHODS}


TELEMETRY: Final = frozenset({"gpu.inventory", "gpu.telemetry"})
"""Methods whose answers are gauges: an old question may be dropped for a newer one."""


def may_drop(server: str) -> bool:
    """Whether a server answers questions for gauges, so that its mailbox may drop the oldest of those."""
    return any(row.qualified in TELEMETRY for row in METHODS if row.server == server)


def method_of(server: str, name: str) -> Row:
    """The row of `server.name`, or of the method that every server has."""
    row = METHOD_BY_NAME.get(f"{server}.{name}") or METHOD_BY_NAME.get(f"any.{name}")
    if row is None:
        raise RecurosError("E2-USAGE", f"server {server!r} has no method {name!r}")
    return row


assert len(SYSCALL_BY_NR) == len(SYSCALLS) and len(METHOD_BY_NR) == len(METHODS), "a number is used twice"
assert limits.FRAME_BYTES_MAX >= 1 << 16
