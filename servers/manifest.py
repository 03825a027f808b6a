"""App manifests: parsed, merged with the base, checked, and turned into the boot document.

Responsible for: what a manifest may say, with every refusal naming file, key, value, limit and the way out; resolving relative
paths; the document that the launcher sends to the supervisor. A shared library for launchers: servers and the kernel get plain,
checked data and never read a manifest. Refuses: unknown keys, unknown rights, calls that do not go down in rank, budgets and
deadlines that do not fit their period, probes and models that do not exist.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from servers.manifest_servers import Server
from servers.manifest_tables import AppSpec, Data, Manifest, MlpSpec, ModelSpec, PatchSpec, SklearnData
from servers.models import directory as model_directory
from syscalls import abi, remote
from syscalls.errors import RecurosError

BASE = "base"
TOKENIZER_WORDS = ("teacher", "bytes")
BUILT_IN = frozenset(("patch", "mlp"))
"""Kinds of models that read 8 x 8 images."""


def apps() -> list[str]:
    """Names of the apps that come with the package, sorted."""
    found = (Path(entry.name) for entry in resources.files("servers.apps").iterdir())
    return sorted(path.stem for path in found if path.suffix == ".toml" and path.stem != BASE)


def app_path(app: str) -> Path:
    """The manifest file of a packaged app; E2-MANIFEST names the nearest ones."""
    known = apps()
    if app not in known:
        close = difflib.get_close_matches(app, known, n=3) or known
        raise RecurosError(
            "E2-MANIFEST",
            f"no app is called {app!r}; there are: {', '.join(known)}",
            hint=f"recuros boot {close[0]}, or recuros boot -c FILE for a manifest of your own",
        )
    return Path(str(resources.files("servers.apps").joinpath(f"{app}.toml")))


def load(path: Path) -> Manifest:
    """Read, merge over the base, check. Errors: E2-MANIFEST, E2-MODEL, E2-DATA."""
    base = _read(Path(str(resources.files("servers.apps").joinpath(f"{BASE}.toml"))))
    merged = _merge(base, _read(path))
    try:
        manifest = Manifest.model_validate(merged)
    except ValidationError as error:
        raise _refusal(path, error) from None
    _resolve_paths(manifest, path.absolute().parent)
    _check_window(path, manifest)
    _check_phases(path, manifest)
    _check_servers(path, manifest)
    _check_probes(path, manifest)
    _check_models(path, manifest)
    _check_data(path, manifest)
    return manifest


def boot_document(
    manifest: Manifest, run: Path, sockets: Path, *, detached: bool, cpus: list[int] | None = None
) -> dict[str, Any]:
    """The map that the supervisor boots from; plain data with snake_case keys. The last CPU is the learner's lane."""
    allowed = sorted(os.sched_getaffinity(0) if cpus is None else cpus)
    lane, background = allowed[-1:], allowed[:-1] or allowed[-1:]
    phases = [{"steps": manifest.window.steps, **phase.model_dump(exclude_none=True)} for phase in manifest.phase]
    model = {
        "teacher": manifest.model.teacher.model_dump(exclude_none=True),
        "student": manifest.model.student.model_dump(exclude_none=True),
        "optimizer": manifest.optimizer.model_dump(exclude_none=True, exclude={"name", "clip"}),
        "clip": manifest.optimizer.clip,
        "ema": manifest.ema.momentum,
        "kd": manifest.kd.model_dump(exclude_none=True),
    }
    policy = manifest.policy.model_dump(exclude_none=True)
    common = {
        "run": str(run),
        "store": str(run / "store"),
        "app": manifest.app.name,
        "seed": manifest.app.seed,
        "deterministic": manifest.app.deterministic,
        "model": model,
        "data": manifest.data.model_dump(exclude_none=True),
        "policy": policy,
        "device": manifest.device.model_dump(exclude_none=True),
        "cache": manifest.cache.model_dump(),
        "phases": phases,
        "lane_cpus": lane,
        "background_cpus": background,
    }
    servers = []
    for name, stanza in sorted(manifest.server.items(), key=lambda item: (item[1].rank, item[0])):
        row = stanza.model_dump(exclude={"cls", "config"})
        servers.append(
            {"name": name, "class": stanza.cls, **row, "config": {**stanza.config, **common, "direct": stanza.direct}}
        )
    return {
        "abi": [abi.ABI_MAJOR, abi.ABI_MINOR],
        "run": str(run),
        "sockets": str(sockets),
        "app": manifest.app.name,
        "seed": manifest.app.seed,
        "deterministic": manifest.app.deterministic,
        "detached": detached,
        "window": manifest.window.model_dump(),
        "phases": phases,
        "probes": [probe.model_dump() for probe in manifest.probe],
        "policy": policy,
        "device": common["device"],
        "eval_every": manifest.app.eval_every,
        "kernel_scheduler": manifest.app.kernel_scheduler,
        "remote": manifest.remote.model_dump(),
        "operator_rights": manifest.operator.rights,
        "servers": servers,
        "lane_cpus": lane,
        "background_cpus": background,
    }


def dump(manifest: Manifest) -> str:
    """The merged, resolved manifest as TOML: what a run directory keeps. `load` of it gives the same manifest."""
    lines = ["# The merged and resolved manifest of this run directory, written by recuros boot."]
    _dump_table(lines, "", manifest.model_dump(by_alias=True, exclude_none=True))
    return "\n".join(lines) + "\n"


def identity(manifest: Manifest) -> dict[str, Any]:
    """What must stay the same for a run directory to be resumed: app, seed, models and data."""
    return {
        "app.name": manifest.app.name,
        "app.seed": manifest.app.seed,
        "model.teacher": manifest.model.teacher.model_dump(),
        "model.student": manifest.model.student.model_dump(),
        "data": manifest.data.model_dump(),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecurosError(
            "E2-MANIFEST", f"{path}: cannot be read: {error.strerror}", hint="recuros boot -c FILE, or an app by name"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecurosError("E2-MANIFEST", f"{path}: not valid TOML: {error}", hint="correct that line") from error


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; everything else, lists included, is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _refusal(path: Path, error: ValidationError) -> RecurosError:
    """The first problem as the message, all of them in the details."""
    problems = []
    hint = ""
    for entry in error.errors(include_url=False):
        context = entry.get("ctx", {})
        loc = list(entry["loc"])
        if context.get("key"):
            loc.append(str(context["key"]))
        key = _dotted(loc)
        hint = hint or str(context.get("hint", ""))
        if entry["type"] in ("missing", "unknown_key"):
            problems.append(f"{key}: {'this key is required' if entry['type'] == 'missing' else entry['msg']}")
        else:
            problems.append(f"{key} = {entry['input']!r:.80}: {_lower(entry['msg'])}")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return RecurosError(
        "E2-MANIFEST", f"{path}: {problems[0]}{more}", hint=hint or "correct that key", details={"problems": problems}
    )


def _dotted(loc: list[Any]) -> str:
    """A key path as it is written in TOML; the tag that pydantic inserts for a union of tables is left out."""
    if len(loc) > 2 and loc[0] == "model" and loc[1] in ("teacher", "student"):
        loc = loc[:2] + loc[3:]
    elif len(loc) > 1 and loc[0] == "data":
        loc = loc[:1] + loc[2:]
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _refuse(path: Path, key: str, text: str, hint: str, code: str = "E2-MANIFEST") -> RecurosError:
    return RecurosError(code, f"{path}: {key}: {text}", hint=hint)


def _is_path(name: str, value: str | None) -> bool:
    return value is not None and not (name == "tokenizer" and value in TOKENIZER_WORDS)


def _resolve_paths(manifest: Manifest, folder: Path) -> None:
    """Relative paths count from the manifest's folder, so a manifest works from any working directory."""
    for table in (manifest.model.teacher, manifest.model.student, manifest.data):
        for name in table.path_keys:
            value = getattr(table, name)
            if _is_path(name, value):
                setattr(table, name, str((folder / Path(value).expanduser()).resolve()))


def _check_window(path: Path, manifest: Manifest) -> None:
    window = manifest.window
    if window.deadline_ms > window.period_ms:
        raise _refuse(
            path,
            "window.deadline-ms",
            f"{window.deadline_ms} ms is above window.period-ms = {window.period_ms} ms",
            "a window must be done before the next one begins: lower deadline-ms or raise period-ms",
        )
    if window.budget_ms > window.deadline_ms:
        raise _refuse(
            path,
            "window.budget-ms",
            f"{window.budget_ms} ms is above its deadline of {window.deadline_ms} ms (period {window.period_ms} ms)",
            "a budget cannot be used up before its deadline: lower budget-ms or raise deadline-ms and period-ms",
        )


def _check_phases(path: Path, manifest: Manifest) -> None:
    seen: set[str] = set()
    for i, phase in enumerate(manifest.phase):
        if phase.name in seen:
            raise _refuse(
                path, f"phase[{i}].name", f"{phase.name!r} is used twice", "each phase names its own stream of batches"
            )
        seen.add(phase.name)
        if phase.repeat and i + 1 < len(manifest.phase):
            raise _refuse(
                path, f"phase[{i}].repeat", f"{phase.name!r} is not the last phase", "only the last phase can repeat"
            )
        if phase.end and phase.train != "student":
            raise _refuse(
                path,
                f"phase[{i}].end",
                f"{phase.end!r} in a phase that trains the teacher",
                "swap roles after a student phase",
            )


def _check_servers(path: Path, manifest: Manifest) -> None:
    servers = manifest.server
    for name, stanza in servers.items():
        for right in stanza.rights:
            _check_right(path, f"server.{name}.rights", right)
        for callee in stanza.calls:
            key = f"server.{name}.calls"
            if callee not in servers:
                raise _refuse(
                    path,
                    key,
                    f"{callee!r} is not a server; there are: {', '.join(sorted(servers))}",
                    "correct the name",
                )
            if servers[callee].rank >= stanza.rank:
                raise _refuse(
                    path,
                    key,
                    f"{name!r} has rank {stanza.rank} and cannot call {callee!r} of rank {servers[callee].rank}",
                    "a server calls servers of strictly lower rank only, so that no cycle can wait for itself",
                )
        for callee in stanza.direct:
            if callee not in stanza.calls:
                text = f"{name!r} may not call {callee!r}, directly or through the kernel"
                raise _refuse(
                    path, f"server.{name}.direct", text, f"add {callee!r} to server.{name}.calls, or leave it out"
                )
        if stanza.mailbox.policy == "drop-oldest" and not abi.may_drop(name):
            raise _refuse(
                path,
                f"server.{name}.mailbox.policy",
                f"{name!r} answers no telemetry, and nothing else may be dropped",
                'policy = "reject" or policy = "block"',
            )
        _check_reservation(path, name, stanza)
        if not _importable(stanza.entry):
            raise _refuse(
                path,
                f"server.{name}.entry",
                f"no module is called {stanza.entry!r}",
                'a package with a __main__, e.g. "servers.learner"',
            )
    for right in manifest.operator.rights:
        _check_right(path, "operator.rights", right)
    for number, key in enumerate(manifest.remote.allow):
        try:
            remote.key_bytes(key, "the key")
        except RecurosError as error:
            raise _refuse(
                path, f"remote.allow[{number}]", error.message, "recuros remote key FILE prints it"
            ) from error
    if manifest.remote.allow and not manifest.remote.listen:
        raise _refuse(path, "remote.listen", "keys are allowed and nothing listens", 'listen = "127.0.0.1:7600"')
    on_lane = sorted(name for name, stanza in servers.items() if stanza.cls == "edf")
    if len(on_lane) > 1:
        raise _refuse(
            path,
            f"server.{on_lane[1]}.class",
            f"{', '.join(on_lane)} are all 'edf', and there is one lane",
            "leave one server in class edf and put the others into class fair",
        )


def _check_reservation(path: Path, name: str, stanza: Server) -> None:
    key = f"server.{name}"
    given = [stanza.budget_ms, stanza.period_ms, stanza.deadline_ms]
    if stanza.cls == "edf":
        if any(given):
            raise _refuse(path, f"{key}.budget-ms", "the learner's reservation is [window]", "set it there")
        return
    if not any(given):
        if stanza.overrun:
            hint = "add budget-ms and period-ms, or drop overrun"
            raise _refuse(path, f"{key}.overrun", f"{name!r} has no reservation to overrun", hint)
        return
    if not stanza.budget_ms or not stanza.period_ms:
        hint = "give both budget-ms and period-ms"
        raise _refuse(path, f"{key}.budget-ms", "half a reservation", hint)
    deadline_ms = stanza.deadline_ms or stanza.period_ms
    if not stanza.budget_ms <= deadline_ms <= stanza.period_ms:
        raise _refuse(
            path,
            f"{key}.budget-ms",
            f"needs budget-ms = {stanza.budget_ms} <= deadline-ms = {deadline_ms} <= period-ms = {stanza.period_ms}",
            "lower the budget or raise the others",
        )
    if stanza.overrun not in (None, "throttle", "postpone", "kill"):  # rollback and degrade are for windows
        hint = "throttle, postpone or kill"
        raise _refuse(path, f"{key}.overrun", f"{stanza.overrun!r} is for windows, and {name!r} runs none", hint)


def _check_right(path: Path, key: str, right: str) -> None:
    if right not in abi.RIGHT_NAMES:
        close = difflib.get_close_matches(right, abi.RIGHT_NAMES, n=1)
        known = f"known rights: {', '.join(sorted(abi.RIGHT_NAMES))}"
        raise _refuse(path, key, f"unknown right {right!r}", f"did you mean {close[0]!r}? {known}" if close else known)


def _importable(entry: str) -> bool:
    try:
        return importlib.util.find_spec(entry) is not None
    except ModuleNotFoundError:
        return False


def _check_probes(path: Path, manifest: Manifest) -> None:
    """The admission that the kernel repeats at attach, here so that a typing error is found before anything starts."""
    from probes import catalogue

    for i, probe in enumerate(manifest.probe):
        try:
            catalogue.check(probe.hook, probe.prog, ("attach-probe", "read-trace"))
        except RecurosError as error:
            raise _refuse(path, f"probe[{i}]", error.message, error.hint or "recuros probe ls") from error


def _check_models(path: Path, manifest: Manifest) -> None:
    for role, spec in (("teacher", manifest.model.teacher), ("student", manifest.model.student)):
        if not isinstance(spec, PatchSpec | MlpSpec | AppSpec) and spec.path is not None:
            _check_model_dir(path, role, Path(spec.path), weights=spec.kind == "hf")
    _check_loads(path, manifest)
    kinds = {manifest.model.teacher.kind, manifest.model.student.kind}
    if kinds & BUILT_IN and len(kinds) > 1:
        raise _refuse(
            path,
            "model",
            f"a {manifest.model.teacher.kind!r} teacher and a {manifest.model.student.kind!r} student differ in inputs or positions",
            "take both from Hugging Face (hf, hf-config), or both of one built-in kind (patch or mlp)",
            "E2-MODEL",
        )


def _check_loads(path: Path, manifest: Manifest) -> None:
    """8 and 4 bits are for teachers that stay as they are."""
    for role, spec in (("student", manifest.model.student), ("teacher", manifest.model.teacher)):
        load = getattr(spec, "load", "float32")
        trained = [phase.name for phase in manifest.phase if phase.train == role]
        if load != "float32" and (role == "student" or trained):
            what = f"phase {trained[0]!r} trains it" if trained else "the student is trained"
            raise _refuse(path, f"model.{role}.load", f"{load!r}: {what}", 'load = "float32"', "E2-MODEL")


def _check_model_dir(path: Path, role: str, directory: Path, *, weights: bool) -> None:
    """A look that needs no torch: the config, and weights that are all there."""
    hint = "give a directory written by model.save_pretrained, or kind = 'hf-config' for a model without weights"
    key = f"model.{role}.path"
    if weights and not directory.is_dir():
        raise _refuse(path, key, f"{directory} is not a directory", hint, "E2-MODEL")
    try:
        model_directory.read_config(directory)
        if weights:
            model_directory.check_weights(directory)
    except RecurosError as error:
        raise _refuse(path, key, error.message, error.hint, "E2-MODEL") from error


FEEDS: Final[dict[str, tuple[str, ...]]] = {
    "patch": ("digits", "sklearn", "numpy"),
    "mlp": ("digits", "sklearn", "numpy", "jsonl", "csv", "parquet"),
    "hf": ("jsonl", "csv", "parquet", "text", "code"),
    "hf-config": ("jsonl", "csv", "parquet", "text", "code"),
    "app": ("app",),
}
"""Kind of model -> kinds of data that it can read."""


def _check_data(path: Path, manifest: Manifest) -> None:
    data, kind = manifest.data, manifest.model.student.kind
    if data.kind not in FEEDS[kind]:
        raise _refuse(
            path,
            "data.kind",
            f"{data.kind!r} does not feed models of kind {kind!r}",
            f"use data.kind = {' or '.join(FEEDS[kind])}",
            "E2-MANIFEST",
        )
    features = getattr(data, "features", None)
    if data.kind in ("jsonl", "csv", "parquet") and (kind == "mlp") != bool(features):
        what = "names no features, which an mlp learns from" if kind == "mlp" else f"a {kind!r} model reads no features"
        raise _refuse(path, "data.features", what, 'features = ["column", ...] with models of kind mlp')
    for role, spec in (("teacher", manifest.model.teacher), ("student", manifest.model.student)):
        wanted = _features_of(data)
        if isinstance(spec, MlpSpec) and wanted >= 0 and (spec.features or 0) != wanted:
            says = (
                f"model.{role}.features",
                f"{spec.features or 'images of 8 x 8'} where the data has {wanted or 'images'}",
            )
            raise _refuse(path, *says, f"features = {wanted}" if wanted else "leave features out", "E2-MODEL")
    if manifest.cache.teacher and getattr(data, "augment", "none") != "none":
        raise _refuse(
            path,
            "cache.teacher",
            f"outputs on inputs that augment = {getattr(data, 'augment', '')!r} changes cannot be kept",
            'augment = "none", or leave cache.teacher out',
        )
    for name in data.path_keys:
        value = getattr(data, name)
        if _is_path(name, value) and not Path(value).exists():
            raise _refuse(
                path, f"data.{name.replace('_', '-')}", f"{value} does not exist", "correct the path", "E2-DATA"
            )


def _features_of(data: Data) -> int:
    """Numbers a sample, 0 for images, -1 when only the file can tell."""
    if isinstance(data, SklearnData):
        return {"iris": 4, "wine": 13, "breast-cancer": 30, "digits": 0}[data.name]
    return 0 if data.kind == "digits" else -1


def _dump_table(lines: list[str], prefix: str, table: dict[str, Any]) -> None:
    """Scalars first, then sub-tables, as TOML needs it."""
    nested = {k: v for k, v in table.items() if isinstance(v, dict)}
    arrays = {k: v for k, v in table.items() if isinstance(v, list) and v and all(isinstance(item, dict) for item in v)}
    for key, value in table.items():
        if key not in nested and key not in arrays:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in nested.items():
        name = f"{prefix}{_toml_key(key)}"
        lines += ["", f"[{name}]"]
        _dump_table(lines, f"{name}.", value)
    for key, items in arrays.items():
        name = f"{prefix}{_toml_key(key)}"
        for item in items:
            lines += ["", f"[[{name}]]"]
            _dump_table(lines, f"{name}.", item)


def _toml_key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):  # inside a list of mixed values
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return repr(value)


__all__ = ["Manifest", "ModelSpec", "app_path", "apps", "boot_document", "dump", "identity", "load"]
