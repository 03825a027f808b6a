"""Typed stubs of every syscall, made from the table by `python -m syscalls.gen`. Do not edit."""

from __future__ import annotations

from typing import Any

from syscalls.peer import Peer


class Stubs(Peer):
    """One method a syscall; replies are dicts of the reply columns."""

    def ready(self, *, info: dict[str, Any]) -> dict[str, Any]:
        """A server has finished its start-up and takes work."""
        return self.syscall("ready", info=info)

    def fault(self, *, code: str, message: str, hint: str = "") -> dict[str, Any]:
        """A server reports why it cannot go on, just before it exits."""
        return self.syscall("fault", code=code, message=message, hint=hint)

    def status(self) -> dict[str, Any]:
        """The whole runtime at a glance: state, servers, window, figures."""
        return self.syscall("status")

    def events(self, *, after: int = 0, limit: int = 256) -> dict[str, Any]:
        """Recent events after a number."""
        return self.syscall("events", after=after, limit=limit)

    def shutdown(self, *, mode: str = "drain", reason: str = "") -> dict[str, Any]:
        """Drain, commit and stop; `now` rolls the running window back instead of waiting for it."""
        return self.syscall("shutdown", mode=mode, reason=reason)

    def cap_list(self, *, principal: str = "") -> dict[str, Any]:
        """Capabilities of a principal: slot, kind, object, rights, badge, parent."""
        return self.syscall("cap_list", principal=principal)

    def cap_derive(
        self, *, cap: int, rights: list[Any], to: str = "", badge: str = "", dry_run: bool = False
    ) -> dict[str, Any]:
        """Derive a capability with fewer rights; excess is rejected."""
        return self.syscall("cap_derive", cap=cap, rights=rights, to=to, badge=badge, dry_run=dry_run)

    def cap_revoke(self, *, cap: int, dry_run: bool = False) -> dict[str, Any]:
        """Remove every capability derived from this one; it stays itself."""
        return self.syscall("cap_revoke", cap=cap, dry_run=dry_run)

    def cap_take(self, *, principal: str, cap: int, dry_run: bool = False) -> dict[str, Any]:
        """Take a capability, and every one derived from it, from its holder. Servers: only what is derived from their own."""
        return self.syscall("cap_take", principal=principal, cap=cap, dry_run=dry_run)

    def page_release(self, *, page: int) -> dict[str, Any]:
        """Give a page handle back."""
        return self.syscall("page_release", page=page)

    def page_list(self) -> dict[str, Any]:
        """Pages of the caller: handle, bytes, writer."""
        return self.syscall("page_list")

    def channel_list(self) -> dict[str, Any]:
        """Mailboxes: server, messages and bytes waiting, limits, refused, dropped."""
        return self.syscall("channel_list")

    def channel_open(self, *, endpoint: int, end: int) -> dict[str, Any]:
        """Open the direct channel to a server that the manifest grants (`direct`)."""
        return self.syscall("channel_open", endpoint=endpoint, end=end)

    def channel_close(self, *, channel: int) -> dict[str, Any]:
        """The caller gives a direct channel up."""
        return self.syscall("channel_close", channel=channel)

    def channel_report(
        self, *, channel: int, calls: int, refused: int, cpu_ns: int, reason: str, fatal: bool
    ) -> dict[str, Any]:
        """The callee's account of a direct channel since the last one; from the caller: how the callee broke the rules."""
        return self.syscall(
            "channel_report", channel=channel, calls=calls, refused=refused, cpu_ns=cpu_ns, reason=reason, fatal=fatal
        )

    def stage_done(self, *, snapshot: str) -> dict[str, Any]:
        """The archivist stored a snapshot that came over a direct channel."""
        return self.syscall("stage_done", snapshot=snapshot)

    def rl_schedule(self, *, window: dict[str, Any], deadline: int) -> dict[str, Any]:
        """Change the replay reservation, if admission allows it."""
        return self.syscall("rl_schedule", window=window, deadline=deadline)

    def sched_show(self) -> dict[str, Any]:
        """Reservations, lanes, the fair class, counters."""
        return self.syscall("sched_show")

    def sched_admit(self, *, name: str, budget_ms: int, period_ms: int, deadline_ms: int) -> dict[str, Any]:
        """Would this reservation be admitted? Changes nothing."""
        return self.syscall("sched_admit", name=name, budget_ms=budget_ms, period_ms=period_ms, deadline_ms=deadline_ms)

    def sched_yield(self) -> dict[str, Any]:
        """A fair server at a micro-step gives its slice up and waits for the next one."""
        return self.syscall("sched_yield")

    def progress(self, *, window: int, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The learner's position inside the running window."""
        return self.syscall("progress", window=window, step=step, metrics=metrics)

    def window_staged(
        self, *, window: int, snapshot: str, metrics: dict[str, Any], maps: dict[str, Any], trace: int
    ) -> dict[str, Any]:
        """All state of the window is durable in KFS; the deadline is judged at receipt."""
        return self.syscall("window_staged", window=window, snapshot=snapshot, metrics=metrics, maps=maps, trace=trace)

    def window_rolled_back(
        self, *, window: int, code: str, reason: str, restored: str, step: int = 0
    ) -> dict[str, Any]:
        """The learner restored the base of the window."""
        return self.syscall("window_rolled_back", window=window, code=code, reason=reason, restored=restored, step=step)

    def probe_evicted(self, *, id: int, step: int, reason: str) -> dict[str, Any]:
        """The learner removed a probe that failed; training goes on."""
        return self.syscall("probe_evicted", id=id, step=step, reason=reason)

    def rl_snapshot(self, *, name: str = "") -> dict[str, Any]:
        """Name the last committed state; it is already durable, and now it is pinned."""
        return self.syscall("rl_snapshot", name=name)

    def rl_swap_roles(self, *, mode: str, dry_run: bool = False) -> dict[str, Any]:
        """The student becomes the teacher at the next window."""
        return self.syscall("rl_swap_roles", mode=mode, dry_run=dry_run)

    def rl_set_kd(
        self,
        *,
        temperature: float = -1.0,
        alpha: float = -1.0,
        proj: str = "",
        mix: float = -1.0,
        terms: dict[str, Any] = {},
    ) -> dict[str, Any]:
        """Change temperature, hint weight, projector, mix or the weights of terms from the next window on."""
        return self.syscall("rl_set_kd", temperature=temperature, alpha=alpha, proj=proj, mix=mix, terms=terms)

    def rl_attach_probe(self, *, hook: str, prog: str, every: int = 0) -> dict[str, Any]:
        """Attach a probe to the running learner."""
        return self.syscall("rl_attach_probe", hook=hook, prog=prog, every=every)

    def rl_detach_probe(self, *, id: int) -> dict[str, Any]:
        """Detach a probe; its maps are freed after one step."""
        return self.syscall("rl_detach_probe", id=id)

    def rl_gate_samples(self, *, criteria: dict[str, Any]) -> dict[str, Any]:
        """Leave the easiest and the most ambiguous samples out from the next window on; {} opens the gate."""
        return self.syscall("rl_gate_samples", criteria=criteria)

    def rl_prune(self, *, mask_spec: dict[str, Any]) -> dict[str, Any]:
        """Prune the student from the next window on, at once or over steps; what is gone stays gone."""
        return self.syscall("rl_prune", mask_spec=mask_spec)

    def rl_calibrate(self, *, mode: str = "temperature") -> dict[str, Any]:
        """Fit a scaling temperature to the last committed student on validation data."""
        return self.syscall("rl_calibrate", mode=mode)

    def probe_list(self) -> dict[str, Any]:
        """Attached probes, their cost and counters, and the hook sites."""
        return self.syscall("probe_list")

    def probe_read(self, *, id: int) -> dict[str, Any]:
        """The maps of one probe, read while the learner runs."""
        return self.syscall("probe_read", id=id)

    def policy_submit(self, *, window: int, settings: dict[str, Any], pack: str, blobs: int = 0) -> dict[str, Any]:
        """Submit a policy; it applies two windows after its evidence."""
        return self.syscall("policy_submit", window=window, settings=settings, pack=pack, blobs=blobs)

    def evaluate(self, *, snapshot: str = "", split: str = "validation") -> dict[str, Any]:
        """Score a snapshot on data no gradient has seen."""
        return self.syscall("evaluate", snapshot=snapshot, split=split)

    def interrupt(self, *, kind: str, reason: str = "") -> dict[str, Any]:
        """Interrupt the learner; pause and stop go straight to the kernel."""
        return self.syscall("interrupt", kind=kind, reason=reason)

    def rl_interrupt(
        self, *, kind: str, body: dict[str, Any] = {}, data: bytes = b"", timeout_ms: int = 10000, page: int = 0
    ) -> dict[str, Any]:
        """Ask for new data, a constraint or another objective; the Observer's policy decides, and the verdict is recorded."""
        return self.syscall("rl_interrupt", kind=kind, body=body, data=data, timeout_ms=timeout_ms, page=page)

    def kfs_gc(self, *, ids: list[Any], scores: list[Any], reason: str = "", dry_run: bool = False) -> dict[str, Any]:
        """Give snapshots and artifacts up; the archivist collects them in the background."""
        return self.syscall("kfs_gc", ids=ids, scores=scores, reason=reason, dry_run=dry_run)

    def rl_load_probe(self, *, program: bytes) -> dict[str, Any]:
        """Verify a probe program and keep it, to be attached by its digest."""
        return self.syscall("rl_load_probe", program=program)

    def probe_programs(self) -> dict[str, Any]:
        """Programs loaded in this boot: digest, object, hook, owner, certificate, probes."""
        return self.syscall("probe_programs")

    def probe_page(self, *, id: int) -> dict[str, Any]:
        """The page that holds a probe's maps, to be read while the learner writes."""
        return self.syscall("probe_page", id=id)

    def propose(self, *, syscall: int, args: list[Any], reason: str = "", dry_run: bool = False) -> dict[str, Any]:
        """Make a change with a reason for the ledger, or only ask whether it would be accepted. It needs the change's right."""
        return self.syscall("propose", syscall=syscall, args=args, reason=reason, dry_run=dry_run)

    def rl_restore(self, *, snapshot: str) -> dict[str, Any]:
        """Go back to the learner's state in a snapshot at the next window; the plan, the data and the generation go on."""
        return self.syscall("rl_restore", snapshot=snapshot)
