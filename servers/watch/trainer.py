"""`recuros.watch` for a Hugging Face Trainer: one callback.

    trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[recuros.WatchCallback("runs/mine")])

Responsible for: the watch's life along with the training's, the Trainer's own figures, and a name for each of its checkpoints.
Refuses: to watch in any process but the first of a distributed job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from servers.watch.session import Watch
from syscalls.rundir import resolve_run


class WatchCallback(TrainerCallback):
    """`options` are those of `recuros.watch`; `watch` is the running one, None outside of training."""

    def __init__(self, run: str | Path | None = None, **options: Any) -> None:
        self._run = resolve_run(str(run) if run is not None else None)
        self._options = {"name": "trainer", "probes": None, "every": 50, "window": 500, "optimizer": None, **options}
        self.watch: Watch | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Attach to the model that is about to be trained."""
        if state.is_world_process_zero and model is not None:
            self.watch = Watch(model, self._run, **self._options)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An optimizer step."""
        if self.watch is not None:
            self.watch.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The Trainer's figures go into the window's record."""
        if self.watch is not None:
            self.watch.log(**{k: v for k, v in (logs or {}).items() if isinstance(v, int | float) and k.isidentifier()})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint of the Trainer is a named snapshot too."""
        if self.watch is not None:
            self.watch.snapshot(f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Commit the last window and sign."""
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.close()
