"""Held-out evaluation and calibration of a snapshot.

Responsible for: throwaway models from a snapshot's own architectures and tensors, scored on validation or test data, and the
scaling temperature of the student. Refuses: snapshots that lack a tensor or hold another form of it (E9-INTEGRITY). Holds
no parameter of the learner: what it builds are copies from the store, dropped afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kfs.store import Store
from servers.models.evaluate import BATCH_DEFAULT, binned, ece_of, evaluate
from servers.models.model import Batch, Model, valid_rows
from servers.models.registry import build
from syscalls.errors import RecurosError
from syscalls.pages import Array

ROLES: Final = ("student", "teacher")
ARCHITECTURES: Final = "policy/roles/state"
TORCH_DTYPES: Final = {
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NUMPY_DTYPES: Final = {"F32": "<f4", "I64": "<i8"}
FIT_ROWS: Final = 8192
"""Rows that a calibration looks at, evenly chosen; a language model's split has many more."""

Scores = dict[str, float]


def tensors(arrays: Mapping[str, Array]) -> Batch:
    """The columns of a split's page, copied out of it."""
    return {
        name: torch.from_numpy(np.frombuffer(bytes(a.data), NUMPY_DTYPES[a.dtype]).reshape(a.shape).copy())
        for name, a in arrays.items()
    }


def load_role(store: Store, leaves: Mapping[str, str], role: str) -> Model:
    """A role's model as the snapshot holds it, in evaluation mode and without gradients."""
    architectures = json.loads(bytes(_object(store, leaves, ARCHITECTURES).data))
    model = build(dict(architectures[role]), seed=0)
    if model.frozen:
        return model  # its weights are its directory's
    state = model.module.state_dict(keep_vars=True)
    shared = {
        id(p): name for name, p in model.module.named_parameters()
    }  # tied tensors are stored once, under one name
    buffers = dict(model.module.named_buffers())
    with torch.no_grad():
        for name, tensor in state.items():
            if shared.get(id(tensor), name) == name or name in buffers:
                _fill(store, leaves, f"{role}/{_path(name)}", tensor)
    model.module.requires_grad_(False)
    model.module.eval()
    return model


def _path(name: str) -> str:
    """`blocks.0.attn.qkv.weight` -> `blocks.0.attn.qkv/weight`; a tensor of the root module gets the module name "."."""
    module, dot, tensor = name.rpartition(".")
    return f"{module if dot else '.'}/{tensor}"


def _object(store: Store, leaves: Mapping[str, str], path: str) -> Any:
    if path not in leaves:
        raise RecurosError("E9-INTEGRITY", f"the snapshot has no {path}", hint="recuros kfs verify")
    return store.get(leaves[path])


def _fill(store: Store, leaves: Mapping[str, str], path: str, target: Tensor) -> None:
    found = _object(store, leaves, path)
    if TORCH_DTYPES.get(found.dtype) != target.dtype or tuple(found.shape) != tuple(target.shape):
        raise RecurosError(
            "E9-INTEGRITY",
            f"{path} is {found.dtype} {list(found.shape)}; the model needs {target.dtype} {list(target.shape)}",
            hint="recuros kfs verify",
        )
    if target.numel():
        target.copy_(torch.frombuffer(bytearray(found.data), dtype=target.dtype).reshape(target.shape))


class Evaluator:
    """Scores snapshots. A role whose tensors did not change since it was last scored on a split is not run again."""

    def __init__(self, store: Store, split: Callable[[str], Batch], checkpoint: Callable[[], None], batch: int) -> None:
        self._store = store
        self._split = split
        self._checkpoint = checkpoint
        self._batch = min(batch, BATCH_DEFAULT)
        self._known: dict[tuple[str, str], tuple[dict[str, str], Scores]] = {}

    def scores(self, snapshot: str, split: str) -> dict[str, Scores]:
        """{"student": scores, "teacher": scores}; see `servers.models.evaluate` for the keys."""
        leaves = self._leaves(snapshot)
        data = self._split(split)
        found = {}
        for role in ROLES:
            mine = {p: ref for p, ref in leaves.items() if p.startswith(f"{role}/") or p == ARCHITECTURES}
            known = self._known.get((role, split))
            if known is None or known[0] != mine:
                model = load_role(self._store, leaves, role)
                self._checkpoint()
                known = (mine, evaluate(model, data, batch=self._batch, checkpoint=self._checkpoint))
                self._known[role, split] = known
            found[role] = dict(known[1])
        return found

    @torch.no_grad()
    def features(self, snapshot: str, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The teacher's last hidden state of each sample, mean over its content [n, width], and the labels [n]."""
        model = load_role(self._store, self._leaves(snapshot), "teacher")
        data = self._split(split)
        found = []
        for start in range(0, len(data["labels"]), self._batch):
            part = {name: values[start : start + self._batch] for name, values in data.items()}
            out = model.forward(part, need_hidden=True)
            last = out.hidden[-1]
            content = torch.ones(last.shape[:2]) if out.hidden_mask is None else out.hidden_mask.to(last.dtype)
            found.append((last * content[..., None]).sum(1) / content.sum(1, keepdim=True))
            self._checkpoint()
        features: NDArray[np.float64] = torch.cat(found).double().numpy()
        labels: NDArray[np.int64] = data["labels"].numpy()
        return features, labels

    def calibrate(self, snapshot: str, mode: str) -> dict[str, float]:
        """Temperature scaling (Guo et al. 2017, section 4.2) of the student's logits.

        Fitted on every other row of the validation split and judged on the rows between, never on its own.
        """
        if mode != "temperature":
            raise RecurosError("E2-USAGE", f"calibration mode {mode!r} is unknown", hint="mode=temperature")
        model = load_role(self._store, self._leaves(snapshot), "student")
        logits, targets = self._rows(model, self._split("validation"))
        if len(targets) < 4:
            raise RecurosError("E2-DATA", f"validation has {len(targets)} rows; calibration needs at least 4")
        fit, judge = slice(0, None, 2), slice(1, None, 2)
        temperature = fit_temperature(logits[fit], targets[fit])
        before, after = (judged(logits[judge], targets[judge], t) for t in (1.0, temperature))
        return {
            "temperature": temperature,
            **{f"{name}_before": value for name, value in before.items()},
            **{f"{name}_after": value for name, value in after.items()},
            "fitted_on": float(len(targets[fit])),
            "judged_on": float(len(targets[judge])),
        }

    def _leaves(self, snapshot: str) -> dict[str, str]:
        if not snapshot:
            raise RecurosError(
                "E4-NOENT", "there is no snapshot to score yet", hint="wait for the first committed window"
            )
        return self._store.snapshot(snapshot)

    @torch.no_grad()
    def _rows(self, model: Model, data: Batch) -> tuple[Tensor, Tensor]:
        """Valid logits [N, C] (float64) and targets [N] of a split, at most FIT_ROWS, evenly chosen."""
        count = len(next(iter(data.values())))
        logits, targets = [], []
        batches = -(-count // self._batch)
        most = -(-FIT_ROWS // batches)
        for start in range(0, count, self._batch):
            part = {name: values[start : start + self._batch] for name, values in data.items()}
            out = model.forward(part)
            rows = valid_rows(out.logits, out.valid_mask)
            every = max(1, -(-len(rows) // most))
            logits.append(rows[::every].double())
            targets.append(valid_rows(model.targets(part)[..., None], out.valid_mask)[::every, 0])
            self._checkpoint()
        return torch.cat(logits), torch.cat(targets)


def judged(logits: Tensor, targets: Tensor, temperature: float) -> dict[str, float]:
    """NLL (nats) and ECE of softmax(logits / temperature)."""
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    confidence, guess = log_p.max(dim=-1)
    bins = binned(confidence.exp(), (guess == targets).to(confidence.dtype))
    return {"nll": float(-log_p.gather(1, targets[:, None]).mean()), "ece": ece_of(bins)}


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature in [1/20, 20] with the least NLL: golden-section search, since NLL is convex in 1 / temperature."""
    ratio = (math.sqrt(5) - 1) / 2
    low, high = 1 / 20, 20.0  # of the inverse temperature
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [judged(logits, targets, 1 / b)["nll"] for b in inner]
    while high - low > 1e-5:
        if values[0] <= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - ratio * (high - low)
            values[0] = judged(logits, targets, 1 / inner[0])["nll"]
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + ratio * (high - low)
            values[1] = judged(logits, targets, 1 / inner[1])["nll"]
    return 2 / (low + high)
