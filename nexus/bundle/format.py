"""The form of a bundle: paths, manifest, version. docs/reference/nexus-bundle.md describes it for readers.

Responsible for: one place for every path and key, and reading a manifest with the same checks that writing has. Refuses: other majors,
paths that leave the bundle, maps that are not of the form. Imports the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nexus.model.names import FORM as NAME_FORM
from syscalls.errors import RecurosError

FORMAT: Final = "nexus-bundle"
MAJOR: Final = 1
MINOR: Final = 0
ADAPTER_FORMAT: Final = "nexus-adapter/1"

MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.json"
REPORT: Final = "verify_report.json"
README: Final = "README.md"
LICENCE: Final = "LICENSE"
BACKBONE: Final = "backbone/backbone.safetensors"
BACKBONE_CONFIG: Final = "backbone/config.json"
BACKBONE_INDEX: Final = "backbone/model.safetensors.index.json"
ROUTER: Final = "router/router.safetensors"
TOKENIZER: Final = "tokenizer"
LOADER: Final = "nexus.pyz"

JSON_BYTES_MAX: Final = 16 << 20
FILES_MAX: Final = 10_000
TIERS: Final = (1, 2, 3)
TOWERS: Final = ("encoder", "decoder")
PATH_FORM: Final = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
HASH_FORM: Final = re.compile(r"[0-9a-f]{64}")
TOP_KEYS: Final = frozenset(
    (
        "format", "digest", "name", "version", "versions", "created", "backbone", "capabilities", "files", "router",
        "quantization", "lineage", "ledger_proof",
    )
)  # fmt: skip


def adapter_path(capability: str) -> str:
    """Where a capability's adapter lies."""
    return f"adapters/{capability}_adapter.safetensors"


def tower_path(end: str, capability: str) -> str:
    """Where the `end` ("encoder" or "decoder") of a capability of another modality is described."""
    return f"{end}s/{capability}.json"


@dataclass(frozen=True)
class Capability:
    """What the manifest says of a capability. `adapter` is "" where the bare backbone has it."""

    name: str
    adapter: str
    rank: int
    tier: int
    gated: bool
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A manifest that was checked. `bundle_id` is the SHA-256 of manifest.json as it lies there."""

    data: Mapping[str, Any]
    bundle_id: str
    capabilities: Mapping[str, Capability]
    files: Mapping[str, tuple[str, int]]

    @property
    def gated_paths(self) -> frozenset[str]:
        """Files that nobody opens without the opt-in."""
        return frozenset(c.adapter for c in self.capabilities.values() if c.gated)

    @property
    def backbone_id(self) -> str:
        """SHA-256 of the backbone as it was trained, to which adapters are bound."""
        return str(self.data["backbone"]["id"])

    @property
    def scheme(self) -> str:
        """How the backbone is quantized; "none" where it is not."""
        return str(self.data["quantization"]["scheme"])


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's canonical JSON without its `digest`."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def encode(data: Mapping[str, Any]) -> bytes:
    """A manifest as it is written."""
    return (json.dumps({**data, "digest": digest(data)}, indent=2, sort_keys=True) + "\n").encode()


def read_json(path: Path, limit: int = JSON_BYTES_MAX) -> Any:
    """A JSON file of the bundle (E4-NOENT, E9-INTEGRITY)."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise RecurosError("E4-NOENT", f"{path} is not there", hint="name the directory of a bundle") from None
    except OSError as error:
        raise RecurosError("E4-NOENT", f"{path} cannot be read: {error.strerror}") from error
    return parse_json(data, str(path), limit)


def parse_json(data: bytes, name: str, limit: int = JSON_BYTES_MAX) -> Any:
    """JSON without NaN, without a key twice, within a limit (E9-INTEGRITY)."""
    if len(data) > limit:
        raise RecurosError("E9-INTEGRITY", f"{name} is larger than {limit} bytes", hint="fetch the bundle again")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in one map")
        return found

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not a number of JSON")

    try:
        return json.loads(data.decode(), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RecurosError("E9-INTEGRITY", f"{name} is damaged: {error}", hint="fetch the bundle again") from error


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of a bundle, checked (E4-NOENT, E9-VERSION, E9-INTEGRITY)."""
    path = bundle / MANIFEST
    if not bundle.is_dir():
        raise RecurosError("E4-NOENT", f"{bundle} is not a directory", hint="name the directory of a bundle")
    try:
        with path.open("rb") as file:
            raw = file.read(JSON_BYTES_MAX + 1)
    except OSError as error:
        raise RecurosError(
            "E4-NOENT", f"{bundle} has no readable {MANIFEST} ({error.strerror})", hint="name the directory of a bundle"
        ) from error
    data = parse_json(raw, str(path))
    manifest = check(data, hashlib.sha256(raw).hexdigest(), str(path))
    if raw != encode(data):
        raise _damaged(str(path), "it is not written as a manifest is")
    return manifest


def check(data: Any, bundle_id: str, name: str = MANIFEST) -> Manifest:
    """A manifest's map as a Manifest. The version is looked at first: what another major means is not known here."""
    if not isinstance(data, dict) or not isinstance(data.get("format"), dict) or data["format"].get("name") != FORMAT:
        raise RecurosError(
            "E9-VERSION", f"{name} is not the manifest of a {FORMAT}", hint="name the directory of a bundle"
        )
    major, minor = data["format"].get("major"), data["format"].get("minor")
    if major != MAJOR or not isinstance(minor, int):
        raise RecurosError(
            "E9-VERSION",
            f"{name}: format {FORMAT} {major}.{minor}; this version reads {MAJOR}.x",
            hint="use the loader of the version that wrote the bundle",
        )
    if data.get("digest") != digest(data):
        raise _damaged(name, "its digest does not match what it says")
    if missing := sorted(TOP_KEYS - data.keys()):
        raise _damaged(name, f"{missing[0]!r} is missing")
    if minor <= MINOR and (extra := sorted(data.keys() - TOP_KEYS)):
        raise _damaged(name, f"{extra[0]!r} is not a key of {MAJOR}.{minor}")
    files = _files(data["files"], name)
    capabilities = _capabilities(data["capabilities"], files, name)
    backbone, quantization = data["backbone"], data["quantization"]
    if not isinstance(backbone, dict) or not HASH_FORM.fullmatch(str(backbone.get("id"))):
        raise _damaged(name, "backbone.id is not a SHA-256")
    if not isinstance(quantization, dict) or not isinstance(quantization.get("scheme"), str):
        raise _damaged(name, "quantization.scheme is not a text")
    for needed in (CONFIG, REPORT, BACKBONE, BACKBONE_CONFIG):
        if needed not in files:
            raise _damaged(name, f"files does not list {needed}")
    return Manifest(data, bundle_id, capabilities, files)


def _damaged(name: str, what: str) -> RecurosError:
    return RecurosError("E9-INTEGRITY", f"{name} is damaged: {what}", hint="fetch the bundle again")


def _files(value: Any, name: str) -> dict[str, tuple[str, int]]:
    if not isinstance(value, dict) or not 0 < len(value) <= FILES_MAX:
        raise _damaged(name, f"files is not a map of 1 to {FILES_MAX} entries")
    found = {}
    for path, entry in value.items():
        if not PATH_FORM.fullmatch(path) or ".." in path.split("/") or "." in path.split("/") or path == MANIFEST:
            raise _damaged(name, f"{path!r:.100} is not a path inside a bundle")
        match entry:
            case {"sha256": str(sha), "bytes": int(size)} if HASH_FORM.fullmatch(sha) and size >= 0 and len(entry) == 2:
                found[path] = (sha, size)
            case _:
                raise _damaged(name, f"files[{path!r}] is not {{sha256, bytes}}")
    return found


def _capabilities(value: Any, files: Mapping[str, Any], name: str) -> dict[str, Capability]:
    if not isinstance(value, dict):
        raise _damaged(name, "capabilities is not a map")
    found = {}
    for key, entry in value.items():
        if not NAME_FORM.fullmatch(key) or not isinstance(entry, dict):
            raise _damaged(name, f"{key!r:.60} is not a capability")
        about: dict[str, Any] = dict.fromkeys(("adapter", "rank", "tier", "gated")) | entry
        adapter, rank, tier, gated = about["adapter"], about["rank"], about["tier"], about["gated"]
        well_formed = (
            adapter in (adapter_path(key), "")
            and isinstance(rank, int)
            and isinstance(gated, bool)
            and tier in TIERS
            and gated == (tier == 3)
            and not (gated and not adapter)
        )
        if not well_formed:
            raise _damaged(name, f"capability {key!r}: adapter, rank, tier and gated do not fit together")
        towers = [about.get(end, "") for end in TOWERS]
        if towers != ["", ""] and towers != [tower_path(end, key) for end in TOWERS]:
            raise _damaged(name, f"capability {key!r}: encoder and decoder do not fit together")
        if missing := [path for path in (adapter, *towers) if path and path not in files]:
            raise _damaged(name, f"files does not list {missing[0]}")
        found[key] = Capability(key, adapter, rank, tier, gated, entry)
    return found
