"""Pages: sealed memory whose readers cannot write, and headers that may lie."""

# ruff: noqa: PT017 - in a property an error is one of two right outcomes
from __future__ import annotations

import fcntl
import mmap
import os
import signal
import subprocess
import sys
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscalls import limits, pages
from syscalls.errors import RecurosError
from syscalls.pages import SEALS, ReadPage, WritePage, check_seals, pack_arrays, unpack_arrays

SIZE = 4096


@pytest.fixture
def page() -> Any:
    made = WritePage(SIZE)
    yield made
    made.close()


def test_a_page_has_the_three_seals_and_its_writer_keeps_its_mapping(page: WritePage) -> None:
    assert fcntl.fcntl(page.fd, pages.F_GET_SEALS) & SEALS == SEALS
    page.view[:5] = b"hello"
    reader = ReadPage(os.dup(page.fd), SIZE)
    assert bytes(reader.view[:5]) == b"hello"
    page.view[:5] = b"later"
    assert bytes(reader.view[:5]) == b"later"
    reader.close()


def test_a_reader_gets_no_writable_mapping_and_no_write(page: WritePage) -> None:
    with pytest.raises(PermissionError):
        mmap.mmap(page.fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.pwrite(page.fd, b"x", 0)
    reopened = os.open(f"/proc/self/fd/{page.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(reopened, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(reopened)
    reader = ReadPage(os.dup(page.fd), SIZE)
    with pytest.raises(TypeError):
        reader.view[0] = 1
    reader.close()


def test_a_page_neither_shrinks_nor_grows(page: WritePage) -> None:
    for size in (0, SIZE // 2, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(page.fd, size)


HOSTILE = """
import ctypes, mmap, sys
fd, size, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
at = libc.mmap(None, size, 1, 1, fd, 0)
if how == "mprotect":
    assert libc.mprotect(at, size, 3) == -1, "mprotect made a page writable"
    sys.exit(40 + ctypes.get_errno())
if how == "remove":
    assert libc.madvise(at, size, 9) == -1, "MADV_REMOVE emptied a page"
    sys.exit(40 + ctypes.get_errno())
if how == "punch":
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    assert libc.fallocate(fd, 3, 0, size) == -1, "fallocate emptied a page"
    sys.exit(40 + ctypes.get_errno())
ctypes.memmove(at, b"overwritten", 11)
"""


def hostile(page: WritePage, how: str) -> int:
    code = [sys.executable, "-c", HOSTILE, str(page.fd), str(SIZE), how]
    return subprocess.run(code, pass_fds=(page.fd,), check=False, timeout=60).returncode


def test_a_write_through_a_readers_mapping_faults_the_reader_and_nobody_else(page: WritePage) -> None:
    page.view[:8] = b"original"
    assert hostile(page, "write") == -signal.SIGSEGV
    assert bytes(page.view[:8]) == b"original"


@pytest.mark.parametrize(("how", "errno"), [("mprotect", 13), ("remove", 13), ("punch", 1)])
def test_a_reader_cannot_make_its_mapping_writable_or_empty(page: WritePage, how: str, errno: int) -> None:
    page.view[:8] = b"original"
    assert hostile(page, how) == 40 + errno
    assert bytes(page.view[:8]) == b"original"


def test_what_is_not_a_sealed_memfd_is_refused(tmp_path: Any) -> None:
    plain = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    bare = os.memfd_create("bare", os.MFD_ALLOW_SEALING)
    os.ftruncate(bare, SIZE)
    read_end, write_end = os.pipe()
    try:
        for fd in (plain, bare, read_end):
            with pytest.raises(RecurosError) as caught:
                check_seals(fd)
            assert caught.value.code == "E2-WIRE"
        fcntl.fcntl(bare, pages.F_ADD_SEALS, pages.F_SEAL_SHRINK | pages.F_SEAL_GROW)
        with pytest.raises(RecurosError, match="lacks seals"):
            check_seals(bare)
        fcntl.fcntl(bare, pages.F_ADD_SEALS, pages.F_SEAL_FUTURE_WRITE)
        assert check_seals(bare) == SIZE
    finally:
        for fd in (plain, bare, read_end, write_end):
            os.close(fd)


def test_an_empty_sealed_memfd_is_refused() -> None:
    fd = os.memfd_create("empty", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, pages.F_ADD_SEALS, SEALS)
    with pytest.raises(RecurosError) as caught:
        check_seals(fd)
    os.close(fd)
    assert caught.value.code == "E2-LIMIT"


@pytest.mark.parametrize("size", [0, -1, limits.PAGE_BYTES_MAX + 1])
def test_a_page_over_the_limit_is_not_made(size: int) -> None:
    with pytest.raises(RecurosError) as caught:
        WritePage(size)
    assert caught.value.code == "E2-LIMIT"


def test_closing_a_page_leaves_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        made = pack_arrays([("a", "U8", (3,), b"abc")])
        ReadPage(os.dup(made.fd), made.size).close()
        made.close()
    assert set(os.listdir("/proc/self/fd")) == before


# --- arrays ---------------------------------------------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    made = []
    for name in draw(st.lists(st.text(alphabet="ab/0", min_size=1, max_size=6), max_size=5, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(pages.ITEM_BYTES))), draw(shapes)
        size = pages.ITEM_BYTES[dtype]
        for n in shape:
            size *= n
        made.append((name, dtype, shape, draw(st.binary(min_size=size, max_size=size))))
    return made


@given(rows(), st.dictionaries(st.text(max_size=5), st.integers(-9, 9) | st.text(max_size=5), max_size=3))
def test_arrays_round_trip(arrays: list[tuple[str, str, tuple[int, ...], bytes]], meta: dict[str, Any]) -> None:
    made = pack_arrays(arrays, meta)
    reader = ReadPage(os.dup(made.fd), made.size)
    found, told = unpack_arrays(reader.view)
    assert told == meta
    assert [(n, a.dtype, a.shape, bytes(a.data)) for n, a in found.items()] == arrays
    assert all(a.data.readonly for a in found.values())
    del found
    reader.close()
    made.close()


def test_arrays_are_aligned_for_any_vector_unit() -> None:
    made = pack_arrays([("a", "U8", (3,), b"abc"), ("b", "F64", (2,), bytes(16))], {"k": "v" * 100})
    found, _ = unpack_arrays(made.view)
    base = int.from_bytes(made.view[:8], "little") + 8
    for array in found.values():
        start = bytes(made.view).find(bytes(array.data), base)
        assert array.data.nbytes
        assert start >= base
    offsets = [row[3] for row in msgpack.unpackb(bytes(made.view[8:base]))[1]]
    assert all(offset % pages.ALIGN == 0 for offset in offsets)
    del found, array
    made.close()


def page_of(header: Any, *, length: int | None = None, body: int = 64) -> memoryview:
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    start = -(-(8 + len(packed)) // pages.ALIGN) * pages.ALIGN
    data = bytearray(start + body)
    data[:8] = (len(packed) if length is None else length).to_bytes(8, "little")
    data[8 : 8 + len(packed)] = packed
    return memoryview(data)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b""),
        memoryview(b"short"),
        page_of([{}, []], length=1 << 40),
        page_of([{}, []], length=0),
        page_of(b"\xc1\xc1\xc1"),
        page_of(b"\x92\x80"),
        page_of("text"),
        page_of([{}]),
        page_of([[], []]),
        page_of([{}, {}]),
        page_of([{}, 7]),
        page_of([{}, [[]]]),
        page_of([{}, [["a", "U8", [1], 0]]]),
        page_of([{}, [[1, "U8", [1], 0, 1]]]),
        page_of([{}, [["a", 8, [1], 0, 1]]]),
        page_of([{}, [["a", "U8", 1, 0, 1]]]),
        page_of([{}, [["a", "U8", ["1"], 0, 1]]]),
        page_of([{}, [["a", "U8", [-1], 0, -1]]]),
        page_of([{}, [["a", "U8", [1], -1, 1]]]),
        page_of([{}, [["a", "U8", [1], "0", 1]]]),
        page_of([{}, [["a", "U8", [65], 0, 65]]]),
        page_of([{}, [["a", "U8", [1], 64, 1]]]),
        page_of([{}, [["a", "U8", [1], 1 << 62, 1]]]),
        page_of([{}, [["a", "F32", [1000], 0, 4]]]),
        page_of([{}, [["a", "F32", [1], 0, 3]]]),
        page_of([{}, [["a", "PICKLE", [1], 0, 1]]]),
        page_of([{}, [["a", "F32", [1 << 40, 1 << 40], 0, 4]]]),
        page_of(b"\x91" * 50),
    ],
    ids=range(28),
)
def test_a_header_that_lies_is_refused(view: memoryview) -> None:
    with pytest.raises(RecurosError) as caught:
        unpack_arrays(view)
    assert caught.value.code == "E2-WIRE"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_page_or_refused(data: bytes) -> None:
    try:
        unpack_arrays(memoryview(data))
    except RecurosError as error:
        assert error.code == "E2-WIRE"


@given(st.binary(max_size=60), st.integers(0, 70))
def test_any_header_is_read_or_refused(header: bytes, length: int) -> None:
    try:
        unpack_arrays(page_of(header, length=length))
    except RecurosError as error:
        assert error.code == "E2-WIRE"
