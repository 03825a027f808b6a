"""The tables of a manifest as types: keys, kinds, bounds and defaults.

Responsible for: what one table may hold by itself. Refuses: unknown keys (with the nearest known one), values of another type
(no conversions: "5" is not 5), numbers outside their bounds. What tables must agree on is `servers.manifest`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from servers.manifest_servers import Operator, Remote, Server
from servers.manifest_table import Count, Milliseconds, Name, NotNegative, Positive, Share, Table
from syscalls import limits

TermName = Literal[
    "task",
    "cka",
    "at",
    "rkd",
    "rkd_angle",
    "ewc",
    "jacobian",
    "calibration",
    "cosine",
    "embedding",
    "attention_mse",
    "minilm_at",
    "minilm_vr",
    "semantic",
]
"""`limits.TERMS` for the type checker."""
Weight = Annotated[float, Field(ge=0.0, le=limits.TERM_WEIGHT_MAX)]


class App(Table):
    """Who this is, and what every part of it shares."""

    name: Name
    """Lower case, digits and hyphens; the ledger's boot records carry it."""
    title: str = ""
    """A line for people."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 42
    """Everything random follows from it: fresh weights, the order of batches, dropout."""
    deterministic: bool = True
    """Policies wait for their evidence, so that a second run decides alike."""
    eval_every: Annotated[int, Field(ge=0, le=1 << 31)] = 10
    """Windows between evaluations on the validation split; 0 is none. The test split is scored once, when the plan is done."""
    kernel_scheduler: Literal["deadline", "other"] = "deadline"
    """`deadline`: the kernel process asks the host for SCHED_DEADLINE; the status says what is in force. `other`: it does not."""


class Window(Table):
    """The learner's reservation: every `period_ms`, `steps` micro-steps within `budget_ms`, done by `deadline_ms`."""

    steps: Annotated[int, Field(ge=1, le=limits.STEPS_PER_WINDOW_MAX)] = 25
    """Micro-steps of a window, the unit that commits or rolls back."""
    budget_ms: Milliseconds
    """Time the learner's core is reserved for in each period; admission refuses what cannot be kept."""
    period_ms: Milliseconds
    """Every so often a window may begin; windows start early when the core is free."""
    deadline_ms: Milliseconds
    """From the grant to the staged snapshot; at most period-ms. Past it the window rolls back."""


class Phase(Table):
    """A stretch of windows that trains one role."""

    name: Name
    """Names the phase's own stream of batches."""
    train: Literal["teacher", "student"]
    """Which role learns. A teacher learns the task alone; a student learns from the frozen teacher and the task."""
    windows: Annotated[int, Field(ge=1, le=1 << 31)]
    """How many windows must commit."""
    lr: Positive
    """The highest learning rate."""
    schedule: Literal["cosine", "constant", "cyclic"] = "cosine"
    """After the warm-up. `cyclic` is the cosine again and again, `cycles` times."""
    cycles: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Restarts of a cyclic schedule."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise to lr."""
    lr_floor: Share = 0.02
    """The share of lr that a cosine ends at."""
    label_smoothing: Share = 0.0
    """Mass of the target spread over all classes."""
    steps: Annotated[int, Field(ge=1, le=limits.STEPS_PER_WINDOW_MAX)] | None = None
    """Micro-steps of this phase's windows; absent: window.steps."""
    end: Literal["", "swap:ema", "swap:checkpoint", "swap:snapshot"] = ""
    """Makes the student the next teacher: `ema` by its moving average and `snapshot` as it is, and the student goes on; `checkpoint` as
    it is, and the student starts anew (born again)."""
    end_every: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Of a repeating phase: its end only after every so many repetitions."""
    repeat: bool = False
    """Last phase only: detached, it runs again until halted, its end each time."""


class PatchSpec(Table):
    """A built-in transformer over 2 x 2 patches of 8 x 8 images."""

    kind: Literal["patch"]
    layers: Count = 4
    """Transformer blocks."""
    width: Count = 64
    """Hidden width, a multiple of heads."""
    heads: Count = 4
    """Attention heads."""
    mlp_ratio: Count = 2
    """Width of the feed-forward layer over hidden width."""
    classes: Count = 10
    """Number of classes."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise PydanticCustomError(
                "heads",
                "width must be a multiple of heads",
                {"hint": f"width = {self.width} is not a multiple of heads = {self.heads}"},
            )
        return self


class MlpSpec(Table):
    """A built-in perceptron over features or the pixels of 8 x 8 images, the smallest network that distils."""

    kind: Literal["mlp"]
    features: Count | None = None
    """Numbers a sample. Absent: images of 8 x 8."""
    layers: Count = 2
    """Hidden layers."""
    width: Count = 256
    """Units of each."""
    classes: Count = 10
    """Number of classes."""


class HfSpec(Table):
    """A local Hugging Face model directory with its weights."""

    path_keys: ClassVar[tuple[str, ...]] = ("path",)
    kind: Literal["hf"]
    path: str
    """A directory with config.json and safetensors weights. Weights in pickle formats and code beside a model are never loaded."""
    task: Literal["classify", "causal-lm"] | None = None
    """Absent: what the directory was saved as."""
    attention: Literal["eager", "sdpa"] | None = None
    """`eager` (also when absent) gives probes the attention probabilities that were used; `sdpa` is faster on long sequences."""
    load: Literal["float32", "int8", "nf4"] = "float32"
    """`int8`, `nf4`: in 8 or 4 bits (bitsandbytes), frozen, read from the directory at each start. For a teacher that no phase trains."""


class HfConfigSpec(Table):
    """A Hugging Face architecture with fresh weights: the config in the manifest, or that of a directory."""

    path_keys: ClassVar[tuple[str, ...]] = ("path",)
    kind: Literal["hf-config"]
    path: str | None = None
    """A model directory, or a config.json, to take the architecture from. Either path or config."""
    config: dict[str, Any] | None = None
    """The architecture: `model_type` and the keys of its transformers config, spelled as there."""
    task: Literal["classify", "causal-lm"] | None = None
    """Absent: for the student the teacher's, else what the config names."""
    attention: Literal["eager", "sdpa"] | None = None
    """As for `hf`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise PydanticCustomError(
                "one_source", "needs either path or a config table", {"hint": "give one of the two, not both"}
            )
        return self


class AppSpec(Table):
    """A model that the application's own servers build: their `entry` names the package that knows it."""

    kind: Literal["app"]
    name: str
    """Which one, as the application calls it."""
    options: dict[str, Any] = {}
    """Handed to it as they are; paths in them are absolute."""


ModelSpec = Annotated[PatchSpec | MlpSpec | HfSpec | HfConfigSpec | AppSpec, Field(discriminator="kind")]


class Models(Table):
    """The pair."""

    teacher: ModelSpec
    student: ModelSpec


class Optimizer(Table):
    """One optimizer a role, with the phase's learning rate."""

    name: Literal["adamw"] = "adamw"
    """Decoupled weight decay (Loshchilov and Hutter 2019)."""
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    """Absent: PyTorch's, 0.9 and 0.999."""
    eps: Positive | None = None
    """Absent: PyTorch's, 1e-8."""
    weight_decay: NotNegative | None = None
    """Decoupled, on matrices only. Absent: PyTorch's, 0.01."""
    clip: NotNegative = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""


class Ema(Table):
    """Moving average of the student, which `swap:ema` makes the teacher."""

    momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    """Share of the average that one step keeps."""


class Kd(Table):
    """Settings of the distillation loss until an operator or a policy changes them."""

    temperature: Annotated[float, Field(ge=limits.TEMPERATURE_MIN, le=limits.TEMPERATURE_MAX)] = 2.0
    """Both models' logits are divided by it; the loss is scaled by its square."""
    alpha: Annotated[float, Field(ge=0.0, le=limits.ALPHA_MAX)] = 1.0
    """Weight of the hint loss on mapped hidden states; 0 turns it off."""
    alpha_floor: Share = 1.0
    """Share of alpha that is left at a phase's end; it falls along half a cosine. 1 keeps alpha as it is."""
    mix: Share = 0.5
    """Share of the distillation loss; the task has the rest."""
    proj: Literal["linear", "none"] = "linear"
    """`linear`: learned maps from the student's hidden width to the teacher's. `none` needs equal widths."""
    layer_map: (
        Annotated[list[Annotated[list[int], Field(min_length=2, max_length=2)]], Field(max_length=256)] | None
    ) = None
    """Pairs [student layer, teacher layer] of every term over layers. Absent: spread evenly."""
    task: Weight = 1.0
    """Factor of the task's share; 0 learns from the teacher alone, as the first stage of TinyBERT does."""
    cka: Weight = 0.0
    """Weight of 1 - CKA of mapped hidden states: unbiased, its sums averaged over batches. Usual: 0.2. This and every term below is
    off unless it is given a weight, and costs nothing then."""
    at: Weight = 0.0
    """Attention transfer: KL of the teacher's attention from the student's on mapped layers. Usual: 0.1. Needs eager attention."""
    rkd: Weight = 0.0
    """Relations between samples by distance. Usual: 0.1."""
    rkd_angle: Weight = 0.0
    """Relations between samples by angle. Usual: 0.2. Grows with the cube of the batch, up to 64 samples."""
    ewc: Weight = 0.0
    """Holds on to weights that mattered to the generation before (from a swap on that the student outlives). Usual: 1e-3."""
    jacobian: Weight = 0.0
    """How differently both models answer to a small change of the input. Usual: 1e-3. For inputs of numbers; costs a second
    backward pass, so give it a cadence."""
    calibration: Weight = 0.0
    """A smooth stand-in for the student's calibration error. Usual: 0.1."""
    cosine: Weight = 0.0
    """DistilBERT: direction of the last mapped hidden state. Usual: 1."""
    embedding: Weight = 0.0
    """TinyBERT: squared distance of embedding outputs, through a projector of their own. Usual: 1."""
    attention_mse: Weight = 0.0
    """TinyBERT: squared distance of attention scores on mapped layers. Usual: 1. Needs eager attention."""
    minilm_at: Weight = 0.0
    """MiniLM: KL of the last layers' attention. Usual: 1. Needs eager attention."""
    minilm_vr: Weight = 0.0
    """MiniLM: KL of the last layers' value relations. Usual: 1."""
    every: dict[TermName, Annotated[int, Field(ge=1, le=limits.TERM_EVERY_MAX)]] = {}
    """Cadence: term -> steps. A term with cadence k enters every k-th step, k times as heavy. Absent: every step."""


Fractions = Annotated[list[Share], Field(min_length=3, max_length=3)]


class Source(Table):
    """What every kind of data takes."""

    batch: Count = 32
    """Samples a step."""
    reservoir: Count | None = None
    """Keep a uniform sample of at most so many training samples, drawn by the seed. What is held out stays whole."""


class Labelled(Source):
    """What kinds with features or images take besides."""

    augment: Literal["none", "shift", "mixup"] = "none"
    """`shift` moves each image by up to one pixel; `mixup` mixes each sample and its label with another of its batch."""
    mixup_alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """`mixup`: shares are drawn from Beta(alpha, alpha)."""


class DigitsData(Labelled):
    """scikit-learn's bundled handwritten digits."""

    kind: Literal["digits"]


class SklearnData(Labelled):
    """A table that comes with scikit-learn."""

    kind: Literal["sklearn"]
    name: Literal["iris", "wine", "breast-cancer", "digits"]
    """Features 4, 13, 30 and images of 8 x 8; classes 3, 3, 2 and 10."""
    fractions: Fractions | None = None
    """Shares of train, validation and test, stratified. Absent: 0.8, 0.1, 0.1. Not for `digits`, whose split is fixed."""
    scale: Literal["standard", "none"] = "standard"
    """`standard` takes the training split's mean and deviation out of each feature."""


class Rows(Labelled):
    """What files of records take."""

    path_keys: ClassVar[tuple[str, ...]] = ("path", "tokenizer")
    path: str
    """The file."""
    task: Literal["classify", "causal-lm"] | None = None
    """Absent: the teacher's."""
    text_column: str | None = None
    """Absent: `text`."""
    label_column: str | None = None
    """Absent: `label`. Classification only."""
    features: Annotated[list[str], Field(min_length=1, max_length=65_536)] | None = None
    """Columns of numbers (or one of lists of numbers) to learn from instead of a text."""
    scale: Literal["standard", "none"] = "standard"
    """`standard` takes the training split's mean and deviation out of each feature."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """`refuse` stops at the first unusable row; `skip` leaves such rows out, counts them and tells the first of them."""
    tokenizer: str | None = None
    """`teacher` (also when absent): tokenizer.json beside the teacher. `bytes`: one id a byte. Else a path."""
    fractions: Fractions | None = None
    """Shares of train, validation and test. Absent: 0.8, 0.1, 0.1. Equal samples share a split."""
    batch: Count = 16
    """Samples a step."""
    seq_len: Count = 128
    """Tokens a row; longer rows are cut and counted. Within the context of both models."""


class JsonlData(Rows):
    """A text or features, and for classification a label, in each line of a file: one JSON object a line, UTF-8."""

    kind: Literal["jsonl"]


class CsvData(Rows):
    """A CSV file with a header, UTF-8."""

    kind: Literal["csv"]


class ParquetData(Rows):
    """A Parquet file; needs the extra `recuros[parquet]`."""

    kind: Literal["parquet"]


class NumpyData(Labelled):
    """A NumPy archive (.npz) with `x` (features [n, f] or images [n, 8, 8]) and `labels` [n]."""

    path_keys: ClassVar[tuple[str, ...]] = ("path",)
    kind: Literal["numpy"]
    path: str
    """Arrays of Python objects are refused."""
    scale: Literal["standard", "none"] = "standard"
    """Of features, as for `sklearn`; images stay as they are."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """As for `jsonl`."""
    fractions: Fractions | None = None
    """As for `jsonl`."""


class TextData(Source):
    """A text file as one stream of tokens, cut into chunks of `seq_len`."""

    path_keys: ClassVar[tuple[str, ...]] = ("path", "tokenizer")
    kind: Literal["text"]
    path: str
    """A UTF-8 text file; with tokenizer `bytes` any file."""
    tokenizer: str | None = None
    """As for `jsonl`."""
    fractions: Fractions | None = None
    """As for `jsonl`, of chunks."""
    batch: Count = 16
    """Chunks a step."""
    seq_len: Count = 128
    """Tokens a chunk. Within the context of both models."""


class CodeData(Source):
    """A tree of source files, cut into chunks of `seq_len` that never cross a file; whole files are held out."""

    path_keys: ClassVar[tuple[str, ...]] = ("path", "tokenizer")
    kind: Literal["code"]
    path: str | None = None
    """A folder. Absent: the standard library of the running Python."""
    suffixes: Annotated[list[str], Field(min_length=1, max_length=64)] = [".py"]
    """Endings of the files that are read."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """Of files that are not UTF-8 under a text tokenizer."""
    tokenizer: str | None = None
    """As for `jsonl`."""
    fractions: Fractions | None = None
    """As for `jsonl`, of files."""
    batch: Count = 16
    """Chunks a step."""
    seq_len: Count = 128
    """Tokens a chunk. Within the context of both models."""


class AppData(Table):
    """Data that the application's own dataset server reads: its `entry` names the package that knows them."""

    path_keys: ClassVar[tuple[str, ...]] = ("path",)
    kind: Literal["app"]
    name: str
    """Which source, as the application calls it."""
    path: str
    """What it reads."""
    batch: Count = 32
    """Samples a step."""


Data = Annotated[
    DigitsData | SklearnData | JsonlData | CsvData | ParquetData | NumpyData | TextData | CodeData | AppData,
    Field(discriminator="kind"),
]


class Policy(Table):
    """The pack that turns the Observer's evidence into settings, and its numbers, which the Observer checks against the pack."""

    model_config = ConfigDict(extra="allow")
    more_numbers: ClassVar[bool] = True
    pack: Literal["starter", "static", "distilbert", "tinybert", "minilm", "born-again", "snapshot"] = "starter"
    """See [policy packs](policy-packs.md). `static` changes nothing. Further keys are numbers of the pack."""


class Device(Table):
    """Where the learner computes, how much of it, and when it rests."""

    kind: Literal["cpu", "cuda", "auto"] = "cpu"
    """`auto`: a CUDA device where torch has one, else the CPU; the report says which it was. `cuda` without one is refused."""
    index: Annotated[int, Field(ge=0, le=255)] = 0
    """Which CUDA device."""
    memory_mb: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    """Device memory (on the CPU: host memory) that the learner may lease. Absent: all there is. Leases of one user's runtimes add up."""
    graphs: Literal["auto", "off"] = "auto"
    """CUDA only: `auto` captures a steady step as a CUDA graph and replays it; `off` always takes the dynamic path."""
    steady_windows: Annotated[int, Field(ge=1, le=1_000)] = 2
    """Windows of one and the same step before it is captured."""
    micro_batches_max: Annotated[int, Field(ge=1, le=64)] = 8
    """Out of memory, a window is retried with each batch in twice as many parts, up to so many; 1 does not retry smaller."""
    offload_teacher: bool = False
    """CUDA only: a float32 teacher lies in host memory between windows, and as long as `[cache]` serves it. Steps are then not captured."""
    temperature_soft_c: Positive | None = None
    """From here on no new window is granted until the device is `cool-down-c` below it. Absent: not guarded."""
    temperature_hard_c: Positive | None = None
    """From here on the running window is rolled back as well."""
    power_soft_w: Positive | None = None
    """As `temperature-soft-c`, for the device's power draw; rested at nine tenths of it."""
    power_hard_w: Positive | None = None
    """As `temperature-hard-c`, for power."""
    cool_down_c: NotNegative = 5.0
    """How far below the soft limit a hot device must come."""

    @model_validator(mode="after")
    def _hard_above_soft(self) -> Self:
        for what, soft, hard in (
            ("temperature", self.temperature_soft_c, self.temperature_hard_c),
            ("power", self.power_soft_w, self.power_hard_w),
        ):
            if soft is not None and hard is not None and hard <= soft:
                raise PydanticCustomError(
                    "limits",
                    "a hard limit lies above its soft one",
                    {"hint": f"{what}: soft {soft:g}, hard {hard:g}"},
                )
        return self


class Cache(Table):
    """What is kept so that it need not be computed again; it changes no bit of a run."""

    teacher: bool = False
    """Keep the frozen teacher's outputs by sample, in memory and in the store. Inputs must be fixed: not with `augment`. Steps in which a
    program watches the teacher's layers compute them all the same."""
    megabytes: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    """Bound of the memory for it; what does not fit is computed."""


class Probe(Table):
    """A probe that is attached before the first window."""

    hook: str
    """Where, as in docs/reference/probes.md."""
    prog: str
    """Which program, such as `builtin:cka`."""
    every: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Steps between firings; 0: the program's own cadence."""


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
    device: Device = Device()
    cache: Cache = Cache()
    probe: Annotated[list[Probe], Field(max_length=limits.PROBES_MAX)] = []
    operator: Operator
    remote: Remote = Remote()
    server: Annotated[dict[Name, Server], Field(min_length=1, max_length=limits.SERVERS_MAX)]
