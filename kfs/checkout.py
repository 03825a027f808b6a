"""A role of a snapshot as a model directory.

Responsible for: model.safetensors, config.json, the tokenizer's files and a note of where it all comes from, out of the store
alone: tensors and architecture are in the snapshot, the tokenizer in the papers of the run. Refuses: a directory that holds
anything; leaving a part of one behind (it is written beside and renamed).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kfs.files import Files
from kfs.layout import TEMP_PREFIX
from kfs.objects import ITEM_BYTES, byte_view
from kfs.records import RecordKind
from kfs.replay import papers
from kfs.store import Store, Stored
from kfs.tell import Tell, counted, silent
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

ROLES: Final = ("student", "teacher", "ema")
ARCHITECTURES: Final = "policy/roles/state"
CURSOR: Final = "cursor/engine/state"
COUNT_AT_ONCE: Final = 1 << 20
MINUS_ZERO: Final = 1 << 31
NOTE: Final = "checkout.json"
_ALIGN: Final = 8


def checkout(
    store: Store, root: str, target: Path, role: str = "student", files: Files | None = None, tell: Tell = silent
) -> dict[str, Any]:
    """Write the directory; returns the note in it. E2-USAGE for a target in use, E4-NOENT for a role that is not there."""
    files = files or Files()
    _check_target(target)
    leaves = store.snapshot(root)
    architecture = _architecture(store, leaves, root, role)
    tensors = tensors_of(leaves, role)
    if not tensors:
        raise RecurosError("E4-NOENT", f"snapshot {root} has no role {role!r}", hint=f"--role {' | '.join(ROLES)}")
    commit_seq, config = _origin(store, root)
    extra = (papers(store, config) or {}).get("files", {})
    note = {
        "snapshot": root,
        "role": role,
        "record": commit_seq,
        "store": store.format.store_id,
        "papers": config,
        "architecture": {k: v for k, v in architecture.items() if k != "config"},
        "load": _how_to_load(architecture),
        "tensors": len(tensors),
        "form": form_of(store, leaves, tensors, role, tell),
        "files": ["model.safetensors", "config.json", *sorted(extra), NOTE],
    }
    temp = target.parent / f"{TEMP_PREFIX}{os.urandom(8).hex()}"
    try:
        files.make_folder(temp)
        _write(files, temp / "model.safetensors", _safetensors(store, tensors))
        _write(files, temp / "config.json", [_text(_config(architecture))])
        for name, object_id in extra.items():
            _write(files, temp / _plain_name(name), [store.get(object_id).data])
        _write(files, temp / NOTE, [_text(note)])
        os.rename(temp, target)
        files.sync_folder(target.parent)
    except OSError as e:
        raise RecurosError(
            "E2-USAGE", f"{target} cannot be written: {e.strerror}", hint="give another directory"
        ) from e
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temp)
    return note


def tensors_of(leaves: Mapping[str, str], role: str) -> dict[str, str]:
    """Parameter name -> object id of a role; the moving average lacks buffers, and takes the student's."""
    found = {name: ref for name, ref in _named(leaves, role)}
    if role == "ema" and found:
        found = {name: ref for name, ref in _named(leaves, "student") if name not in found} | found
    return dict(sorted(found.items()))


def form_of(
    store: Store, leaves: Mapping[str, str], tensors: Mapping[str, str], role: str, tell: Tell = silent
) -> dict[str, Any]:
    """What pruning left: {"kind": dense | sparse | smaller | "smaller, sparse", "parameters", "zeros", "removed"}.

    Sparse is a tenth of zeros or more: they are written as zeros, so that the file is as large as before. Smaller is what has lost heads or
    neurons: the tensors themselves are smaller.
    """
    stored = [store.get(ref) for ref in counted(tensors.values(), "tensors read", len(tensors), tell)]
    floats = [s for s in stored if s.dtype == "F32"]
    zeros = sum(_zeros(s.data) for s in counted(floats, "zeros counted", len(floats), tell))
    parameters = sum(s.data.nbytes // ITEM_BYTES[s.dtype] for s in stored)
    removed = {"heads": 0, "neurons": 0, "parameters": 0}
    if role != "teacher" and CURSOR in leaves:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            removed |= json.loads(bytes(store.get(leaves[CURSOR]).data))["pruning"]["removed"]
    kinds = [k for k, holds in (("smaller", removed["parameters"]), ("sparse", zeros * 10 >= parameters)) if holds]
    return {"kind": ", ".join(kinds) or "dense", "parameters": parameters, "zeros": zeros, "removed": removed}


def _zeros(data: Buffer) -> int:
    """Float32 numbers that are zero, of either sign."""
    words = byte_view(data).cast("I")
    found = 0
    for at in range(0, len(words), COUNT_AT_ONCE):
        part = words[at : at + COUNT_AT_ONCE].tolist()
        found += part.count(0) + part.count(MINUS_ZERO)
    return found


def _named(leaves: Mapping[str, str], role: str) -> list[tuple[str, str]]:
    """`student/blocks.0.attn/weight` -> `blocks.0.attn.weight`; the root module is called "."."""
    found = []
    for path, ref in leaves.items():
        own, module, tensor = path.split("/")
        if own == role:
            found.append((tensor if module == "." else f"{module}.{tensor}", ref))
    return found


def _check_target(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise RecurosError("E2-USAGE", f"{target} exists and is no directory", hint="give a new directory")
    if target.is_dir() and any(target.iterdir()):
        raise RecurosError("E2-USAGE", f"{target} is not empty; nothing is overwritten", hint="give a new directory")
    if not target.parent.is_dir():
        raise RecurosError("E2-USAGE", f"{target.parent} is no directory", hint=f"mkdir -p {target.parent}")


def _architecture(store: Store, leaves: Mapping[str, str], root: str, role: str) -> dict[str, Any]:
    if role not in ROLES:
        raise RecurosError("E2-USAGE", f"no role is called {role!r}", hint=f"one of {', '.join(ROLES)}")
    if ARCHITECTURES not in leaves:
        raise RecurosError(
            "E4-NOENT",
            f"snapshot {root} does not hold {ARCHITECTURES}, so nobody knows its models",
            hint="recuros kfs ls ID",
        )
    try:
        found = json.loads(bytes(store.get(leaves[ARCHITECTURES]).data))
        architecture: dict[str, Any] = found["student" if role == "ema" else role]
    except (ValueError, KeyError, TypeError) as e:
        raise RecurosError("E9-INTEGRITY", f"{ARCHITECTURES} of snapshot {root} is malformed: {e}") from e
    return architecture


def _origin(store: Store, root: str) -> tuple[int, str]:
    """The first commit whose result is this snapshot, and the papers of its run; (-1, "") when no commit is."""
    for record in store.records():
        if record.kind is RecordKind.WINDOW_COMMIT and record.result_snap == root:
            return record.seq, (record.args.get("inputs") or {}).get("config", "")
    return -1, ""


def _config(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers reads for its own models; for a built-in one, the architecture under a name that says whose it is."""
    if isinstance(architecture.get("config"), dict):
        return dict(architecture["config"])
    return {"model_type": f"recuros-{architecture.get('kind', '')}", "architecture": dict(architecture)}


def _how_to_load(architecture: Mapping[str, Any]) -> str:
    if not isinstance(architecture.get("config"), dict):  # built in, not one of transformers
        if architecture.get("kind") == "watched":
            return f"safetensors.torch.load_file(DIR/model.safetensors), into your {architecture.get('class')}"
        return "servers.models.registry.from_checkout(DIR)"
    head = "AutoModelForCausalLM" if architecture.get("task") == "causal-lm" else "AutoModelForSequenceClassification"
    return f"transformers.{head}.from_pretrained(DIR)"


def _safetensors(store: Store, tensors: Mapping[str, str]) -> list[Buffer]:
    """The buffers of a safetensors file; tensors in falling item size, so that each is aligned for its dtype."""
    found: list[tuple[str, Stored]] = [(name, store.get(ref)) for name, ref in tensors.items()]
    found.sort(key=lambda pair: (-ITEM_BYTES[pair[1].dtype], pair[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, stored in found:
        length = stored.data.nbytes
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    return [len(text).to_bytes(8, "little") + text, *(byte_view(stored.data) for _, stored in found)]


def _write(files: Files, path: Path, buffers: list[Buffer]) -> None:
    files.publish(files.write_temp(path.parent, buffers), path)


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _plain_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise RecurosError("E9-INTEGRITY", f"the papers name a file {name!r:.80}, which is no plain name")
    return name
