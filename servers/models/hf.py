"""Hugging Face models from local directories, or from a config alone.

Responsible for: causal language models and sequence classifiers with safetensors weights, in float32, offline; and frozen ones in 8 or 4
bits (`quantized`).
Refuses: a directory that is not a model, weights in pickle formats, code that comes with a model, architectures of other
kinds; each is E2-MODEL with the path and what is missing.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from servers.models import quantized
from servers.models.directory import check_weights, read_config
from servers.models.model import Batch, Model, Output, Task, column
from servers.models.values import last_values
from syscalls.errors import RecurosError

HEADS: dict[str, Task] = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForSequenceClassification": "classify",
}
ATTENTIONS = ("eager", "sdpa")


class HfModel(Model):
    """A transformers model behind the common face; reads "input_ids" and, where present, "attention_mask".

    With `attention` "eager" (the default) each attention module returns its probabilities, so attention hooks read the
    ones that were used; "sdpa" is faster on long sequences and returns none.
    """

    def __init__(self, module: torch.nn.Module, task: Task, attention: str) -> None:
        config: Any = module.config
        self._type = str(config.model_type)
        self.module = module
        self.task = task
        self.hidden_width = int(config.hidden_size)
        self.num_layers = int(config.num_hidden_layers)
        self.num_classes = int(config.vocab_size if task == "causal-lm" else config.num_labels)
        self._pad_id: int | None = config.pad_token_id if isinstance(config.pad_token_id, int) else None
        plain = json.loads(config.to_json_string(use_diff=False))
        self.architecture = {"kind": "hf-config", "task": task, "attention": attention, "config": plain}

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Logits [B, C] or [B, T, V]; the targets that count are next tokens that are not padding."""
        tokens = column(batch, "input_ids")
        mask = batch.get("attention_mask")
        if mask is None and self._pad_id is not None:
            mask = (tokens != self._pad_id).to(torch.int64)
        if need_attention and self.architecture["attention"] != "eager":
            raise RecurosError(
                "E2-MODEL",
                f'attention = "{self.architecture["attention"]}" returns no probabilities, and a term needs them',
                hint='attention = "eager" in the manifest\'s model, or weight 0 for the attention terms',
            )
        more = {"output_attentions": True} if need_attention else {}
        with last_values(self.module, need_values) as values:
            out = self.module(
                input_ids=tokens,
                attention_mask=mask,
                output_hidden_states=need_hidden,
                use_cache=False,
                return_dict=True,
                **more,
            )
        hidden = tuple(out.hidden_states) if need_hidden else ()
        attention = tuple(out.attentions) if need_attention else ()
        content = None if mask is None else mask.bool()
        valid = None if self.task == "classify" else _next_token_mask(tokens, content)
        return Output(out.logits, hidden, valid, content, attention, values[0] if values else None)

    @property
    def lacks(self) -> frozenset[str]:
        """Tokens are no numbers; only eager attention returns its probabilities."""
        return frozenset({"numbers"} if self.architecture["attention"] == "eager" else {"numbers", "attention"})

    @torch.no_grad()
    def example(self, rows: int, tokens: int) -> Batch:
        """One token that is not padding, again and again."""
        ids = torch.full((rows, tokens), 1 if self._pad_id == 0 else 0)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def check_takes(self, length: int) -> None:
        """Run two rows of `length` tokens, so that what this architecture cannot take is E2-MODEL before any window.

        Too few positions, or no padding token where a classifier over a decoder needs one.
        """
        was_training = self.module.training
        self.module.eval()
        try:
            self.forward(self.example(2, length))
        except (ValueError, IndexError, RuntimeError) as error:
            raise RecurosError(
                "E2-MODEL",
                f"the {self._type} model does not take 2 x {length} tokens: {_first_line(error)}",
                hint="lower data.seq-len to the model's context; a decoder that classifies needs pad_token_id in its config",
            ) from error
        finally:
            self.module.train(was_training)


class FrozenHf(HfModel):
    """A transformers model in 8 or 4 bits; `architecture` names its directory."""

    frozen = True

    def __init__(self, module: torch.nn.Module, architecture: dict[str, Any]) -> None:
        super().__init__(module, architecture["task"], architecture["attention"])
        self.architecture = architecture
        module.requires_grad_(False)
        module.eval()

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """As of any other; what 16-bit kernels gave comes out in single precision."""
        with quantized.as_it_is():
            out = super().forward(batch, need_hidden, need_attention, need_values)
        return replace(
            out,
            logits=out.logits.float(),
            hidden=tuple(h.float() for h in out.hidden),
            attention=tuple(a.float() for a in out.attention),
            values=None if out.values is None else out.values.float(),
        )

    def place(self, device: torch.device) -> None:
        """bitsandbytes lays weights out for the device they are on; E2-MODEL where it does not move them."""
        if next(self.module.parameters()).device.type == device.type:
            return
        try:
            self.module.to(device)
        except (ValueError, RuntimeError) as error:
            raise RecurosError(
                "E2-MODEL",
                f"a teacher in {self.architecture['load']} does not move to {device}: {_first_line(error)}",
                hint='load = "float32", or [device] kind = "cpu"',
            ) from error

    @property
    def param_count(self) -> int:
        """Of the model as it was before it was packed."""
        return int(self.module.num_parameters())  # type: ignore[operator]


def _next_token_mask(tokens: torch.Tensor, content: torch.Tensor | None) -> torch.Tensor:
    """True at t when both token t and its target t + 1 are content."""
    valid = torch.ones_like(tokens, dtype=torch.bool) if content is None else content.clone()
    valid[:, :-1] &= valid[:, 1:].clone()
    valid[:, -1] = False
    return valid


def from_directory(spec: dict[str, Any]) -> HfModel:
    """Load {"path", "task"?, "attention"?, "load"?} with its weights; in 8 or 4 bits a frozen one."""
    path = Path(str(spec.get("path", ""))).expanduser()
    config = read_config(path)
    check_weights(path)
    task = _task_of(spec, config, str(path))
    attention = _attention_of(spec)
    load = str(spec.get("load") or "float32")
    more = quantized.options(load)
    named = quantized.architecture(path, task, attention, load, str(spec.get("weights", ""))) if more else {}
    module, missing = _load(path, task, attention, more)
    if missing:
        raise RecurosError(
            "E2-MODEL",
            f"model directory {path} lacks {len(missing)} tensors of a {task} model, the first is {missing[0]}",
            hint='save the model with its head, or build a fresh student from the config with kind = "hf-config"',
        )
    if not more:
        return HfModel(module, task, attention)
    if reason := quantized.why_not(module):
        raise RecurosError(
            "E2-MODEL",
            f"model directory {path} does not run in {load} here: {reason}",
            hint='load = "int8" or "float32"' if load == "nf4" else 'load = "float32"',
        )
    return FrozenHf(module, named)


def _load(path: Path, task: Task, attention: str, more: dict[str, Any]) -> tuple[torch.nn.Module, list[str]]:
    """The module, and the names of parameters that the directory has no weights for."""
    from safetensors import SafetensorError
    from transformers import utils

    logging: Any = utils.logging
    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        module, report = _auto_class(task).from_pretrained(
            str(path),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            **more,
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise RecurosError(
            "E2-MODEL",
            f"model directory {path} cannot be loaded: {_first_line(error)}",
            hint="check that it loads with transformers' AutoModel and local_files_only=True",
        ) from error
    finally:
        logging.set_verbosity(level)
    return module, sorted(report["missing_keys"])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def from_config(spec: dict[str, Any]) -> HfModel:
    """Build {"config": {...} or "path": directory or config.json, "task"?, "attention"?} with fresh weights."""
    from transformers import AutoConfig

    values = spec.get("config")
    where = "the config in the manifest"
    if not isinstance(values, dict):
        path = Path(str(spec.get("path", ""))).expanduser()
        values, where = read_config(path), str(path)
    _check_type(values.get("model_type"), where)
    task = _task_of(spec, values, where)
    attention = _attention_of(spec)
    rest = {k: v for k, v in values.items() if k not in ("model_type", "transformers_version")}
    try:
        config = AutoConfig.for_model(values.get("model_type", ""), **rest)
        module = _auto_class(task).from_config(
            config, trust_remote_code=False, attn_implementation=attention, dtype=torch.float32
        )
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise RecurosError(
            "E2-MODEL",
            f"no model can be built from {where}: {_first_line(error)}",
            hint="give model_type and the sizes that this architecture's transformers config takes",
        ) from error
    return HfModel(module, task, attention)


def _check_type(given: Any, where: str) -> None:
    from transformers import CONFIG_MAPPING

    if given not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(given or ""), list(CONFIG_MAPPING), n=3)
        raise RecurosError(
            "E2-MODEL",
            f"{where}: model_type = {given!r} is no architecture that transformers knows",
            hint=f"did you mean {' or '.join(close)}?" if close else 'for example model_type = "bert" or "llama"',
        )


def _task_of(spec: dict[str, Any], config: dict[str, Any], where: str) -> Task:
    """The task the spec asks for, else the one the config's architecture was saved with."""
    asked = spec.get("task")
    if asked is not None:
        if asked not in ("classify", "causal-lm"):
            raise RecurosError("E2-MODEL", f"task {asked!r} is unknown", hint='"classify" or "causal-lm"')
        task: Task = asked
        return task
    names = config.get("architectures") or []
    for name in names:
        for ending, task in HEADS.items():
            if str(name).endswith(ending):
                return task
    raise RecurosError(
        "E2-MODEL",
        f"{where} {f'is for {names}, ' if names else 'names no architecture: '}neither a causal LM nor a sequence classifier",
        hint='set task = "causal-lm" or task = "classify" in the manifest',
    )


def _attention_of(spec: dict[str, Any]) -> str:
    attention = str(spec.get("attention", "eager"))
    if attention not in ATTENTIONS:
        raise RecurosError("E2-MODEL", f"attention {attention!r} is unknown", hint=f"one of {', '.join(ATTENTIONS)}")
    return attention


def _auto_class(task: Task) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
