"""Writes a bundle: beside its place, whole and flushed, and then renamed to it.

Responsible for: every byte of a plain bundle, its hashes and its manifest. Refuses: a place that is taken, weights that are not finite,
a router that knows a gated capability, keys that it does not know.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor, nn

from nexus.bundle import format as form
from nexus.bundle.texts import LICENCE_NOTE, readme
from nexus.model.finite import first_not_finite
from nexus.model.names import checked
from nexus.model.pixels import Towers
from nexus.model.router import Router
from nexus.model.student import NexusStudent
from nexus.serve.standalone import archive
from syscalls.errors import RecurosError

FIELDS: Final[dict[str, Any]] = {
    "name": "nexus",
    "version": "1",
    "capabilities": {},
    "lineage": {},
    "ledger_proof": None,
    "verify_report": {"verdict": "not verified"},
    "licence": LICENCE_NOTE,
    "created": "",
}


def write_bundle(
    path: Path | str,
    student: NexusStudent,
    adapters: Iterable[str],
    router: Router | None,
    tokenizer: Any,
    manifest_fields: Mapping[str, Any] | None = None,
    gated: Iterable[str] = frozenset(),
    towers: Mapping[str, Towers] | None = None,
) -> form.Manifest:
    """Write a bundle to `path`, which must not exist, and return its manifest.

    `adapters`: which of the student's go in. `gated`: capabilities among them that load on an explicit opt-in only (tier 3).
    `manifest_fields` (all optional): `name`, `version`, `created` (text); `capabilities` {name: {tier: 1 or 2, and what else is to be
    said of it, such as its contract}}: a name without an adapter is one that the bare backbone has; `lineage`; `ledger_proof`;
    `verify_report`: what the gate found; `licence`: the text of LICENSE. `towers`: (encoder, decoder) of capabilities of other modalities.
    """
    fields = _fields(manifest_fields)
    names, closed = [checked(name) for name in adapters], frozenset(map(checked, gated))
    capabilities = _capabilities(student, names, closed, fields["capabilities"])
    for name in towers or {}:
        capabilities[name] |= {end: form.tower_path(end, name) for end in form.TOWERS}
    if router is not None:
        _check_router(router, capabilities)
    with place(Path(path)) as folder:
        backbone_id = save_backbone(student, folder)
        for name in names:
            save_adapter(student, name, folder, backbone_id)
        if router is not None:
            (folder / form.ROUTER).parent.mkdir()
            router.save(folder / form.ROUTER)
        for name, pair in (towers or {}).items():
            for end, said in zip(form.TOWERS, (pair[0].to_map(), pair[1].to_map()), strict=True):
                (folder / form.tower_path(end, name)).parent.mkdir(exist_ok=True)
                write_json(folder / form.tower_path(end, name), said)
        tokenizer.save_pretrained(folder / form.TOKENIZER)
        config = {**student.config.to_dict(), "adapters": {n: student.config.adapters[n] for n in names}}
        write_json(folder / form.CONFIG, config)
        write_json(folder / form.REPORT, fields["verify_report"])
        (folder / form.LICENCE).write_text(fields["licence"], encoding="utf-8")
        (folder / form.README).write_text(readme(fields["name"], capabilities), encoding="utf-8")
        (folder / form.LOADER).write_bytes(archive())
        data = {
            "format": {"name": form.FORMAT, "major": form.MAJOR, "minor": form.MINOR},
            "name": fields["name"],
            "version": fields["version"],
            "versions": versions(),
            "created": fields["created"] or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "backbone": {
                "id": backbone_id,
                "architecture": type(student.backbone).__name__,
                "parameters": sum(p.numel() for p in student.backbone_parameters()),
                "context": student.config.context,
            },
            "capabilities": capabilities,
            "router": {"capabilities": [] if router is None else router.capabilities},
            "quantization": {"scheme": "none"},
            "lineage": fields["lineage"],
            "ledger_proof": fields["ledger_proof"],
        }
        return seal(folder, data)


def _fields(given: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(given or {})
    if unknown := sorted(given.keys() - FIELDS.keys()):
        raise RecurosError(
            "E2-USAGE", f"manifest field {unknown[0]!r} is not known", hint=f"there are: {', '.join(sorted(FIELDS))}"
        )
    return {**FIELDS, **given}


def _capabilities(
    student: NexusStudent, names: list[str], gated: frozenset[str], about: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    if len(set(names)) != len(names):
        raise RecurosError("E2-USAGE", f"an adapter is named twice: {', '.join(names)}")
    if strange := sorted(gated - set(names)):
        raise RecurosError(
            "E2-USAGE",
            f"{strange[0]!r} is gated and has no adapter in this bundle",
            hint="a gated capability needs an adapter of its own; name it in adapters",
        )
    found = {}
    for name in [*names, *(n for n in map(checked, about) if n not in names)]:
        said = dict(about.get(name, {}))
        tier = said.pop("tier", 3 if name in gated else 1)
        if tier not in form.TIERS or (tier == 3) != (name in gated):
            raise RecurosError(
                "E2-USAGE",
                f"capability {name!r} has tier {tier!r}",
                hint="1 or 2; 3 is for gated capabilities, and only for them",
            )
        if taken := sorted(said.keys() & {"adapter", "rank", "layers", "gated", *form.TOWERS}):
            raise RecurosError(
                "E2-USAGE", f"capability {name!r}: {taken[0]!r} is set by the writer", hint="leave it out"
            )
        shape = student.config.adapters[name] if name in names and student.adapter(name) is not None else None
        found[name] = {
            **said,
            "adapter": form.adapter_path(name) if shape else "",
            "rank": shape["rank"] if shape else 0,
            "layers": shape["layers"] if shape else [],
            "tier": tier,
            "gated": name in gated,
        }
    return found


def _check_router(router: Router, capabilities: Mapping[str, Mapping[str, Any]]) -> None:
    for name in router.capabilities:
        if name not in capabilities:
            raise RecurosError(
                "E2-USAGE", f"the router knows {name!r}, which is not in the bundle", hint="fit it without"
            )
        if capabilities[name]["gated"]:
            raise RecurosError(
                "E5-DENIED",
                f"the router was fitted with the gated capability {name!r}; what everybody loads must not hold its data",
                hint="fit the router without its items",
            )


def save_backbone(student: NexusStudent, folder: Path) -> str:
    """backbone/: weights, configuration and the index by which plain transformers finds them. Returns the SHA-256 of the weights."""
    backbone = student.backbone
    target = folder / form.BACKBONE
    target.parent.mkdir(parents=True)
    state = unshared(backbone)
    check_finite(state, "the backbone")
    save_file(state, str(target), metadata={"format": "pt"})
    backbone.config.architectures = [type(backbone).__name__]
    backbone.config.to_json_file(folder / form.BACKBONE_CONFIG, use_diff=False)
    generation = getattr(backbone, "generation_config", None)
    if generation is not None:
        generation.to_json_file(target.parent / "generation_config.json", use_diff=True)
    total = sum(t.numel() * t.element_size() for t in state.values())
    write_json(
        folder / form.BACKBONE_INDEX,
        {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(sorted(state), target.name)},
    )
    return hash_file(target)[0]


def save_adapter(student: NexusStudent, name: str, folder: Path, backbone_id: str) -> None:
    """One adapter's file, bound to the backbone it was trained on."""
    target = folder / form.adapter_path(name)
    target.parent.mkdir(exist_ok=True)
    adapter = student.adapter(name)
    state = {key: value.detach().cpu().contiguous() for key, value in adapter.state_dict().items()}
    check_finite(state, f"adapter {name!r}")
    about = {
        "format": form.ADAPTER_FORMAT,
        "capability": name,
        "backbone": backbone_id,
        "rank": adapter.rank,
        "layers": sorted(adapter.at),
    }
    save_file(state, str(target), metadata=metadata(about))


def metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """A safetensors header's metadata. One key, because safetensors writes several in a random order."""
    return {"nexus": json.dumps(about, sort_keys=True)}


def unshared(module: nn.Module) -> dict[str, Tensor]:
    """A module's state without the second name of tied weights, which loading ties again."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    tied = set(getattr(module, "all_tied_weights_keys", None) or {})
    found = {}
    for key, value in sorted(module.state_dict().items(), key=lambda item: (item[0] in tied, item[0])):
        where = (value.data_ptr(), tuple(value.shape))
        if value.numel() and where in seen and key in tied:
            continue
        seen[where] = key
        found[key] = value.detach().cpu().contiguous()
    return found


def check_finite(state: Mapping[str, Tensor], what: str) -> None:
    """E2-MODEL for weights with NaN or infinity."""
    if key := first_not_finite(state):
        raise RecurosError(
            "E2-MODEL", f"{what} holds a number that is not finite, in {key}", hint="go back to a checkpoint before it"
        )


def versions() -> dict[str, str]:
    """What a bundle was written with."""
    from importlib import metadata

    found = {}
    for name in ("recuros", "torch", "transformers", "safetensors", "tokenizers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def seal(folder: Path, data: Mapping[str, Any]) -> form.Manifest:
    """Hash every file of a folder into a manifest and write that, last."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / form.MANIFEST)
    files = {}
    for path in paths:
        sha, size = hash_file(path)
        files[str(path.relative_to(folder))] = {"sha256": sha, "bytes": size}
    try:
        raw = form.encode({**data, "files": files})
    except (TypeError, ValueError) as error:
        raise RecurosError(
            "E2-USAGE", f"{form.MANIFEST} cannot be written as JSON: {error}", hint="give texts and numbers"
        ) from error
    (folder / form.MANIFEST).write_bytes(raw)
    return form.check(json.loads(raw), hashlib.sha256(raw).hexdigest())


def hash_file(path: Path) -> tuple[str, int]:
    """(SHA-256, bytes) of a file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return found, file.tell()


@contextlib.contextmanager
def place(path: Path) -> Iterator[Path]:
    """A folder beside `path` that becomes it when the block ends well, and is removed when it does not."""
    if path.exists() or path.is_symlink():
        raise RecurosError(
            "E2-USAGE", f"{path} is there already", hint="name a new directory; bundles are not changed in place"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    folder = outside / path.name
    try:
        folder.mkdir()
        yield folder
        for inner in [*folder.rglob("*"), folder]:
            _sync(inner)
        folder.chmod(0o755)
        folder.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(outside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """A JSON file as a bundle has them: keys in order, no NaN."""
    try:
        text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecurosError(
            "E2-USAGE", f"{path.name} cannot be written as JSON: {error}", hint="give texts and numbers"
        ) from error
    path.write_text(text + "\n", encoding="utf-8")
