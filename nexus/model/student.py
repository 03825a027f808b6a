"""The student: a causal language model as backbone, and adapters that act one at a time behind its layers.

Responsible for: `NexusConfig` and `NexusStudent`, a real `PreTrainedModel` (save_pretrained, from_pretrained, generate). Refuses: two
adapters at once; models without layers that can be found; code that comes with a model directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.generation.utils import GenerationMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nexus.model.adapter import Adapter, checked_shape
from nexus.model.names import checked
from nexus.model.tokenizer import BOS, EOS, PAD, VOCABULARY
from syscalls.errors import RecurosError

# transformers types these partly, and wrongly for a model that wraps another one; for the checker they are Any.
_Model: Any = PreTrainedModel
_Generation: Any = GenerationMixin
_Config: Any = PreTrainedConfig
_Auto: Any = AutoModelForCausalLM
SEED: Final = 42
BYTE_LEVEL: Final[dict[str, Any]] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
CONTEXT_KEYS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


class NexusConfig(_Config):  # type: ignore[misc]  # its base is Any, see above
    """`text_config`: the backbone's (a map, a config, or keys that differ from BYTE_LEVEL); `adapters`: name -> rank, layers."""

    model_type = "nexus"

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    adapters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        given = self.text_config
        if not isinstance(given, PreTrainedConfig):
            values = {} if given is None else dict(given)
            if "model_type" not in values:
                values = {**BYTE_LEVEL, **values}
            kind = values.pop("model_type")
            if kind not in CONFIG_MAPPING:
                raise RecurosError(
                    "E2-MODEL",
                    f"text_config.model_type is {kind!r}, which transformers does not know",
                    hint="e.g. llama",
                )
            self.text_config = CONFIG_MAPPING[kind](**values)
        self.adapters = dict(self.adapters or {})
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            kwargs.setdefault(name, getattr(self.text_config, name, None))
        super().__post_init__(**kwargs)

    @property
    def context(self) -> int | None:
        """How many tokens the backbone takes at once; None where its family has no limit."""
        for key in CONTEXT_KEYS:
            if isinstance(found := getattr(self.text_config, key, None), int):
                return found
        return None


class _Switch:
    """Which adapter acts. Shared by the hooks of all layers; not a module, so that it holds no parameters."""

    active: Adapter | None = None


class _Site:
    """The hook behind one layer."""

    def __init__(self, switch: _Switch, layer: int) -> None:
        self.switch, self.layer = switch, layer

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        adapter = self.switch.active
        part = None if adapter is None else adapter.at.get(self.layer)
        if part is None:
            return None
        if isinstance(output, tuple):
            return (part(output[0]), *output[1:])
        return part(output)


class NexusStudent(_Model, _Generation):  # type: ignore[misc]  # bases are Any, see above
    """A backbone with adapters. Without an active adapter it computes what the backbone computes."""

    config_class = NexusConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {}

    def __init__(self, config: NexusConfig) -> None:
        super().__init__(config)
        self.backbone = _Auto.from_config(config.text_config)
        self.adapters = nn.ModuleDict()
        self._switch = _Switch()
        self._active: str | None = None
        self._layers = find_layers(self.backbone)
        for number, layer in enumerate(self._layers):
            layer.register_forward_hook(_Site(self._switch, number), prepend=True)
        for name, shape in dict(config.adapters or {}).items():
            self.add_adapter(name, shape["rank"], layers=shape.get("layers"))
        self.post_init()

    @classmethod
    def create(cls, config: NexusConfig | None = None, seed: int = SEED) -> NexusStudent:
        """A student with weights drawn from `seed`, without touching the caller's generators."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = cls(config or NexusConfig())
        student.eval()
        return student

    @classmethod
    def around(cls, backbone: Any) -> NexusStudent:
        """A student whose backbone has the weights (copied) of a causal model that is there already."""
        from transformers.initialization import no_init_weights

        with no_init_weights():
            student = cls(NexusConfig(text_config=backbone.config.to_dict()))
        student.to(next(backbone.parameters()).dtype)
        with torch.no_grad():
            student.backbone.load_state_dict(backbone.state_dict())
        student.eval()
        return student

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the backbone has initialised itself, and adapters start as made."""

    # Adapters

    def add_adapter(
        self,
        name: str,
        rank: int,
        *,
        layers: Sequence[int] | None = None,
        basis: Mapping[int, Tensor] | None = None,
        seed: int = SEED,
    ) -> Adapter:
        """A new adapter, not active. `layers`: where (default everywhere); `basis`: layer -> rows [k, width] for its first channels."""
        if checked(name) in self.adapter_names:
            raise RecurosError("E2-USAGE", f"adapter {name!r} is there already", hint="drop_adapter it first")
        adapter = self.blank_adapter(rank, layers)
        if self.device.type != "meta":
            adapter.fill(name, seed, basis or {})
        self.attach(name, adapter)
        return adapter

    def blank_adapter(self, rank: int, layers: Sequence[int] | None = None) -> Adapter:
        """An adapter that fits and is no part of the student; its `down` is what memory held."""
        rank, chosen = checked_shape(rank, layers, len(self._layers))
        weight = self.backbone.get_input_embeddings().weight
        return Adapter(self.width, rank, chosen, dtype=weight.dtype, device=weight.device)

    def attach(self, name: str, adapter: Adapter) -> None:
        """Make an adapter part of the student, not active."""
        self.adapters[_key(name)] = adapter
        self.config.adapters = {**self.config.adapters, name: {"rank": adapter.rank, "layers": sorted(adapter.at)}}

    @contextlib.contextmanager
    def acting(self, adapter: Adapter | None) -> Iterator[None]:
        """Let an adapter act, part of the student or not, until the block ends."""
        before, self._switch.active = self._switch.active, adapter
        try:
            yield
        finally:
            self._switch.active = before

    def drop_adapter(self, name: str) -> None:
        """Take an adapter out."""
        self.adapter(name)
        if self._active == name:
            self.set_adapter(None)
        del self.adapters[_key(name)]
        self.config.adapters = {k: v for k, v in self.config.adapters.items() if k != name}

    def set_adapter(self, name: str | None) -> None:
        """Let one adapter act, or none."""
        self._switch.active = None if name is None else self.adapter(name)
        self._active = name

    def adapter(self, name: str) -> Adapter:
        """An adapter by name (E4-NOENT)."""
        if _key(name) not in self.adapters:
            there = ", ".join(self.adapter_names) or "none"
            raise RecurosError("E4-NOENT", f"no adapter is called {name!r}", hint=f"there are: {there}")
        found: Any = self.adapters[_key(name)]
        return cast(Adapter, found)

    @property
    def adapter_names(self) -> list[str]:
        """In the order they were added."""
        return [key.removesuffix("_adapter") for key in self.adapters]

    @property
    def active_adapter(self) -> str | None:
        """The adapter that acts."""
        return self._active

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """What training this adapter changes, and nothing else."""
        return list(self.adapter(name).parameters())

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Everything that no adapter holds."""
        return list(self.backbone.parameters())

    @property
    def layers(self) -> list[nn.Module]:
        """The backbone's layers; adapter `layers` count in this list."""
        return self._layers

    @property
    def width(self) -> int:
        """The backbone's hidden size."""
        return int(self.config.text_config.hidden_size)

    # As a model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the backbone's forward: a CausalLMOutput with `logits` [B, T, V] and, if asked for, hidden states behind adapters."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            "use_cache": use_cache,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        return self.backbone(**{name: value for name, value in given.items() if value is not None}, **kwargs)

    def get_input_embeddings(self) -> Any:
        """The backbone's."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The backbone's."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The backbone's."""
        return self.backbone.get_output_embeddings()


def _key(name: str) -> str:
    return f"{name}_adapter"


def find_layers(backbone: Any) -> list[nn.Module]:
    """The list of a causal model's layers, in order (E2-MODEL where there is none of the configured length)."""
    config = backbone.config
    count = getattr(config, "num_hidden_layers", None)
    lists: Iterable[nn.ModuleList] = (m for m in backbone.modules() if isinstance(m, nn.ModuleList))
    found = next((list(m) for m in lists if len(m) == count), None)
    if found is None:
        raise RecurosError(
            "E2-MODEL",
            f"{type(backbone).__name__} has no list of {count} layers, so that adapters have no place",
            hint="use a causal model of transformers whose layers are a ModuleList",
        )
    return found
