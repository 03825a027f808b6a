"""The models that Nexus's learner trains: a student's backbone or one adapter of it, and the teacher as cached targets.

Responsible for: the runtime's model face over a student of which exactly one part is trainable, so that a window of one adapter cannot
change a byte of anything else; the teacher whose outputs the batch carries. Refuses: other names and options; a batch without
targets (E2-DATA). An adapter's snapshot holds the adapter alone, and a cached teacher has no parameters that a store could hold.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from nexus.model.student import NexusStudent
from nexus.model.tokenizer import VOCABULARY
from nexus.quiet import quiet
from servers.models.model import Batch, Model, Output, column
from servers.models.registry import APP_MODELS
from syscalls.errors import RecurosError

EXAMPLE_K: Final = 4
REST_MIN: Final = 1e-6
"""Mass that the tokens outside the top k share at least, so that no log probability is infinite."""


class _NexusModel(Model):
    """What both share."""

    task = "causal-lm"
    num_classes = VOCABULARY

    @torch.no_grad()
    def example(self, rows: int, tokens: int) -> Batch:
        """Bytes of no meaning, all scored."""
        ids = torch.full((rows, tokens), 32)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "scored": torch.ones_like(ids),
            "top_ids": torch.zeros(rows, tokens, EXAMPLE_K, dtype=torch.int64),
            "top_logp": torch.full((rows, tokens, EXAMPLE_K), -1.0),
        }


class StudentPart(_NexusModel):
    """The backbone (`adapter` "") or one adapter of the student in a directory; the rest is frozen and outside `module`."""

    def __init__(self, options: dict[str, Any]) -> None:
        known = {"path", "adapter", "rank", "layers", "seed"}
        if strange := sorted(set(options) - known):
            raise RecurosError(
                "E2-MODEL", f"nexus-student: unknown option {strange[0]!r}", hint=", ".join(sorted(known))
            )
        self.student = load_student(Path(str(options["path"])))
        self.student.requires_grad_(False)
        name = str(options.get("adapter") or "")
        if name:
            layers = options.get("layers")
            if name in self.student.adapter_names:
                self.student.drop_adapter(name)
            self.module: nn.Module = self.student.add_adapter(
                name, int(options["rank"]), layers=layers, seed=int(options.get("seed", 42))
            )
            self.student.set_adapter(name)
        else:
            self.module = self.student.backbone
        self.architecture = {"kind": "app", "name": "nexus-student", "options": dict(options)}
        self.hidden_width = self.student.width
        self.num_layers = len(self.student.layers)

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Logits [B, T, V]; the rows that count are those whose next token is scored."""
        _no_attention(need_attention or need_values)
        mask = column(batch, "attention_mask")
        out = self.student(
            input_ids=column(batch, "input_ids"),
            attention_mask=mask,
            output_hidden_states=need_hidden,
            use_cache=False,
        )
        hidden = tuple(out.hidden_states) if need_hidden else ()
        return Output(out.logits, hidden, scored_next(batch), mask.bool())


class CachedTeacher(_NexusModel):
    """The teacher's likeliest next tokens, out of the batch."""

    def __init__(self, options: dict[str, Any]) -> None:
        if options:
            raise RecurosError("E2-MODEL", f"nexus-cache: unknown option {sorted(options)[0]!r}", hint="it has none")
        self.module = nn.Module()
        self.architecture = {"kind": "app", "name": "nexus-cache", "options": {}}
        self.hidden_width = self.num_layers = 1

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Log probabilities [B, T, V]: the cached ones, and the rest of the mass spread evenly over the other tokens."""
        _no_attention(need_attention or need_values)
        logp = spread(column(batch, "top_ids"), column(batch, "top_logp"), VOCABULARY)
        return Output(logp, (), scored_next(batch), column(batch, "attention_mask").bool())


class AnchoredTeacher(CachedTeacher):
    """Cached outputs, and a live teacher's hidden states in the coordinates of its profile, for the activation anchor.

    `hidden[l + 1]` is what layer l gives, minus its mean, along the rows of its basis, scaled to mean square one; layers without
    a basis are zero. The engine's hint term compares a linear map of the student's layer with it, which makes it the anchor. The
    teacher lies outside `module`: no snapshot holds it. With `random` the directions are drawn instead: the control.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        import numpy as np

        from nexus.app import TeacherTable
        from nexus.data import teachers

        super().__init__({})
        table = TeacherTable.model_validate(options["teacher"])
        loaded = teachers.load(table, Path(str(options["path"])))
        if not isinstance(loaded, teachers.ByteTeacher):
            raise RecurosError(
                "E2-MODEL", f"teacher {table.id!r} has other positions than the student", hint='anchor = "none"'
            )
        self._teacher = loaded.module
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}
        draw = torch.Generator().manual_seed(int(options.get("seed", 42)))
        for layer, file in dict(options["bases"]).items():
            with np.load(file) as found:
                basis, mean = (torch.from_numpy(found[key].astype(np.float32)) for key in ("basis", "mean"))
            if options.get("random"):
                basis = torch.linalg.qr(torch.randn(basis.shape[1], basis.shape[0], generator=draw)).Q.T.contiguous()
            self._parts[int(layer)] = (mean, basis)
        self.hidden_width = max(basis.shape[0] for _, basis in self._parts.values())
        self.num_layers = int(self._teacher.config.num_hidden_layers)
        self.architecture = {"kind": "app", "name": "nexus-anchored", "options": dict(options)}

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """As the cached teacher's, with hidden states."""
        plain = super().forward(batch, need_attention=need_attention, need_values=need_values)
        if not need_hidden:
            return plain
        ids, mask = column(batch, "input_ids"), column(batch, "attention_mask")
        states = self._teacher(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        hidden = [torch.zeros(*ids.shape, self.hidden_width) for _ in range(self.num_layers + 1)]
        for layer, (mean, basis) in self._parts.items():
            at = (states[layer + 1] - mean) @ basis.T
            scale = at[mask.bool()].square().mean().sqrt().clamp_min(1e-6)
            hidden[layer + 1][..., : basis.shape[0]] = at / scale
        return Output(plain.logits, tuple(hidden), plain.valid_mask, plain.hidden_mask)


def _no_attention(asked: bool) -> None:
    if asked:
        raise RecurosError(
            "E2-MODEL",
            "cached targets hold no attention, so no loss can compare it",
            hint="leave kd's attention terms off",
        )


def scored_next(batch: Batch) -> Tensor:
    """bool [B, T]: true at t where token t + 1 is scored."""
    scored = column(batch, "scored").bool()
    return torch.cat((scored[:, 1:], torch.zeros_like(scored[:, :1])), dim=1)


def spread(top_ids: Tensor, top_logp: Tensor, vocabulary: int) -> Tensor:
    """Dense log probabilities [..., vocabulary] of the top k [..., K]."""
    kept = top_logp.exp().sum(dim=-1, keepdim=True)
    rest = (1.0 - kept).clamp_min(REST_MIN) / (vocabulary - top_ids.shape[-1])
    dense = rest.log().expand(*top_ids.shape[:-1], vocabulary).clone()
    return dense.scatter(-1, top_ids, top_logp.clamp_min(math.log(1e-9)))


def load_student(path: Path) -> NexusStudent:
    """A student that `save_pretrained` wrote, with what adapters it had, in evaluation mode."""
    try:
        with quiet():
            found = NexusStudent.from_pretrained(str(path), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RecurosError("E2-MODEL", f"student {path} cannot be loaded: {error}", hint="run stage 3 again") from error
    student: NexusStudent = found.eval()
    return student


def register() -> None:
    """Let this process build them."""
    APP_MODELS["nexus-student"] = StudentPart
    APP_MODELS["nexus-cache"] = CachedTeacher
    APP_MODELS["nexus-anchored"] = AnchoredTeacher
