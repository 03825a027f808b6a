"""The models that Nexus's learner trains: a student's backbone or one adapter of it, and the teacher as cached targets.

Responsible for: the runtime's model face over a student of which exactly one part is trainable, so that a window of one adapter cannot
change a byte of anything else; the teacher whose outputs the batch carries. Refuses: other names and options; a batch without
targets (E2-DATA). An adapter's snapshot holds the adapter alone, and a cached teacher has no parameters that a store could hold.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from nexus.model.student import NexusStudent, find_layers
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
    """The backbone (`adapter` "") or one adapter of the student in a directory; the rest is frozen and outside `module`.

    `attention`: whether loss terms may look at it. `reserved`: a file of rows that the adapter's first channels read and keep.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        known = {"path", "adapter", "rank", "layers", "seed", "attention", "reserved"}
        _known("nexus-student", options, known)
        self.student = load_student(Path(str(options["path"])))
        self.student.requires_grad_(False)
        self.attention = bool(options.get("attention", False))
        if self.attention:
            self.student.backbone.set_attn_implementation("eager")
        name = str(options.get("adapter") or "")
        if name:
            layers = options.get("layers")
            if name in self.student.adapter_names:
                self.student.drop_adapter(name)
            rows = read_reserved(options.get("reserved"))
            adapter = self.student.add_adapter(
                name, int(options["rank"]), layers=layers, basis=rows, seed=int(options.get("seed", 42))
            )
            for layer, held in rows.items():
                hold(adapter.at[layer].down, len(held))
            self.module: nn.Module = adapter
            self.student.set_adapter(name)
        else:
            self.module = self.student.backbone
        self.architecture = {"kind": "app", "name": "nexus-student", "options": dict(options)}
        self.hidden_width = self.student.width
        self.num_layers = len(self.student.layers)

    @property
    def lacks(self) -> frozenset[str]:
        """Tokens are no numbers; attention only where it was asked for."""
        return frozenset({"numbers", "values"} if self.attention else {"numbers", "values", "attention"})

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Logits [B, T, V]; the rows that count are those whose next token is scored."""
        _refuse_values(need_values)
        mask = column(batch, "attention_mask")
        out = self.student(
            input_ids=column(batch, "input_ids"),
            attention_mask=mask,
            output_hidden_states=need_hidden,
            output_attentions=need_attention,
            use_cache=False,
        )
        hidden = tuple(out.hidden_states) if need_hidden else ()
        attention = tuple(out.attentions) if need_attention else ()
        return Output(out.logits, hidden, scored_next(batch), mask.bool(), attention)


class JointStudent(_NexusModel):
    """The backbone and the adapters of open capabilities, all of them trained; a sample's "owner" says whose adapter acts on it.

    `names`, `files`: capabilities in the order that "owner" counts them, and their adapters' files. No other adapter is part of it.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        _known("nexus-joint", options, {"path", "names", "files"})
        self.student = load_student(Path(str(options["path"])))
        self.names = [str(name) for name in options["names"]]
        for name in self.student.adapter_names:
            self.student.drop_adapter(name)
        for name, file in zip(self.names, options["files"], strict=True):
            attach_file(self.student, name, Path(str(file)))
        self.module = nn.ModuleDict({"backbone": self.student.backbone, "adapters": self.student.adapters})
        self.architecture = {"kind": "app", "name": "nexus-joint", "options": dict(options)}
        self.hidden_width = self.student.width
        self.num_layers = len(self.student.layers)

    @property
    def lacks(self) -> frozenset[str]:
        """Rows of several adapters have no common hidden states."""
        return frozenset({"numbers", "values", "attention"})

    def example(self, rows: int, tokens: int) -> Batch:
        """All of the first capability."""
        return {**super().example(rows, tokens), "owner": torch.zeros(rows, dtype=torch.int64)}

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Logits [B, T, V], each row by its owner's adapter."""
        _refuse_attention(need_attention)
        _refuse_values(need_values)
        ids, mask, owner = (column(batch, name) for name in ("input_ids", "attention_mask", "owner"))
        parts, places = [], []
        hidden: list[tuple[Tensor, ...]] = []
        for number in torch.unique(owner).tolist():
            self.student.set_adapter(self.names[number])
            where = (owner == number).nonzero()[:, 0]
            out = self.student(
                input_ids=ids[where], attention_mask=mask[where], output_hidden_states=need_hidden, use_cache=False
            )
            parts.append(out.logits)
            places.append(where)
            hidden.append(tuple(out.hidden_states) if need_hidden else ())
        order = torch.cat(places).argsort()
        states = tuple(torch.cat(layer)[order] for layer in zip(*hidden, strict=True))
        return Output(torch.cat(parts)[order], states, scored_next(batch), mask.bool())


class CachedTeacher(_NexusModel):
    """The teacher's likeliest next tokens, out of the batch."""

    def __init__(self, options: dict[str, Any]) -> None:
        if options:
            raise RecurosError("E2-MODEL", f"nexus-cache: unknown option {sorted(options)[0]!r}", hint="it has none")
        self.module = nn.Module()
        self.architecture = {"kind": "app", "name": "nexus-cache", "options": {}}
        self.hidden_width = self.num_layers = 1

    @property
    def lacks(self) -> frozenset[str]:
        """What was cached are outputs alone."""
        return frozenset({"numbers", "values", "attention"})

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Log probabilities [B, T, V]: the cached ones, and the rest of the mass spread evenly over the other tokens."""
        _refuse_attention(need_attention)
        _refuse_values(need_values)
        logp = spread(column(batch, "top_ids"), column(batch, "top_logp"), VOCABULARY)
        return Output(logp, (), scored_next(batch), column(batch, "attention_mask").bool())


class AnchoredTeacher(CachedTeacher):
    """Cached outputs, and a live teacher's layers in the coordinates of its profile, for the anchors.

    `hidden[l + 1]` is what layer l gives, minus its mean, along the rows of its basis, scaled to mean square one and then by the root of
    each coordinate's loss weight; layers without a basis are zero. The engine's hint term compares a linear map of the
    student's layer with it, which makes it the anchor, and a weight w its coordinate's factor in the loss. `attention[l]` is one map a
    layer, the mean over heads by their weights. The teacher lies outside `module`: no snapshot holds it. With `random` the
    directions are drawn instead: the control. `protected`: [layer, kind, index, loss weight] rows.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        import numpy as np

        from nexus.app import TeacherTable
        from nexus.data import teachers
        from nexus.profiler import causal
        from nexus.profiler import protected as subspaces

        _known("nexus-anchored", options, {"teacher", "path", "bases", "random", "seed", "protected"})
        super().__init__({})
        table = TeacherTable.model_validate(options["teacher"])
        loaded = teachers.load(table, Path(str(options["path"])))
        if not isinstance(loaded, teachers.ByteTeacher):
            raise RecurosError(
                "E2-MODEL", f"teacher {table.id!r} has other positions than the student", hint='anchor = "none"'
            )
        self._teacher = loaded.module
        layers, heads = find_layers(self._teacher), causal.heads_of(self._teacher)
        keys = ("layer", "kind", "index", "loss_weight")
        rows = [dict(zip(keys, row, strict=True)) for row in options.get("protected") or ()]
        draw = torch.Generator().manual_seed(int(options.get("seed", 42)))
        places: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, file in dict(options["bases"]).items():
            with np.load(file) as found:
                basis, mean = (torch.from_numpy(found[key].astype(np.float32)) for key in ("basis", "mean"))
            if options.get("random"):
                basis = torch.linalg.qr(torch.randn(basis.shape[1], basis.shape[0], generator=draw)).Q.T.contiguous()
            places[int(layer)] = (mean, basis)
        weights = subspaces.coordinate_weights(
            rows, {n: subspaces.direction_weights(rows, n, layers[n], heads, b) for n, (_, b) in places.items()}
        )
        self.parts = {n: (mean, basis, weights[n]) for n, (mean, basis) in places.items()}
        self._heads = [subspaces.head_weights(rows, n, max(1, heads)) for n in range(len(layers))]
        self._given: dict[int, Tensor] = {}
        for number in self.parts:
            layers[number].register_forward_hook(self._keep(number))
        self.hidden_width = max(basis.shape[0] for _, basis, _ in self.parts.values())
        self.num_layers = len(layers)
        self.architecture = {"kind": "app", "name": "nexus-anchored", "options": dict(options)}

    def _keep(self, number: int) -> Any:
        """What the layer itself gives; the last of a model's hidden states has gone through a norm that the profile has not seen."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._given[number] = output[0] if isinstance(output, tuple) else output

        return hook

    @property
    def lacks(self) -> frozenset[str]:
        """Attention is there."""
        return frozenset({"numbers", "values"})

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """As the cached teacher's, with hidden states and attention."""
        plain = super().forward(batch, need_values=need_values)
        if not need_hidden and not need_attention:
            return plain
        ids, mask = column(batch, "input_ids"), column(batch, "attention_mask")
        out = self._teacher(input_ids=ids, attention_mask=mask, output_attentions=need_attention, use_cache=False)
        hidden: list[Tensor] = []
        if need_hidden:
            hidden = [torch.zeros(*ids.shape, self.hidden_width) for _ in range(self.num_layers + 1)]
            for layer, (mean, basis, weight) in self.parts.items():
                at = (self._given[layer] - mean) @ basis.T
                scale = at[mask.bool()].square().mean().sqrt().clamp_min(1e-6)
                hidden[layer + 1][..., : basis.shape[0]] = at / scale * weight.sqrt()
        self._given = {}
        attention = []
        if need_attention:
            attention = [
                (a * w[: a.shape[1], None, None]).sum(1, keepdim=True) / w[: a.shape[1]].sum()
                for a, w in zip(out.attentions, self._heads, strict=True)
            ]
        return Output(plain.logits, tuple(hidden), plain.valid_mask, plain.hidden_mask, tuple(attention))


def _known(kind: str, options: dict[str, Any], known: set[str]) -> None:
    if strange := sorted(set(options) - known):
        raise RecurosError("E2-MODEL", f"{kind}: unknown option {strange[0]!r}", hint=", ".join(sorted(known)))


def _refuse_attention(asked: bool) -> None:
    if asked:
        raise RecurosError(
            "E2-MODEL",
            "cached targets hold no attention, so no loss can compare it",
            hint="leave kd's attention terms off",
        )


def _refuse_values(asked: bool) -> None:
    if asked:
        raise RecurosError(
            "E2-MODEL", "no value vectors of attention are kept", hint="minilm_vr = 0, or another policy pack"
        )


def read_reserved(path: object) -> dict[int, Tensor]:
    """Layer -> rows [k, width] of a file of reserved channels; {} without one."""
    if not path:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {int(layer): rows for layer, rows in load_file(str(path)).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise RecurosError(
            "E2-MODEL", f"reserved channels {path} cannot be read: {error}", hint="run stage 4 again"
        ) from error


def hold(parameter: nn.Parameter, rows: int) -> None:
    """Keep the first rows of a parameter from being trained; weight decay shortens them alike and turns none."""

    def without(gradient: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(gradient[:rows]), gradient[rows:]))

    parameter.register_hook(without)  # type: ignore[no-untyped-call]  # torch does not type it


def attach_file(student: NexusStudent, name: str, path: Path) -> None:
    """Add an adapter as stage 4 left it in a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata()
            adapter = student.add_adapter(name, int(about["rank"]), layers=json.loads(about["layers"]))
            adapter.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise RecurosError("E2-MODEL", f"adapter {path} cannot be read: {error}", hint="run stage 4 again") from error


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
    APP_MODELS["nexus-joint"] = JointStudent
    APP_MODELS["nexus-cache"] = CachedTeacher
    APP_MODELS["nexus-anchored"] = AnchoredTeacher
