"""The tables of a manifest as types: keys, kinds, bounds and defaults.

Responsible for: what one table may hold by itself. Refuses: unknown keys (with the nearest known one), values of another type
(no conversions: "5" is not 5), numbers outside their bounds. What tables must agree on is `servers.manifest`.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from syscalls import limits


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Table(BaseModel):
    """A TOML table: kebab-case keys, exact types, no key that is not declared."""

    model_config = ConfigDict(alias_generator=_kebab, validate_by_name=False, strict=True, allow_inf_nan=False)
    path_keys: ClassVar[tuple[str, ...]] = ()
    more_numbers: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data:
            number = isinstance(data[key], int | float) and not isinstance(data[key], bool)
            if key not in known and not (cls.more_numbers and number):
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]}? " if close else ""
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key",
                    {"key": str(key), "hint": f"{hint}known keys: {', '.join(sorted(known))}"},
                )
        return data


Count = Annotated[int, Field(ge=1, le=1 << 31)]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,47}$")]


class App(Table):
    """Who this is, and what every part of it shares. `eval_every`: windows between validation evaluations, 0 none."""

    name: Name
    title: str = ""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 42
    deterministic: bool = True
    eval_every: Annotated[int, Field(ge=0, le=1 << 31)] = 10


class Window(Table):
    """The learner's reservation: every `period_ms`, `steps` micro-steps within `budget_ms`, done by `deadline_ms`."""

    steps: Annotated[int, Field(ge=1, le=limits.STEPS_PER_WINDOW_MAX)] = 25
    budget_ms: Milliseconds
    period_ms: Milliseconds
    deadline_ms: Milliseconds


class Phase(Table):
    """A stretch of windows that trains one role. `steps` replaces the window's; `lr_floor` is the share of lr a cosine ends at."""

    name: Name
    train: Literal["teacher", "student"]
    windows: Annotated[int, Field(ge=1, le=1 << 31)]
    lr: Positive
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    lr_floor: Share = 0.02
    label_smoothing: Share = 0.0
    steps: Annotated[int, Field(ge=1, le=limits.STEPS_PER_WINDOW_MAX)] | None = None
    end: Literal["", "swap:ema", "swap:checkpoint"] = ""
    repeat: bool = False


class PatchSpec(Table):
    """A built-in transformer over 2 x 2 patches of 8 x 8 images."""

    kind: Literal["patch"]
    layers: Count = 4
    width: Count = 64
    heads: Count = 4
    mlp_ratio: Count = 2
    classes: Count = 10

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise PydanticCustomError(
                "heads",
                "width must be a multiple of heads",
                {"hint": f"width = {self.width} is not a multiple of heads = {self.heads}"},
            )
        return self


class HfSpec(Table):
    """A local Hugging Face model directory with its weights."""

    path_keys: ClassVar[tuple[str, ...]] = ("path",)
    kind: Literal["hf"]
    path: str
    task: Literal["classify", "causal-lm"] | None = None
    attention: Literal["eager", "sdpa"] | None = None


class HfConfigSpec(Table):
    """A Hugging Face architecture with fresh weights: the config in the manifest, or that of a directory."""

    path_keys: ClassVar[tuple[str, ...]] = ("path",)
    kind: Literal["hf-config"]
    path: str | None = None
    config: dict[str, Any] | None = None
    task: Literal["classify", "causal-lm"] | None = None
    attention: Literal["eager", "sdpa"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise PydanticCustomError(
                "one_source", "needs either path or a config table", {"hint": "give one of the two, not both"}
            )
        return self


ModelSpec = Annotated[PatchSpec | HfSpec | HfConfigSpec, Field(discriminator="kind")]


class Models(Table):
    """The pair."""

    teacher: ModelSpec
    student: ModelSpec


class Optimizer(Table):
    """One optimizer a role, with the phase's learning rate."""

    name: Literal["adamw"] = "adamw"
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    eps: Positive | None = None
    weight_decay: NotNegative | None = None
    clip: NotNegative = 1.0


class Ema(Table):
    """Moving average of the student, which `swap:ema` makes the teacher."""

    momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99


class Kd(Table):
    """Settings of the distillation loss until an operator or a policy changes them."""

    temperature: Annotated[float, Field(ge=limits.TEMPERATURE_MIN, le=limits.TEMPERATURE_MAX)] = 2.0
    alpha: Annotated[float, Field(ge=0.0, le=limits.ALPHA_MAX)] = 1.0
    mix: Share = 0.5
    proj: Literal["linear", "none"] = "linear"
    layer_map: (
        Annotated[list[Annotated[list[int], Field(min_length=2, max_length=2)]], Field(max_length=256)] | None
    ) = None


class DigitsData(Table):
    """scikit-learn's bundled handwritten digits."""

    kind: Literal["digits"]
    batch: Count = 32
    augment: Literal["none", "shift"] = "none"


Fractions = Annotated[list[Share], Field(min_length=3, max_length=3)]


class JsonlData(Table):
    """One JSON object a line. `tokenizer`: "teacher" (its directory's), "bytes", or a path."""

    path_keys: ClassVar[tuple[str, ...]] = ("path", "tokenizer")
    kind: Literal["jsonl"]
    path: str
    task: Literal["classify", "causal-lm"] | None = None
    text_column: str | None = None
    label_column: str | None = None
    bad_rows: Literal["refuse", "skip"] | None = None
    tokenizer: str | None = None
    fractions: Fractions | None = None
    batch: Count = 16
    seq_len: Count = 128


class TextData(Table):
    """A text file as one stream of tokens, cut into chunks of `seq_len`."""

    path_keys: ClassVar[tuple[str, ...]] = ("path", "tokenizer")
    kind: Literal["text"]
    path: str
    tokenizer: str | None = None
    fractions: Fractions | None = None
    batch: Count = 16
    seq_len: Count = 128


Data = Annotated[DigitsData | JsonlData | TextData, Field(discriminator="kind")]


class Policy(Table):
    """The pack that turns the Observer's evidence into settings, and its numbers, which the Observer checks against the pack."""

    model_config = ConfigDict(extra="allow")
    more_numbers: ClassVar[bool] = True
    pack: Literal["starter", "static"] = "starter"


class Probe(Table):
    """A probe that is attached before the first window. `every`: cadence in steps, 0 the program's own."""

    hook: str
    prog: str
    every: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class Operator(Table):
    """What whoever holds the operator's socket may do."""

    rights: list[str]


class Server(Table):
    """One server process."""

    entry: str
    cls: Annotated[Literal["edf", "fair"], Field(alias="class")]
    rank: Annotated[int, Field(ge=0, le=1_000)]
    rights: list[str] = []
    calls: list[str] = []
    restart: Literal["never", "always", "snapshot"] = "always"
    weight: Annotated[int, Field(ge=1, le=10_000)] = 100
    mailbox_messages: Annotated[int, Field(ge=1, le=65_536)] = limits.MAILBOX_MESSAGES_DEFAULT
    mailbox_bytes: Annotated[int, Field(ge=4_096, le=1 << 30)] = limits.MAILBOX_BYTES_DEFAULT
    config: dict[str, Any] = {}


class Manifest(Table):
    """A whole app."""

    app: App
    window: Window
    phase: Annotated[list[Phase], Field(min_length=1, max_length=limits.PHASES_MAX)]
    model: Models
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    kd: Kd = Kd()
    data: Data
    policy: Policy = Policy()
    probe: Annotated[list[Probe], Field(max_length=limits.PROBES_MAX)] = []
    operator: Operator
    server: Annotated[dict[Name, Server], Field(min_length=1, max_length=limits.SERVERS_MAX)]
