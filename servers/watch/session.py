"""`recuros.watch(model)`: probes and a ledger for a training loop that stays as it is.

Responsible for: verified probes at the model's hooks, a window (a stretch of steps that ends in a snapshot) every so often, and the
records of both, written by an archivist of its own; saying what all this costs. Refuses: to change a step or to stop one. What fails
here is told on stderr once, recording ends, and training goes on; `close` raises it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor, nn

from kfs import records
from kfs.records import Record, RecordKind
from probes.hooks import Dispatcher
from servers.learner.state import DTYPES, byte_view
from servers.watch.programs import Programs
from servers.watch.writer import Writer
from syscalls import abi
from syscalls.errors import RecurosError
from syscalls.pages import WritePage, pack_arrays

MARKER: Final = "watch.json"
WINDOW_STEPS: Final = 500
EVERY: Final = 50
COPY_SHARE_MAX: Final = 0.01
"""Of the time since the last one, what copying the next snapshot may take; a window goes on for longer where it would be more."""
METRICS_MAX: Final = 32
ROLE: Final = "student"


class Watch:
    """What `recuros.watch` returns. A context manager; leaving it commits the last window and signs the ledger."""

    def __init__(
        self,
        model: nn.Module,
        run: Path,
        *,
        name: str,
        optimizer: torch.optim.Optimizer | None,
        probes: Sequence[tuple[str, str]] | None,
        every: int,
        window: int,
    ) -> None:
        if window < 1 or every < 1:
            raise RecurosError("E2-LIMIT", f"window={window} and every={every} must be 1 step or more")
        self.model = model
        self.run = run
        self.name = name
        self.error: RecurosError | None = None
        self.steps = 0
        """Optimizer steps seen in this session; the ledger counts on from those of earlier ones."""
        self.postponed = 0
        """Snapshots that came later than asked, because the last one was still being written or copying would have cost too much."""
        self._window_steps = window
        self._boot = secrets.token_hex(8)
        self._t_mono = 0
        self._metrics: dict[str, list[Any]] = {}
        self._spent_ns = 0
        self._copy_ns = 0
        self._began_ns = self._window_ns = time.monotonic_ns()
        self._closed = False
        self._handles: list[Any] = []
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        (run / "log").mkdir(mode=0o700, exist_ok=True)
        self._refuse_foreign()
        self._dispatcher = Dispatcher(self._evicted)
        self._dispatcher.install(ROLE, model)
        self._programs = Programs(self._dispatcher, every)
        wanted = [self._programs.add(hook, prog) for hook, prog in (usual_probes(model) if probes is None else probes)]
        self._writer = Writer(run / "store", run / "log" / "archivist.log")
        try:
            self._open()
        except BaseException:
            self._writer.close()
            raise
        self._programs.pending = wanted
        self._programs.look(True)
        self._handles.append(model.register_forward_pre_hook(self._forward))
        if optimizer is not None:
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self.step()))

    # --- what a training loop calls ---------------------------------------------------------------------------------------

    def log(self, **metrics: float | Tensor) -> None:
        """Figures of this step; means over the window go into its record. Tensors are read when the window ends, not now."""
        for name, value in metrics.items():
            if name in self._metrics or len(self._metrics) < METRICS_MAX:
                self._metrics.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)

    def step(self, **metrics: float | Tensor) -> None:
        """After each optimizer step; called by the optimizer's own hook when `watch` was given one."""
        began = time.monotonic_ns()
        if metrics:
            self.log(**metrics)
        self.steps += 1
        if self.error is None and not self._closed:
            try:
                self._step()
            except (RecurosError, OSError, RuntimeError, ValueError) as error:
                self._fail(error)
        self._spent_ns += time.monotonic_ns() - began

    def snapshot(self, name: str = "") -> None:
        """End the window here; with a name, give one to its snapshot. Waits until it is durable; nothing after recording has ended."""
        if self.error is not None or self._closed:
            return
        self._settle(wait=True)
        if self._since or not self._root:
            self._commit()
            self._settle(wait=True)
        if name:
            self._record("snapshot", {"name": name[:100], "window": self._window}, result=self._root)

    def probe(self, hook: str, prog: str) -> int:
        """Attach a verified program: `builtin:NAME`, a file or a one-liner; its id. Raises what makes it impossible.

        The role of the model is `student`. Verified again for the sizes of the tensors that are there, it starts within a step.
        """
        found = self._programs.add(hook, prog)
        self._programs.pending.append(found)
        return found.id

    def read(self, probe: int) -> dict[str, Any]:
        """The maps of a probe as they are now, and what they amount to."""
        return self._programs.read(probe)

    @property
    def probes(self) -> list[dict[str, Any]]:
        """One row a probe: id, hook, program, sites, how often it fired, what a firing cost, and why it was evicted ("": it was not)."""
        return self._dispatcher.stats()

    @property
    def overhead(self) -> float:
        """Share of the time since the start that watching took: probes, records and copies for snapshots."""
        elapsed = max(1, time.monotonic_ns() - self._began_ns)
        probes_ns = sum(int(row["total_ns"]) for row in self._dispatcher.stats())
        return (self._spent_ns + probes_ns) / elapsed

    def _repr_html_(self) -> str:
        """What a notebook shows: the probes, what they cost, and what the watch takes."""
        from syscalls import html

        state = "ended: " + self.error.message if self.error else "closed" if self._closed else "recording"
        title = f"recuros.watch {self.name}: {state}, {self.steps} steps, {self.overhead:.2%} of the time"
        keys = ("id", "program", "hook", "every", "fired", "cost_ns", "evicted")
        return html.table(title, keys, [[row[k] for k in keys] for row in self.probes])

    def close(self) -> None:
        """Commit the last window, sign, and leave the model as it was. Raises what ended the recording, if something did."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.error is None:
                self._settle(wait=True)
                if self._since:
                    self._commit()
                    self._settle(wait=True)
                self._record("halt", {"boot": self._boot, "mode": "drain", "reason": "the watch was closed"})
        finally:
            for handle in self._handles:
                handle.remove()
            self._dispatcher.uninstall(ROLE)
            self._programs.close()
            self._writer.close()
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except RecurosError as late:
            print(f"recuros.watch: {late}", file=sys.stderr)  # noqa: T201 - the script's own error goes on

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _refuse_foreign(self) -> None:
        """A runtime's run directory holds windows that a watch could not go on from."""
        if (self.run / "manifest.toml").exists():
            raise RecurosError(
                "E2-USAGE", f"{self.run} is the run directory of a runtime", hint="name another: watch(model, run=...)"
            )
        text = {"schema": "recuros.watch/v1", "name": self.name}
        (self.run / MARKER).write_text(json.dumps(text) + "\n", encoding="utf-8")

    def _open(self) -> None:
        head = self._writer.ask("head")
        last = head["last"]
        self._window, self._first, self._since = int(last.get("window", 0)), int(last.get("step", 0)), 0
        self._root = ""
        self._code = _digest_of(sys.argv[0])
        environment = {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "host": platform.node(),
            "script": sys.argv[0],
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "recovery": [str(note) for note in head["notes"]],
        }
        resumed = int(last.get("seq", -1))
        args = {
            "boot": self._boot,
            "app": self.name,
            "abi": f"{abi.ABI_MAJOR}.{abi.ABI_MINOR}",
            "resumed_from": resumed,
        }
        self._record("boot", {**args, "env": environment})

    def _forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Evaluation passes are no steps: nothing fires in them."""
        self._dispatcher._active = module.training and self._dispatcher._started

    def _step(self) -> None:
        self._since += 1
        self._settle(wait=False)
        self._programs.between_steps()
        self._programs.take_off()
        self._dispatcher.step(self._first + self.steps)
        for placed in self._programs.place():
            held = (self._writer.ask("keep", kind="program", data=placed.data)["id"],) if placed.data else ()
            args = {
                "id": placed.id,
                "hook": placed.hook,
                "prog": placed.prog,
                "sites": placed.sites,
                "step": self.steps,
            }
            self._record("probe.attach", args, inputs=held)
        for number, reason in self._programs.take_evictions():
            self._record("probe.evict", {"id": number, "step": self.steps, "reason": reason[:1000]})
        if self._since >= self._window_steps:
            if self._writer.busy or self._too_soon():
                self.postponed += 1
            else:
                self._commit()

    def _too_soon(self) -> bool:
        return self._copy_ns > COPY_SHARE_MAX * (time.monotonic_ns() - self._window_ns)

    def _commit(self) -> None:
        """Copy the state out of the model's way and hand it over; the rest is the archivist's time."""
        began = time.monotonic_ns()
        self._window += 1
        done = self._first + self.steps
        metrics = {**_means(self._metrics), "step": done, "steps": self._since, "watch_share": round(self.overhead, 6)}
        args = {
            "window": self._window,
            "boot": self._boot,
            "phase": {"name": "watch", "index": 0, "repeat": 0},
            "step0": done - self._since,
            "steps": self._since,
            "grant_seq": -1,
            "metrics": metrics,
            "resume": {"probes": self._programs.resume()},
        }
        page = self._page()
        try:
            self._writer.commit(page, records.encode(self._draft("window.commit", args, cursor=["watch", done])))
        finally:
            page.close()
        self._metrics, self._since = {}, 0
        self._window_ns = time.monotonic_ns()
        self._copy_ns = self._window_ns - began

    def _page(self) -> WritePage:
        rows: list[tuple[str, str, tuple[int, ...], Any]] = []
        for name, tensor in self.model.state_dict().items():
            if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
                continue
            module, _, leaf = name.rpartition(".")
            flat = tensor.detach().to("cpu").contiguous()
            rows.append((f"{ROLE}/{module or '.'}/{leaf}", DTYPES[flat.dtype], tuple(flat.shape), byte_view(flat)))
        for path, value in (("policy/roles/state", {ROLE: self._architecture()}), ("@cal", self._programs.document())):
            data = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()
            rows.append((path, "U8", (len(data),), data))
        return pack_arrays(rows)

    def _architecture(self) -> dict[str, Any]:
        """What `recuros kfs checkout` writes a model directory from."""
        config: Any = getattr(self.model, "config", None)
        if hasattr(config, "to_diff_dict"):
            name = type(self.model).__name__
            causal = "CausalLM" in name or "LMHead" in name
            return {"kind": "hf", "task": "causal-lm" if causal else "classify", "config": config.to_dict()}
        return {"kind": "watched", "class": f"{type(self.model).__module__}.{type(self.model).__qualname__}"}

    def _settle(self, *, wait: bool) -> None:
        """Take the answer to the commit under way; E124-TIMEOUT when it was waited for and does not come."""
        if not self._writer.busy:
            return
        done = self._writer.done(TIMEOUT_S if wait else 0.0)
        if done is not None:
            self._root = str(done["snapshot"])
        elif wait:
            raise RecurosError(
                "E124-TIMEOUT",
                f"window {self._window} was not stored in {TIMEOUT_S:g} s",
                hint=f"see {self.run / 'log'}",
            )

    def _draft(
        self, kind: str, args: dict[str, Any], *, result: str = "", inputs: tuple[str, ...] = (), cursor: Any = None
    ) -> Record:
        self._t_mono = max(self._t_mono + 1, time.monotonic_ns())
        return Record(
            f"watch:{os.getpid()}", RecordKind(kind), args, self._t_mono,
            result_snap=result or None, input_ids=inputs, code_id=self._code, data_cursor=cursor,
        )  # fmt: skip

    def _record(self, kind: str, args: dict[str, Any], *, result: str = "", inputs: tuple[str, ...] = ()) -> None:
        self._writer.ask("append", records=[records.encode(self._draft(kind, args, result=result, inputs=inputs))])

    def _evicted(self, number: int, reason: str) -> None:
        self._programs.evicted(number, reason)

    def _fail(self, error: Exception) -> None:
        """Recording ends here, training does not."""
        self.error = (
            error if isinstance(error, RecurosError) else RecurosError("E3-GONE", f"{type(error).__name__}: {error}")
        )
        self._dispatcher.uninstall(ROLE)
        text = f"recuros.watch: recording ended at step {self.steps}, training goes on\n{self.error}"
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the one place where a person can see it


TIMEOUT_S: Final = 300.0


def usual_probes(model: nn.Module) -> list[tuple[str, str]]:
    """RMS of the outputs of the model's blocks (its longest list of modules, else every layer), and the norms of all gradients."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1}
    longest = max(lists, key=lambda name: len(lists[name]), default=None)
    blocks = "**" if longest is None else f"{longest}.*" if longest else "*"
    return [(f"on_forward:{ROLE}/{blocks}", "builtin:rms"), (f"on_grad:{ROLE}/**", "builtin:gradnorm")]


def _digest_of(script: str) -> str | None:
    try:
        return "sha256:" + hashlib.sha256(Path(script).read_bytes()).hexdigest()
    except OSError:
        return None  # an interactive session has no script


def _means(found: Mapping[str, list[Any]]) -> dict[str, float]:
    """The mean of each figure of a window; one device transfer a name."""
    means: dict[str, float] = {}
    for name, values in found.items():
        tensors = [v.float().mean() for v in values if isinstance(v, Tensor)]
        numbers = [float(v) for v in values if not isinstance(v, Tensor)]
        if tensors:
            numbers += torch.stack(tensors).cpu().tolist()
        means[name] = sum(numbers) / len(numbers)
    return means
