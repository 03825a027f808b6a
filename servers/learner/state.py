"""Leaves: the tensors and blobs a snapshot is made of.

Responsible for: bytes that do not change after capture, their ids, and the way back into a tensor. Refuses: a leaf whose dtype
or shape is not the one expected (E9-INTEGRITY, naming the path).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kfs.objects import object_id
from syscalls.errors import RecurosError

DTYPES: dict[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


class Leaf:
    """A dtype (safetensors name), a shape and little-endian bytes that nobody writes to again; the id is computed once."""

    __slots__ = ("_id", "data", "dtype", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        self.dtype = dtype
        self.shape = shape
        self.data = data
        self._id = ""

    @property
    def id(self) -> str:
        """The object id in the knowledge file system."""
        if not self._id:
            self._id = object_id(self.dtype, self.shape, self.data)
        return self._id


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor as a flat view; nothing is copied."""
    if tensor.numel() == 0:
        return memoryview(b"")
    flat: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def host_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy in host memory that nobody else holds."""
    if tensor.device.type == "cpu":
        return tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensor.detach().contiguous().cpu()


def leaf_of(tensor: Tensor) -> Leaf:
    """A copy of `tensor` as a leaf."""
    copy = host_copy(tensor)
    return Leaf(DTYPES[copy.dtype], tuple(copy.shape), byte_view(copy))


class Bytes(Protocol):
    """What a leaf, an array in a page and a stored object have in common."""

    @property
    def dtype(self) -> str:
        """Name as in safetensors."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def data(self) -> memoryview:
        """The bytes, little-endian, C order."""
        ...


def tensor_of(leaf: Bytes) -> Tensor:
    """A fresh tensor, at an aligned address, with these bytes."""
    target = torch.empty(leaf.shape, dtype=TORCH_DTYPES[leaf.dtype])
    if target.numel():
        byte_view(target)[:] = leaf.data
    return target


def copy_into(target: Tensor, leaves: Mapping[str, Leaf], path: str) -> None:
    """Overwrite a contiguous tensor with the leaf at `path`; E9-INTEGRITY when it is missing or of another form."""
    leaf = leaves.get(path)
    if leaf is None:
        raise RecurosError("E9-INTEGRITY", f"the snapshot has no {path}", hint="recuros kfs verify")
    if leaf.dtype != DTYPES[target.dtype] or tuple(leaf.shape) != tuple(target.shape):
        raise RecurosError(
            "E9-INTEGRITY",
            f"{path} is {leaf.dtype} {list(leaf.shape)}; the model needs {DTYPES[target.dtype]} {list(target.shape)}",
            hint="boot with the manifest this run directory was made with",
        )
    if target.device.type != "cpu":
        target.copy_(tensor_of(leaf))
    elif target.numel():
        byte_view(target)[:] = leaf.data


def blob_of(value: Any) -> Leaf:
    """A JSON-able value as a leaf: U8 of its canonical JSON (floats round-trip exactly)."""
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return Leaf("U8", (len(data),), memoryview(data))


def value_of(leaves: Mapping[str, Leaf], path: str) -> Any:
    """Inverse of `blob_of`, from the leaf at `path`; E9-INTEGRITY when it is missing or unreadable."""
    try:
        return json.loads(bytes(leaves[path].data))
    except (KeyError, ValueError) as error:
        raise RecurosError("E9-INTEGRITY", f"the snapshot has no readable {path}", hint="recuros kfs verify") from error
