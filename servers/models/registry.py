"""The explicit list of model kinds, and what makes two models a pair.

Responsible for: `build(spec, seed)`, `from_checkout` and `check_pair`. Refuses: unknown kinds and keys, pairs whose logits do not mean the
same thing (E2-MODEL with the reason).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from servers.models import hf
from servers.models.mlp import MlpConfig, MlpModel
from servers.models.model import Model
from servers.models.patch import PatchConfig, PatchModel
from syscalls.errors import RecurosError


def _build_patch(spec: dict[str, Any]) -> Model:
    return PatchModel(PatchConfig(**_sizes("patch", PatchConfig, spec)))


def _build_mlp(spec: dict[str, Any]) -> Model:
    return MlpModel(MlpConfig(**_sizes("mlp", MlpConfig, spec)))


def _sizes(kind: str, config: type[PatchConfig | MlpConfig], spec: dict[str, Any]) -> dict[str, Any]:
    """The sizes in the spec of a built-in model; E2-MODEL for a key that its config does not have."""
    known = {f.name for f in fields(config)}
    unknown = sorted(set(spec) - known - {"kind"})
    if unknown:
        raise RecurosError(
            "E2-MODEL", f"{kind} model: unknown key {unknown[0]!r}", hint=f"known keys: {', '.join(sorted(known))}"
        )
    return {k: tuple(map(int, v)) if isinstance(v, list) else int(v) for k, v in spec.items() if k != "kind"}


APP_MODELS: dict[str, Callable[[dict[str, Any]], Model]] = {}
"""Models of kind "app" by name: options -> model. An application's own server packages fill it before they serve."""


def _build_app(spec: dict[str, Any]) -> Model:
    name = str(spec.get("name", ""))
    if name not in APP_MODELS:
        raise RecurosError(
            "E2-MODEL",
            f"no application in this process knows a model {name!r}",
            hint="let server.learner.entry and server.observer.entry name the application's own packages",
        )
    return APP_MODELS[name](dict(spec.get("options") or {}))


BUILT_IN = ("patch", "mlp")
"""Kinds that come with no directory."""
KINDS: dict[str, Callable[[dict[str, Any]], Model]] = {
    "patch": _build_patch,
    "mlp": _build_mlp,
    "hf": hf.from_directory,
    "hf-config": hf.from_config,
    "app": _build_app,
}


def build(spec: dict[str, Any], seed: int) -> Model:
    """Build the model a spec names; fresh weights depend on `seed` alone and the process's generator is left as it was."""
    kind = str(spec.get("kind", ""))
    if kind not in KINDS:
        raise RecurosError("E2-MODEL", f"model kind {kind!r} is unknown", hint=f"known kinds: {', '.join(KINDS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind](spec)
    if not model.frozen and any(p.dtype != torch.float32 for p in model.module.parameters()):
        raise RecurosError(
            "E2-MODEL", f"model of kind {kind!r} has parameters that are not float32", hint="use float32"
        )
    return model


def check_pair(teacher: Model, student: Model, teacher_spec: dict[str, Any], student_spec: dict[str, Any]) -> None:
    """Refuse a teacher and a student whose outputs cannot be compared class by class."""
    if teacher.task != student.task:
        raise RecurosError(
            "E2-MODEL",
            f"the teacher's task is {teacher.task}, the student's {student.task}",
            hint="choose two models of one task",
        )
    if teacher.num_classes != student.num_classes:
        tokens = teacher.task == "causal-lm"
        raise RecurosError(
            "E2-MODEL",
            f"the teacher has {teacher.num_classes} {'tokens' if tokens else 'classes'}, the student {student.num_classes}",
            hint="choose models that share a vocabulary, or give the student's config the teacher's vocab_size"
            if tokens
            else f"give the student {teacher.num_classes} classes (num_labels in its config); classes are compared one by one",
        )
    names = [_label_ids(spec) for spec in (teacher_spec, student_spec)]
    if names[0] and names[1] and names[0] != names[1]:
        label = sorted(set(names[0].items()) ^ set(names[1].items()))[0][0]
        raise RecurosError(
            "E2-MODEL",
            f"the label sets of teacher and student differ, first at {label!r:.60}",
            hint="use models that were saved with the same label2id; classes are compared one by one",
        )
    first, second = _vocabulary(teacher_spec), _vocabulary(student_spec)
    if first is not None and second is not None and first != second:
        differing = sorted(set(first.items()) ^ set(second.items()))[0][0]
        raise RecurosError(
            "E2-MODEL",
            f"the tokenizers of teacher and student differ, first at token {differing!r:.60}",
            hint="distil between models that share a tokenizer",
        )


def _label_ids(spec: dict[str, Any]) -> dict[str, int]:
    """Label -> class of a model directory that was saved with names of its own; {} where there are none."""
    config = Path(str(spec.get("path", ""))).expanduser() / "config.json"
    if spec.get("kind") != "hf" or not config.is_file():
        return {}
    labels = json.loads(config.read_text(encoding="utf-8")).get("label2id") or {}
    found = {str(name): int(i) for name, i in labels.items()}
    return {} if all(name == f"LABEL_{i}" for name, i in found.items()) else found


def _vocabulary(spec: dict[str, Any]) -> dict[str, int] | None:
    """Token -> id of the tokenizer beside a model directory; None where there is none."""
    path = Path(str(spec.get("path", ""))).expanduser()
    if spec.get("kind") in BUILT_IN or "path" not in spec or not (path / "tokenizer.json").is_file():
        return None
    model = json.loads((path / "tokenizer.json").read_text(encoding="utf-8")).get("model", {})
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, list):  # unigram: [[token, score], ...]
        return {str(entry[0]): i for i, entry in enumerate(vocabulary)}
    return {str(token): int(i) for token, i in vocabulary.items()}


def from_checkout(path: Path | str) -> Model:
    """The built-in model that `recuros kfs checkout` wrote to a directory, in evaluation mode; E2-MODEL when it is none."""
    from safetensors.torch import load_file

    folder = Path(path)
    try:
        architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"]
        if architecture["kind"] not in BUILT_IN:
            raise KeyError("kind")
        model = build(architecture, 0)
        model.module.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise RecurosError(
            "E2-MODEL", f"{folder} holds no built-in model: {e}", hint="recuros kfs checkout SNAP DIR writes one"
        ) from e
    model.module.eval()
    return model
