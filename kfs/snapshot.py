"""Snapshots as manifest trees: root -> role -> module -> tensor.

Responsible for: the bytes of every tree node, so that whoever holds the same tensors computes the same root id, with no store
at hand. Unchanged subtrees keep their ids, so a role swap is one new root over shared subtrees. Refuses: paths that are not
`role/module.path/tensor`, and nodes that are not in the one canonical encoding.

A node is msgpack `[1, level, {name: id, ...}]` with level "root", "role" or "module" and the names in ascending order of
their UTF-8 bytes; it is stored as a blob (U8 of shape [n]).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgpack

from kfs.ids import is_object_id
from kfs.objects import object_id
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

NODE_VERSION: Final = 1
LEVELS: Final = ("root", "role", "module")
NAME_BYTES_MAX: Final = 512

# role -> (its leaves, its id, its nodes): the last tree of each role, reused while the role does not change.
TreeCache = dict[str, tuple[dict[str, str], str, dict[str, bytes]]]


def build_tree(leaves: Mapping[str, str], cache: TreeCache | None = None) -> tuple[str, dict[str, bytes]]:
    """The tree over `leaves` (path -> object id): its root id, and every node as id -> bytes.

    `cache` is an empty dict that the caller keeps between calls; roles whose leaves did not change are not hashed again.
    """
    roles: dict[str, dict[str, str]] = {}
    for path, leaf in leaves.items():
        role, slash, rest = path.partition("/")
        if not slash:
            raise _bad_path(path)
        roles.setdefault(role, {})[rest] = leaf
    nodes: dict[str, bytes] = {}
    entries: dict[str, str] = {}
    for role, role_leaves in roles.items():
        known = cache.get(role) if cache is not None else None
        if known is not None and known[0] == role_leaves:
            _, role_id, role_nodes = known
        else:
            role_id, role_nodes = _role_tree(role, role_leaves)
            if cache is not None:
                cache[role] = (role_leaves, role_id, role_nodes)
        entries[role] = role_id
        nodes.update(role_nodes)
    return _add_node(nodes, "root", entries), nodes


def _role_tree(role: str, leaves: Mapping[str, str]) -> tuple[str, dict[str, bytes]]:
    modules: dict[str, dict[str, str]] = {}
    for rest, leaf in leaves.items():
        module, slash, tensor = rest.partition("/")
        if not slash or "/" in tensor:
            raise _bad_path(f"{role}/{rest}")
        modules.setdefault(module, {})[tensor] = leaf
    nodes: dict[str, bytes] = {}
    entries = {module: _add_node(nodes, "module", tensors) for module, tensors in modules.items()}
    return _add_node(nodes, "role", entries), nodes


def _add_node(nodes: dict[str, bytes], level: str, entries: Mapping[str, str]) -> str:
    data = encode_node(level, entries)
    node_id = object_id("U8", (len(data),), data)
    nodes[node_id] = data
    return node_id


def encode_node(level: str, entries: Mapping[str, str]) -> bytes:
    """The canonical bytes of one node; E2-LIMIT for a name or an id that cannot be one."""
    for name, entry in entries.items():
        if not name or "/" in name or len(name.encode()) > NAME_BYTES_MAX:
            raise RecurosError(
                "E2-LIMIT", f"{level} entry {name!r:.80} is empty, holds '/', or is over {NAME_BYTES_MAX} bytes"
            )
        if not is_object_id(entry):
            raise RecurosError("E2-LIMIT", f"{level} entry {name!r:.80} names {entry!r:.80}, which is not an object id")
    # Code points and UTF-8 bytes sort alike, so a plain sort of the names is the documented order.
    data: bytes = msgpack.packb([NODE_VERSION, level, dict(sorted(entries.items()))])
    return data


def decode_node(data: Buffer, level: str) -> dict[str, str]:
    """The entries of a node of that level; E9-INTEGRITY unless the bytes are exactly what `encode_node` makes."""
    raw = bytes(data)
    try:
        value = msgpack.unpackb(raw, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as e:
        raise RecurosError("E9-INTEGRITY", f"snapshot {level} node is not msgpack: {e}") from e
    match value:
        case [int(version), str(found), dict(entries)] if version == NODE_VERSION and found == level:
            names_ok = all(type(k) is str and type(v) is str for k, v in entries.items())
        case _:
            names_ok = False
    if not names_ok:
        raise RecurosError(
            "E9-INTEGRITY", f"blob of {len(raw)} bytes is not a snapshot {level} node of version {NODE_VERSION}"
        )
    try:
        canonical = encode_node(level, entries)
    except RecurosError as e:
        raise RecurosError("E9-INTEGRITY", e.message) from e
    if canonical != raw:
        raise RecurosError("E9-INTEGRITY", f"snapshot {level} node is not in its canonical encoding")
    return entries


def read_tree(root: str, get: Callable[[str], Buffer]) -> dict[str, str]:
    """Inverse of `build_tree`: path -> object id of the snapshot `root`; `get` returns the bytes of a node by id."""
    leaves: dict[str, str] = {}
    for role, role_id in decode_node(get(root), "root").items():
        for module, module_id in decode_node(get(role_id), "role").items():
            for tensor, leaf in decode_node(get(module_id), "module").items():
                leaves[f"{role}/{module}/{tensor}"] = leaf
    return leaves


def _bad_path(path: str) -> RecurosError:
    return RecurosError("E2-LIMIT", f"snapshot path {path!r:.120} is not of the form role/module.path/tensor")
