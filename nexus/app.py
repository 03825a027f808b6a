"""A Nexus app: the TOML file of one distillation from many teachers, parsed and checked against its CSV and its contracts.

Responsible for: what may be said, with every refusal naming file, key and the way out. Thresholds are not said here: they are in
`retention_contracts.md` and nowhere else. Refuses: unknown keys, a CSV row without a model or twice, a teacher that the CSV does not
list or lists in vain, a capability without data, teacher, contract or licence note, two primary towers for one capability.
"""

from __future__ import annotations

import csv
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, ValidationError

from nexus import contracts as contract_page
from nexus.contracts import Contract
from nexus.data import sets
from servers.manifest_table import Count, Name, NotNegative, Positive, Share, Table
from syscalls.errors import RecurosError

CSV_COLUMNS: Final = ("ModelName", "Parameters", "Category", "BestFeature")
MAX_RANK: Final = 512
REFINEMENT: Final = "refinement"
RESERVED: Final = ("backbone", "joint", "router")
"""Names under which the run records what is no capability."""


class About(Table):
    """Who this is."""

    name: Name
    title: str = ""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 42
    teachers: str = "teachers.csv"
    contracts: str = "retention_contracts.md"


class Scope(Table):
    """Limits that stage 0 freezes."""

    max_rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = MAX_RANK
    memory_mib: Count = 16_384


class StudentTable(Table):
    """The backbone's sizes; byte-level, Llama-like."""

    width: Count = 96
    layers: Count = 4
    heads: Count = 4
    context: Count = 256


class PolicyTable(Table):
    """The Observer's pack in stage 4, and its numbers."""

    model_config = ConfigDict(extra="allow")
    more_numbers: ClassVar[bool] = True
    pack: str = "static"

    def said(self) -> dict[str, Any]:
        """As a manifest says it."""
        return {"pack": self.pack, **(self.model_extra or {})}


class Training(Table):
    """How the backbone is distilled from its public capabilities, and the defaults of adapters."""

    steps: Count = 500
    window: Count = 25
    batch: Count = 48
    lr: Positive = 3e-3
    adapter_steps: Count = 300
    adapter_lr: Positive = 1e-2
    adapter_batch: Count = 64
    mix: Share = 0.9
    top_k: Annotated[int, Field(ge=1, le=64)] = 16
    anchor: Literal["none", "pca", "random"] = "none"
    anchor_alpha: NotNegative = 5.0
    """At a job's start; annealed along half a cosine to `anchor_floor` of itself."""
    anchor_floor: Share = 0.1
    anchor_beta: NotNegative = 0.1
    """Weight of the attention anchor, where there is an anchor."""
    reserve: bool = True
    """Whether an adapter's first channels are kept for what the profile protects."""
    joint_steps: Annotated[int, Field(ge=0)] = 0
    """After the adapters of the capabilities that may teach the backbone, these and the backbone together; 0 leaves it out."""
    joint_lr: Positive = 3e-4
    policy: PolicyTable = PolicyTable()
    eval_every: Count = 2
    """Windows between two evaluations, where a pack other than `static` looks at them."""
    deadline_ms: Count = 120_000
    engine: Literal["windows", "in-process"] = "windows"


class Profiling(Table):
    """Stage 2: how much is looked at."""

    pilot_items: Count = 20
    items: Count = 200
    key_layers: Annotated[int, Field(ge=1, le=5)] = 3
    method: Literal["covariance", "incremental-pca"] = "covariance"
    flips_max: Share = 0.02


class Make(Table):
    """A teacher that the run makes itself."""

    width: Count = 96
    layers: Count = 2
    heads: Count = 4
    steps: Count = 400
    batch: Count = 32
    lr: Positive = 3e-3


class TeacherTable(Table):
    """One teacher. One of `path`, `package` (a directory inside an installed package), `make`, `command`, `url`."""

    path_keys: ClassVar[tuple[str, ...]] = ("path",)
    id: Name
    model_name: str
    licence: str = ""
    mode: Literal["causal", "encoder", "classifier", "vision", "black-box"] = "causal"
    tokenizer: Literal["bytes", "own"] = "bytes"
    precision: Literal["float32", "int8", "nf4"] = "float32"
    path: str | None = None
    package: str | None = None
    make: Make | None = None
    command: list[str] | None = None
    url: str | None = None
    optional: bool = False


class CapabilityTable(Table):
    """One capability: what it is taught and judged on, and by whom."""

    name: Name
    teacher: Name
    data: dict[str, Any]
    tier: Annotated[int, Field(ge=1, le=3)] = 1
    gated: bool = False
    backbone: bool = True
    """Whether its data may reach the backbone. Never, where it is gated."""
    start_rank: Count | None = None
    """Instead of the capacity plan's; a small one exercises the loop 5->3."""
    steps: Count | None = None
    lr: Positive | None = None
    attempts: Annotated[int, Field(ge=1, le=8)] = 3


class RefineTable(Table):
    """Stage 7."""

    teacher: Name
    data: dict[str, Any]
    rank: Annotated[int, Field(ge=1, le=256)] = 128
    steps: Count = 300
    lr: Positive = 1e-2


class AppTable(Table):
    """The whole file."""

    app: About
    scope: Scope = Scope()
    student: StudentTable = StudentTable()
    training: Training = Training()
    profiling: Profiling = Profiling()
    teacher: Annotated[list[TeacherTable], Field(min_length=1)]
    capability: Annotated[list[CapabilityTable], Field(min_length=1)]
    refine: RefineTable | None = None


@dataclass(frozen=True)
class CsvRow:
    """A line of the complete list of teachers."""

    model_name: str
    parameters: str
    category: str
    best_feature: str


@dataclass(frozen=True)
class App:
    """A checked app. `folder`: what relative paths count from."""

    table: AppTable
    folder: Path
    rows: dict[str, CsvRow]
    contracts: dict[str, Contract]

    @property
    def seed(self) -> int:
        """Everything random follows from it."""
        return self.table.app.seed

    def teacher(self, name: str) -> TeacherTable:
        """A teacher by id."""
        return next(t for t in self.table.teacher if t.id == name)

    def capability(self, name: str) -> CapabilityTable:
        """A capability by name; E4-NOENT names those there are."""
        found = next((c for c in self.table.capability if c.name == name), None)
        if found is None:
            known = ", ".join(c.name for c in self.table.capability)
            raise RecurosError("E4-NOENT", f"no capability is called {name!r}", hint=f"there are: {known}")
        return found

    def of_teacher(self, name: str) -> list[CapabilityTable]:
        """The capabilities that a teacher teaches."""
        return [c for c in self.table.capability if c.teacher == name]

    def data_options(self, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """(kind, options with paths resolved) of a data table."""
        options = {k.replace("-", "_"): v for k, v in data.items() if k != "kind"}
        if "path" in options:
            options["path"] = str((self.folder / Path(str(options["path"])).expanduser()).resolve())
        return str(data.get("kind", "")), options


def load(path: Path) -> App:
    """Read and check everything that needs no model."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecurosError(
            "E2-MANIFEST", f"{path}: cannot be read: {error.strerror}", hint="recuros nexus run FILE"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecurosError("E2-MANIFEST", f"{path}: not valid TOML: {error}", hint="correct that line") from error
    try:
        table = AppTable.model_validate(raw)
    except ValidationError as error:
        raise _invalid(path, error) from None
    folder = path.absolute().parent
    rows = read_csv(folder / table.app.teachers)
    contracts = contract_page.load(folder / table.app.contracts)
    app = App(table, folder, rows, contracts)
    _check(path, app)
    return app


def read_csv(path: Path) -> dict[str, CsvRow]:
    """The complete list of teachers, each row exactly once."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refuse(
            path, f"the list of teachers cannot be read: {error}", "a CSV file with the columns of the docs"
        ) from error
    if not lines or tuple(lines[0]) != CSV_COLUMNS:
        raise _refuse(path, f"the first line is not {','.join(CSV_COLUMNS)}", "write it as the first line")
    rows: dict[str, CsvRow] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        if len(cells) != len(CSV_COLUMNS):
            raise _refuse(
                path, f"line {number} has {len(cells)} cells, expected {len(CSV_COLUMNS)}", "correct that line"
            )
        row = CsvRow(*(cell.strip() for cell in cells))
        if not row.model_name:
            raise _refuse(path, f"line {number} names no model", "ModelName is the first cell")
        if row.model_name in rows:
            raise _refuse(path, f"line {number} repeats {row.model_name!r}", "each teacher exactly once")
        rows[row.model_name] = row
    return rows


def _check(path: Path, app: App) -> None:
    table = app.table
    _once(path, "teacher.id", [t.id for t in table.teacher])
    _once(path, "teacher.model-name", [t.model_name for t in table.teacher])
    _once(path, "capability.name", [c.name for c in table.capability])
    named = {t.model_name for t in table.teacher}
    for name in app.rows:
        if name not in named:
            raise _refuse(
                path, f"{table.app.teachers} lists {name!r}, and no [[teacher]] has it", "add it, or drop the row"
            )
    ids = {t.id for t in table.teacher}
    refines = {table.refine.teacher} if table.refine else set()
    for capability in table.capability:
        where = f"capability {capability.name!r}"
        if capability.teacher not in ids:
            raise _refuse(
                path, f"{where}: no teacher is called {capability.teacher!r}", f"there are: {', '.join(sorted(ids))}"
            )
        if capability.name in RESERVED:
            raise _refuse(path, f"a capability cannot be called {capability.name!r}", "choose another name")
        if not capability.data.get("kind"):
            raise _refuse(path, f"{where} has no dataset", 'data = { kind = "jsonl", path = "..." }')
        if capability.gated != (capability.tier == 3):
            raise _refuse(
                path, f"{where}: tier {capability.tier} and gated = {capability.gated}", "tier 3 is for gated ones only"
            )
        if capability.start_rank and capability.start_rank > table.scope.max_rank:
            raise _refuse(path, f"{where}: start-rank {capability.start_rank} is above scope.max-rank", "lower it")
    for teacher in table.teacher:
        _check_teacher(path, app, teacher, refines)
    _check_policy(path, table.training)
    metrics = {c.name: sets.metric_of(*app.data_options(c.data)) for c in table.capability}
    contract_page.check_names(app.contracts, metrics, str(app.folder / table.app.contracts))
    if not any(c.backbone and not c.gated for c in table.capability):
        raise _refuse(path, "no capability may teach the backbone", "set backbone = true for one that is not gated")
    if table.refine and table.refine.teacher not in ids:
        raise _refuse(
            path, f"refine.teacher {table.refine.teacher!r} is no teacher", f"there are: {', '.join(sorted(ids))}"
        )


def _check_teacher(path: Path, app: App, teacher: TeacherTable, refines: set[str]) -> None:
    where = f"teacher {teacher.id!r}"
    if teacher.model_name not in app.rows:
        raise _refuse(
            path,
            f"{where}: {teacher.model_name!r} is not in {app.table.app.teachers}",
            "add its row; the CSV is complete",
        )
    sources = [k for k in ("path", "package", "make", "command", "url") if getattr(teacher, k) is not None]
    if len(sources) != 1:
        found = ", ".join(sources) or "none"
        raise _refuse(path, f"{where} has {found} of path, package, make, command, url", "give exactly one")
    if not teacher.licence.strip():
        raise _refuse(path, f"{where} has no licence note", 'licence = "..."')
    if teacher.make is not None and teacher.mode not in ("causal", "vision"):
        raise _refuse(path, f"{where}: a run makes no {teacher.mode} teachers", 'mode = "causal" or "vision"')
    if teacher.mode == "vision" and any(c.data.get("kind") != "digit-images" for c in app.of_teacher(teacher.id)):
        raise _refuse(path, f"{where} sees images, and its data are none", 'data = { kind = "digit-images" }')
    black_box = teacher.command is not None or teacher.url is not None
    if black_box != (teacher.mode == "black-box"):
        raise _refuse(
            path, f"{where}: mode {teacher.mode!r} with {sources[0]}", "black-box teachers have a command or a url"
        )
    late = app.rows[teacher.model_name].category == REFINEMENT
    if late != (teacher.id in refines):
        raise _refuse(
            path, f"{where}: category {REFINEMENT!r} is for the teacher of [refine], and only for it", "correct the CSV"
        )
    if black_box and not late:
        raise _refuse(path, f"{where} is a black box, which gives no logits to distil", "use it in [refine]")
    if not late and not app.of_teacher(teacher.id):
        raise _refuse(path, f"{where} teaches no capability", "add a [[capability]] with this teacher")


def _check_policy(path: Path, training: Training) -> None:
    """A pack that there is, with numbers that it has, where there are windows for it to steer."""
    from servers.observer.packs import pack_of
    from servers.observer.policy import numbers_of

    said = training.policy.said()
    try:
        numbers_of(pack_of(training.policy.pack), said)
    except RecurosError as error:
        raise _refuse(path, f"training.policy: {error.message}", error.hint) from error
    if training.engine == "in-process" and training.policy.pack != "static":
        raise _refuse(
            path,
            f"training.policy.pack = {training.policy.pack!r} needs windows, and the engine is in-process",
            'engine = "windows", or pack = "static"',
        )


def _once(path: Path, key: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise _refuse(path, f"{key} {name!r} is used twice", "each exactly once")


def _refuse(path: Path, what: str, hint: str) -> RecurosError:
    return RecurosError("E2-MANIFEST", f"{path}: {what}", hint=hint)


def _invalid(path: Path, error: ValidationError) -> RecurosError:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    loc = [*first["loc"], *([context["key"]] if context.get("key") else [])]
    key = ".".join(str(part) for part in loc)
    said = "this key is required" if first["type"] == "missing" else first["msg"]
    return RecurosError(
        "E2-MANIFEST", f"{path}: {key}: {said}", hint=str(context.get("hint", "")) or "correct that key"
    )
