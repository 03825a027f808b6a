"""The dispatcher: one permanent site per layer, attention module and parameter of a live model, and the programs attached to each.

Responsible for: the sites of every layer, attention module and trainable parameter when a model is built; swapping the immutable
tuple of programs of a site on attach and detach; cadence, checked before anything is computed; putting PyTorch's hooks on exactly
the sites that have something to do in a step, at its beginning, so that all others cost nothing; evicting a program that raises or
writes, after which training goes on; counters and cost per program.
Refuses: to alter the step. Programs run without autograd on detached tensors, and step results are bit-identical with and
without them. A program that writes into a tensor in spite of that is evicted and leaves `tainted` set: the window must
then be rolled back, because what it overwrote is gone.

All calls come from the thread that runs the training step (autograd may run `on_grad` from its device thread while that
one waits). A site inside a compiled module cannot fire, and is listed as unavailable instead of matching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from probes import attention, isa, sites, sizes
from probes.program import Context, Program
from probes.sites import Hook
from syscalls.errors import RecurosError
from syscalls.limits import PROBES_MAX

EvictionCallback = Callable[[int, str], None]
"""Called with the probe's id and the reason in words."""
SITES_MAX = 65_536
_EVENTS = tuple(kind for kind, ranges_over in sites.KINDS.items() if ranges_over is None)
# These happen between steps and rarely: a cadence in steps would hit them by chance, so every one fires.
_RARE = ("on_snapshot", "on_prune")


class Attached:
    """A program at its sites, with its counters."""

    __slots__ = ("cost_ns", "due", "evicted", "fired", "hook", "id", "installs", "program", "sites")

    def __init__(self, probe_id: int, hook: Hook, program: Program) -> None:
        self.id = probe_id
        self.hook = hook
        self.program = program
        self.sites: list[str] = []
        self.fired = 0
        self.cost_ns = 0
        self.installs = 0
        self.evicted = ""
        self.due = False

    @property
    def every(self) -> int:
        """The cadence in steps."""
        return 1 if self.hook.kind in _RARE else self.program.every


class Site:
    """One hook site. It carries a hook of PyTorch while it is armed: in the steps in which it has something to do."""

    __slots__ = (
        "compiled", "dispatcher", "full", "handle", "kind", "label", "module", "name", "path", "plan", "programs", "reason", "role", "sizes"
    )  # fmt: skip

    def __init__(self, dispatcher: Dispatcher | None, kind: str, role: str = "", name: str = "") -> None:
        self.dispatcher = dispatcher
        self.compiled = False  # PyTorch then calls no hook of it
        self.kind = kind
        self.role = role
        self.name = name
        self.full = sites.site_name(kind, role, name)
        self.label = f"{role}/{name}" if name else kind
        self.programs: tuple[Attached, ...] = ()
        self.handle: RemovableHandle | None = None
        self.plan: attention.Plan | None = None
        self.path = ""  # of an attention site: the path its last firing took
        self.reason = ""  # why this site cannot fire
        self.module: nn.Module | Tensor | None = None
        self.sizes: sizes.Sizes = {}  # of what it hands out, once that was seen

    @property
    def busy(self) -> bool:
        """Whether a pass of this step must come by here: a program is due, or its sizes or its path are still to be seen."""
        if self.module is None or self.compiled:
            return False
        return bool(self.reason) or any(attached is _UNSEEN or attached.due for attached in self.programs)

    def arm(self) -> None:
        """Put the hook on; before any other hook of a layer, so that the layer's own output is read."""
        module = self.module
        if isinstance(module, nn.Module):
            hook, kwargs = (self.on_attention, True) if self.kind == "on_attention" else (self.on_forward, False)
            self.handle = module.register_forward_hook(hook, with_kwargs=kwargs, prepend=True)
        elif module is not None and module.requires_grad:
            self.handle = module.register_post_accumulate_grad_hook(self.on_grad)  # type: ignore[no-untyped-call]

    def disarm(self) -> None:
        """Take the hook off."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Site:
        # A copied model (an EMA, a snapshot) is another model: its forward passes must not count as this one's.
        return Site(None, self.kind, self.role, self.name)

    def on_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of a layer."""
        programs = self.programs
        if programs and self.dispatcher is not None:
            self.dispatcher.run(self, programs, {"output": output})

    def on_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of an attention module."""
        if self.dispatcher is None:
            return
        if self.reason and attention.eager(output) is not None:
            self.reason = ""  # no known projections, but it returns its probabilities: nothing to recompute
            self.dispatcher.changed = True
        programs = self.programs
        if programs:
            self.dispatcher.run(self, programs, {"call": (module, args, kwargs, output)})

    def on_grad(self, parameter: Tensor) -> None:
        """Post-accumulate hook of a parameter: its gradient is complete for this backward pass."""
        programs = self.programs
        if programs and self.dispatcher is not None:
            self.dispatcher.run(self, programs, {"grad": parameter.grad, "param": parameter})


class Dispatcher:
    """All hook sites of a learner and the programs attached to them. Nothing fires before the first `step`."""

    def __init__(self, on_evict: EvictionCallback) -> None:
        self.on_evict = on_evict
        self.tainted = ""
        self._step = -1
        self._active = False
        self._started = False
        self._seeing = False
        self._attached: dict[int, Attached] = {}
        self._detached: dict[int, Attached] = {}
        self._by_role: dict[str, dict[str, list[Site]]] = {}
        self._events = {kind: Site(self, kind) for kind in _EVENTS}
        # The cadences in use, so that a step without a due program costs one modulo per cadence.
        self._cadences: tuple[tuple[int, tuple[Attached, ...]], ...] = ()
        self._stretch = 1
        self.changed = False  # whether sites got or lost something to do since `_held` was made
        self._held: list[Site] = []  # those that may ever be busy as things are

    # Sites

    def install(self, role: str, module: nn.Module) -> None:
        """Put a dispatcher on every site of `module` as `role`, replacing those of the role's earlier module.

        Attached programs keep their maps and are resolved again by their globs; one that matches nothing now stays
        attached without sites, and says so in `stats`.
        """
        if role not in sites.ROLES:
            raise RecurosError("E4-HOOK", f"no role {role!r}; roles: {', '.join(sites.ROLES)}")
        self.uninstall(role)
        by_kind: dict[str, list[Site]] = {kind: [] for kind in sites.KINDS if kind not in _EVENTS}
        self._by_role[role] = by_kind
        for name, layer, compiled in _layers(module):
            by_kind["on_forward"].append(self._hook_layer(role, name, layer, compiled))
            if attention.is_attention(layer):
                by_kind["on_attention"].append(self._hook_attention(role, name, layer, compiled))
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.is_leaf:
                site = Site(self, "on_grad", role, name)
                site.module, site.sizes = parameter, sizes.of_matrix(parameter)
                by_kind["on_grad"].append(site)
        self._check_count(role)
        for attached in self._attached.values():
            if attached.hook.role == role and not attached.evicted:
                self._place(attached, self._matching(attached.hook))
                attached.installs += 1
        self.changed = True
        self._arm()

    def uninstall(self, role: str) -> None:
        """Take the role's dispatchers off its module; attached programs stay, without sites in it."""
        for group in self._by_role.pop(role, {}).values():
            for site in group:
                site.programs = ()
                site.dispatcher = site.module = None
                site.disarm()
        for attached in self._attached.values():
            if attached.hook.role == role:
                attached.sites = []

    def sites(self) -> list[str]:
        """The full names of all sites that can fire."""
        return [site.full for site in self._all_sites() if not site.reason]

    def describe(self) -> list[dict[str, str]]:
        """Each site with the path its attention took last ("" elsewhere) and the reason when it cannot fire."""
        return [{"site": s.full, "path": s.path, "reason": s.reason} for s in self._all_sites()]

    def match(self, hook: str) -> tuple[list[str], sizes.Sizes, int]:
        """The sites that `hook` selects, the largest size there of each dimension that is known, and the units that reading
        them costs by itself. Raises what `attach` raises for a hook.
        """
        found = self._select(sites.parse(hook))
        units = 0
        for site in found:
            if site.kind == "on_attention" and isinstance(site.module, nn.Module):
                known = isa.REFERENCE_DIMS | site.sizes
                units = max(units, sizes.attention_units(site.module, known, site.path))
        return [site.full for site in found], sizes.largest(_sizes(site) for site in found), units

    def seen(self, kind: str, role: str) -> sizes.Sizes:
        """The largest sizes that any site of a kind has handed out so far; {} when none has fired."""
        found = [site.sizes for site in self._by_role.get(role, {}).get(kind, []) if site.sizes]
        return {symbol: max(row[symbol] for row in found) for symbol in found[0]} if found else {}

    # Programs

    def attach(self, probe_id: int, hook: str, program: Program) -> list[str]:
        """Attach `program` to every site that `hook` selects, from the next firing on; returns those sites.

        Raises RecurosError: E4-HOOK when nothing matches or no match can fire, E2-LIMIT beyond PROBES_MAX probes or
        when the id is taken.
        """
        where = sites.parse(hook)
        if probe_id in self._attached or probe_id in self._detached:
            raise RecurosError("E2-LIMIT", f"probe id {probe_id} is in use")
        if len(self._attached) >= PROBES_MAX:
            raise RecurosError(
                "E2-LIMIT",
                f"{len(self._attached)} probes are attached, the limit is {PROBES_MAX}",
                hint="detach one; evicted probes count until they are detached",
            )
        found = self._select(where)
        attached = self._attached[probe_id] = Attached(probe_id, where, program)
        self._place(attached, found)
        self._group_by_cadence()
        self._arm()
        return list(attached.sites)

    def detach(self, probe_id: int) -> None:
        """Detach at once; the maps stay readable until the next `step`, then they are freed."""
        attached = self._attached.pop(probe_id, None)
        if attached is None:
            raise RecurosError("E4-NOENT", f"no probe {probe_id} is attached", hint="recuros probe list")
        self._remove(attached)
        self._detached[probe_id] = attached

    def stretch(self, factor: int) -> None:
        """Have every program with a cadence in steps fire `factor` times as seldom, from the next step on; 1: as it was attached."""
        if factor != self._stretch:
            self._stretch = max(1, factor)
            self._group_by_cadence()

    def step(self, step: int) -> None:
        """Begin a micro-step: decides which programs are due and frees the maps of what was detached before it."""
        self._step = step
        self._active = self._started = True
        flipped = False
        for every, group in self._cadences:
            due = step % every == 0
            if group[0].due is not due:
                for attached in group:
                    attached.due = due
                flipped = True
        if flipped or self.changed:
            self._arm()
        if self._detached:
            for attached in self._detached.values():
                attached.program.close()
            self._detached.clear()

    def wants(self, hook: str) -> bool:
        """Whether an event hook has a program due at this step, so that its tensors are worth computing."""
        return self._active and any(attached.due for attached in self._event(hook).programs)

    def watches(self, role: str) -> bool:
        """Whether any program sits on a site of this role, so that its passes must really be made."""
        return any(site.programs for group in self._by_role.get(role, {}).values() for site in group)

    @property
    def due(self) -> bool:
        """Whether any program is due at this step, wherever it is attached."""
        return self._active and any(group[0].due for _, group in self._cadences)

    def fire(self, hook: str, **tensors: Any) -> None:
        """Fire an event hook: `on_kd_step` with student_logits, teacher_logits, labels, ids, hidden (a sequence of
        (name, student, teacher)); `on_snapshot` and `on_prune` with what they have.
        """
        site = self._event(hook)
        programs = site.programs
        if programs:
            self.run(site, programs, tensors)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No program fires inside: for evaluation passes of the hooked model, which are not steps."""
        self._active, before = False, self._active
        try:
            yield
        finally:
            self._active = before

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """No program fires inside, but sites that have not fired yet learn their sizes: for a pass over made-up inputs."""
        with self.quiet():
            self._seeing = True
            try:
                yield
            finally:
                self._seeing = False

    # Reading

    def maps(self, probe_id: int) -> dict[str, Any]:
        """The probe's maps and what they amount to, JSON-able. E4-NOENT when freed or never attached."""
        attached = self._find(probe_id)
        program = attached.program
        return {
            "program": program.name,
            "step": self._step,
            "fired": attached.fired,
            "installs": attached.installs,
            "summary": program.summary(),
            "maps": {name: held.to_dict() for name, held in program.maps.items()},
        }

    def restore(self, probe_id: int, document: dict[str, Any]) -> None:
        """Put back maps that `maps` returned, for example after a restart."""
        attached = self._find(probe_id)
        if set(document["maps"]) != set(attached.program.maps):
            raise RecurosError("E2-LIMIT", f"these are not the maps of {attached.program.name}")
        for name, held in attached.program.maps.items():
            held.load(document["maps"][name])
        attached.fired = int(document["fired"])

    def stats(self) -> list[dict[str, Any]]:
        """One row per attached probe. `cost_ns`: mean cost of a firing; `evicted`: the reason, "" while it runs."""
        return [
            {
                "id": a.id,
                "hook": str(a.hook),
                "program": a.program.name,
                "every": a.program.every,
                "sites": list(a.sites),
                "fired": a.fired,
                "evicted": a.evicted,
                "drops": sum(held.drops for held in a.program.maps.values()),
                "cost_ns": a.cost_ns // a.fired if a.fired else 0,
                "total_ns": a.cost_ns,
            }
            for a in self._attached.values()
        ]

    # Firing

    def run(self, site: Site, programs: tuple[Attached, ...], tensors: dict[str, Any]) -> None:
        """Run the due programs of a site. Modules called from inside a program fire nothing themselves."""
        if not self._active:
            if self._seeing and programs[0] is _UNSEEN:
                self._see(site, tensors)
            return
        if programs[0] is _UNSEEN:
            programs = self._see(site, tensors)
        for attached in programs:
            if attached.due:
                break
        else:
            return
        self._active = False
        grad_before = torch.is_grad_enabled()
        # torch.no_grad() costs 1.5 us against 0.1 us for the call under it, on a budget of 5 us per firing.
        torch._C._set_grad_enabled(False)
        try:
            if "output" in tensors:
                tensors["output"] = _first_tensor(tensors["output"])
            for attached in programs:
                if attached.due:
                    self._run_one(site, attached, tensors)
        finally:
            torch._C._set_grad_enabled(grad_before)
            self._active = True

    def _see(self, site: Site, tensors: dict[str, Any]) -> tuple[Attached, ...]:
        """The first firing of a site tells its sizes; from the next step on it costs what an unwatched site costs: nothing."""
        self.changed = True
        if "call" in tensors:
            site.sizes = sizes.of_attention(tensors["call"], site.plan)
            site.path = attention.EAGER if attention.eager(tensors["call"][-1]) is not None else attention.RECOMPUTE
        elif isinstance(output := _first_tensor(tensors.get("output")), Tensor):
            site.sizes = sizes.of_output(output)
        site.programs = site.programs[1:]
        return site.programs

    def _run_one(self, site: Site, attached: Attached, tensors: dict[str, Any]) -> None:
        started_ns = perf_counter_ns()
        reader = _AttentionReader(site, tensors["call"]) if "call" in tensors else None
        context = Context(site.kind, site.label, self._step, tensors, reader)
        reason = ""
        try:
            attached.program.fire(context)
        except Exception as fault:  # noqa: BLE001 - whatever a probe does wrong must not stop the step; it is reported
            reason = f"{type(fault).__name__}: {fault}"[:400]
        written = context.written()
        attached.fired += 1
        attached.cost_ns += perf_counter_ns() - started_ns
        if written:
            self.tainted = reason = f"{attached.program.name} wrote into {written} at {site.full}, step {self._step}"
        if reason:
            self._evict(attached, reason)

    def _evict(self, attached: Attached, reason: str) -> None:
        attached.evicted = reason
        self._remove(attached)
        self.on_evict(attached.id, reason)

    # Placing

    def _arm(self) -> None:
        """Hooks where something is to be done, and nowhere else. Between passes only: PyTorch walks a layer's hooks while it calls them."""
        if self.changed:
            self._held = [s for s in self._all_sites() if s.module is not None and (s.programs or s.reason or s.handle)]
            self.changed = False
        for site in self._held:
            if site.busy is (site.handle is None):
                site.arm() if site.handle is None else site.disarm()

    def _place(self, attached: Attached, found: Sequence[Site]) -> None:
        self.changed = True
        for site in found:
            site.programs = (*site.programs, attached)
        attached.sites = [site.full for site in found]
        attached.due = self._started and self._step % self._period(attached) == 0

    def _remove(self, attached: Attached) -> None:
        attached.due = False
        self.changed = True
        for site in self._all_sites():
            if attached in site.programs:
                site.programs = tuple(a for a in site.programs if a is not attached)
        self._group_by_cadence()

    def _group_by_cadence(self) -> None:
        groups: dict[int, list[Attached]] = {}
        for attached in self._attached.values():
            if not attached.evicted:
                groups.setdefault(self._period(attached), []).append(attached)
        for period, group in groups.items():
            for attached in group:
                attached.due = self._started and self._step % period == 0
        self._cadences = tuple((every, tuple(group)) for every, group in groups.items())

    def _period(self, attached: Attached) -> int:
        return attached.every if attached.hook.kind in _RARE else attached.every * self._stretch

    def _select(self, where: Hook) -> list[Site]:
        if where.kind in _EVENTS:
            return [self._events[where.kind]]
        if where.role not in self._by_role:
            raise RecurosError("E4-HOOK", f"{where} matches nothing: no {where.role} is loaded")
        group = self._by_role[where.role][where.kind]
        names = set(sites.select(where, [site.name for site in group]))
        found = [site for site in group if site.name in names]
        able = [site for site in found if not site.reason]
        if not able:
            raise RecurosError("E4-HOOK", f"{found[0].full} cannot fire: {found[0].reason}")
        return able

    def _matching(self, where: Hook) -> list[Site]:
        group = self._by_role.get(where.role, {}).get(where.kind, [])
        return [site for site in group if not site.reason and sites.matches(where.glob, site.name)]

    def _find(self, probe_id: int) -> Attached:
        attached = self._attached.get(probe_id) or self._detached.get(probe_id)
        if attached is None:
            raise RecurosError("E4-NOENT", f"probe {probe_id} holds no maps", hint="recuros probe list")
        return attached

    def _event(self, hook: str) -> Site:
        site = self._events.get(hook)
        if site is None:
            raise RecurosError("E4-HOOK", f"{hook!r} is not an event hook; those are: {', '.join(_EVENTS)}")
        return site

    def _all_sites(self) -> Iterator[Site]:
        for by_kind in self._by_role.values():
            for group in by_kind.values():
                yield from group
        yield from self._events.values()

    def _hook_layer(self, role: str, name: str, layer: nn.Module, compiled: bool) -> Site:
        site = Site(self, "on_forward", role, name)
        site.module, site.programs = layer, (_UNSEEN,)
        if compiled:
            site.compiled, site.reason = True, "it is inside a compiled module"
        return site

    def _hook_attention(self, role: str, name: str, layer: nn.Module, compiled: bool) -> Site:
        site = Site(self, "on_attention", role, name)
        site.module, site.programs = layer, (_UNSEEN,)
        if compiled:
            site.compiled, site.reason = True, "it is inside a compiled module"
            return site
        how = attention.plan(layer)
        if isinstance(how, str):
            site.reason = f"{how}, and it has not returned probabilities yet"
        else:
            site.plan = how
        return site

    def _check_count(self, role: str) -> None:
        count = sum(len(group) for group in self._by_role[role].values())
        if count > SITES_MAX:
            self.uninstall(role)
            raise RecurosError("E2-LIMIT", f"the {role} has {count} hook sites, the limit is {SITES_MAX}")


class _AttentionReader:
    """Reads the attention of one call on demand, so that a program that does not ask pays nothing."""

    __slots__ = ("call", "site")

    def __init__(self, site: Site, call: tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]) -> None:
        self.site = site
        self.call = call

    def __call__(self) -> tuple[Tensor, str]:
        module, args, kwargs, output = self.call
        probs = attention.eager(output)
        if probs is not None:
            self.site.path = attention.EAGER
            attention.require_distribution(probs)
            return probs, attention.EAGER
        self.site.path = attention.RECOMPUTE
        if self.site.plan is None:
            raise attention.AttentionUnavailableError("the module stopped returning its probabilities")
        return attention.recompute(module, self.site.plan, args, kwargs, output), attention.RECOMPUTE


class _Unseen(Program):
    """Stands first among the programs of a site whose tensors were not seen yet; it never fires."""

    name, every, maps = "sizes", 1, {}

    def fire(self, context: Context) -> None:
        """Never called."""

    def summary(self) -> dict[str, Any]:
        """Nothing."""
        return {}


_UNSEEN: Final = Attached(0, Hook("on_forward"), _Unseen())


def _sizes(site: Site) -> sizes.Sizes:
    """What is known of a site: what was seen, else what its module declares."""
    return site.sizes or (sizes.of_module(site.module) if isinstance(site.module, nn.Module) else {})


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Named layers below the root, without containers, which are never called; the last says "inside a compiled one"."""
    compiled: list[str] = []
    for name, layer in module.named_modules():
        inside = any(name == prefix or name.startswith(f"{prefix}.") or not prefix for prefix in compiled)
        if type(layer).__name__ == "OptimizedModule" or layer._compiled_call_impl is not None:
            compiled.append(name)
            inside = True
        if name and not isinstance(layer, nn.ModuleList | nn.ModuleDict):
            yield name, layer, inside


def _first_tensor(output: Any) -> Any:
    """The hidden state of a layer's output: itself, the first of a tuple, or the first tensor of a model output."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)
