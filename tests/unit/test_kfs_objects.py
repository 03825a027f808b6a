from __future__ import annotations

import subprocess
import sys

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kfs.objects import ITEM_BYTES, NewObject, blob, id_of, is_object_id, object_id
from syscalls.errors import RecurosError


def test_id_is_blake3_over_the_documented_encoding() -> None:
    data = bytes(range(24))
    expected = blake3(b"recuros kfs object 1\nF32 2 3\n" + data).hexdigest()
    assert object_id("F32", (2, 3), data) == f"b3:{expected}"


def test_known_ids_never_change() -> None:
    assert object_id("U8", (0,), b"") == "b3:" + blake3(b"recuros kfs object 1\nU8 0\n").hexdigest()
    assert (
        object_id("F32", (), b"\0\0\x80\x3f") == "b3:" + blake3(b"recuros kfs object 1\nF32\n\0\0\x80\x3f").hexdigest()
    )


def test_same_bytes_under_another_dtype_or_shape_have_another_id() -> None:
    data = bytes(8)
    forms = [("U8", (8,)), ("U8", (2, 4)), ("U8", (4, 2)), ("I8", (8,)), ("F32", (2,)), ("I64", (1,)), ("I64", ())]
    assert len({object_id(dtype, shape, data) for dtype, shape in forms}) == len(forms)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_contiguous_buffer_gives_the_same_id(make: type) -> None:
    data = bytes(range(16))
    assert object_id("F32", (4,), make(data)) == object_id("F32", (4,), memoryview(data).cast("f"))


def test_a_length_that_is_not_the_shapes_is_refused_with_both_numbers() -> None:
    with pytest.raises(RecurosError, match=r"F32 of shape \[2, 3\] takes 24 bytes; the buffer has 23"):
        object_id("F32", (2, 3), bytes(23))


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("F3", (1,), b"a"),
        ("U8", (-1,), b""),
        ("U8", (True,), b"a"),
        ("U8", (1,) * 33, b"a"),
        ("U8", (2,), memoryview(b"abcd")[::2]),
    ],
)
def test_what_cannot_be_an_object_is_refused(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(RecurosError) as caught:
        object_id(dtype, shape, data)
    assert caught.value.code == "E2-LIMIT"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RecurosError, match="unknown object kind 'weights'"):
        id_of(NewObject("U8", (1,), b"a", "weights"))


def test_a_blob_is_u8_of_its_length() -> None:
    item = blob(b"abc", "report")
    assert (item.dtype, item.shape) == ("U8", (3,))


@given(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 4), max_size=4))
def test_every_dtype_and_shape_gives_a_well_formed_id(dtype: str, shape: list[int]) -> None:
    length = ITEM_BYTES[dtype]
    for size in shape:
        length *= size
    assert is_object_id(object_id(dtype, shape, bytes(length)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b3:",
        "b3:" + "0" * 63,
        "b3:" + "0" * 65,
        "b3:" + "A" * 64,
        "sha256:" + "0" * 64,
        "b3:" + "0" * 64 + "\n",
        3,
        None,
    ],
)
def test_what_is_not_an_id_is_not_taken_for_one(text: object) -> None:
    assert not is_object_id(text)


def test_the_record_module_loads_no_hash_library() -> None:
    banned = {"blake3", "cryptography", "numpy", "torch", "safetensors"}
    code = f"import kfs.records, sys; sys.exit(str({banned} & set(sys.modules)) if {banned} & set(sys.modules) else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_library_loads_neither_torch_nor_numpy() -> None:
    code = "import kfs.store, kfs.verify, kfs.log, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
