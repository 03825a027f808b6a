"""A change with its reason, or only the question whether it would be accepted.

Responsible for: the syscall `propose`, which makes another syscall on the caller's behalf. A dry run goes through that syscall's own
handler, on a copy of the state that is thrown away, so that the two cannot come to different answers; a probe's goes the way of the
probe itself (the learner's sites, the verifier, admission) and ends where something would be kept or attached. Refuses: syscalls that
change nothing, and a dry run of `kfs_gc`, which has its own.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from kernel import plan
from kernel.broker import answer
from kernel.state import Caller, State, Turn
from syscalls import abi
from syscalls.errors import RecurosError

Handler = Callable[[Turn, Caller, dict[str, Any], int], None]
REASON_CHARS_MAX: Final = 1_000
DECIDED_HERE: Final = frozenset(
    {
        "shutdown",
        "cap_derive",
        "cap_revoke",
        "cap_take",
        "rl_schedule",
        "rl_snapshot",
        "rl_restore",
        "rl_swap_roles",
        "rl_set_kd",
        "rl_gate_samples",
        "rl_prune",
        "rl_detach_probe",
        "interrupt",
    }
)
"""Syscalls whose refusal the kernel decides by itself."""
ASKED_ON: Final = frozenset({"rl_interrupt", "rl_calibrate", "evaluate"})
"""Syscalls that the Observer or the learner answers; a dry run says whether they would be asked."""
TRIED: Final = frozenset({"rl_attach_probe", "rl_load_probe"})
"""Syscalls whose dry run takes several turns and other servers' answers."""
ANSWERED_ELSEWHERE: Final = ASKED_ON | TRIED | {"kfs_gc"}


def propose(t: Turn, caller: Caller, args: dict[str, Any], cpu_ns: int, handlers: Mapping[str, Handler]) -> None:
    """Syscall propose: checked and answered as the syscall it names."""
    row = abi.SYSCALL_BY_NR.get(args["syscall"])
    if row is None or row.name not in DECIDED_HERE | ANSWERED_ELSEWHERE:
        raise RecurosError(
            "E2-USAGE",
            f"propose takes the number of a change, not {args['syscall']}",
            hint=f"changes: {', '.join(sorted(DECIDED_HERE | ANSWERED_ELSEWHERE))}",
        )
    reason = args["reason"]
    if len(reason) > REASON_CHARS_MAX:
        raise RecurosError("E2-LIMIT", f"a reason of {len(reason)} characters; the limit is {REASON_CHARS_MAX}")
    values = row.check_args(args["args"])
    t.state.caps.require(caller.principal, t.cap, row.right, row.name)
    if not args["dry_run"]:
        handlers[row.name](t, caller._replace(inner=row.nr, reason=reason), values, cpu_ns)
        return
    if row.name in TRIED:
        handlers[row.name](t, caller._replace(inner=row.nr, trial=True), values, cpu_ns)
        return
    if row.name not in DECIDED_HERE | ASKED_ON:
        raise RecurosError("E1-NOSYS", f"{row.name} has a dry run of its own", hint=f"{row.name} dry_run=true")
    tried = Turn(rehearsal(t.state), t.now_ns, cap=t.cap)
    handlers[row.name](tried, caller._replace(inner=row.nr), values, cpu_ns)  # some answer at once: to nobody
    answer(t, caller, {"reply": [], "step": plan.next_step(t.state)})


def rehearsal(state: State) -> State:
    """A copy to try something on. What no change looks at (old events, programs half verified) does not come along."""
    shared = {id(state.config): state.config, id(state.checks): type(state.checks)()}
    return copy.deepcopy(state, {**shared, id(state.events): deque(maxlen=state.events.maxlen)})
