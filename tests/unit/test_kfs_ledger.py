from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfs.files import Files
from kfs.ledger import MAGIC, LedgerReader, LedgerWriter, frame
from kfs.merkle import CompactRange, leaf_hash
from syscalls.errors import RecurosError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "records"
    path.write_bytes(MAGIC)
    return path


def write(path: Path, *batches: list[bytes], signed: int = 0) -> None:
    writer = LedgerWriter(path, Files(), signed)
    for batch in batches:
        writer.append(batch)
    writer.close()


def read(path: Path) -> tuple[list[bytes], LedgerReader]:
    reader = LedgerReader(path)
    found = list(reader.records())
    reader.close()
    return found, reader


def root_of(leaves: list[bytes]) -> bytes:
    tree = CompactRange()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    return tree.root()


@pytest.mark.parametrize("chunk_bytes", range(60, 110))
def test_a_chunk_may_end_anywhere_in_a_frame(path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    records = [bytes([n]) * (n % 23) for n in range(1, 60)]
    write(path, *([record] for record in records))
    monkeypatch.setattr("kfs.ledger._CHUNK_BYTES", chunk_bytes)
    found, reader = read(path)
    assert (found, reader.damage) == (records, None)
    write(path, [b"more"])
    assert read(path)[0] == [*records, b"more"]
    path.write_bytes(path.read_bytes()[:-9])  # what is really cut off is still seen
    cut = read(path)[1].damage
    assert cut is not None
    assert (cut.seq, cut.valid_after) == (59, False)


def test_the_file_is_the_documented_bytes(path: Path) -> None:
    write(path, [b"one", b"two!"])
    assert path.read_bytes() == bytes.fromhex(
        "524b46532d4c454447455220310a0000" + "4b465346" + "0f000000" + "0000000000000000" + "02000000" + "3b410931"
        "03000000" + "6f6e65" + "04000000" + "74776f21"
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=5), max_size=8),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_what_is_appended_reads_back_with_its_root(
    tmp_path_factory, batches: list[list[bytes]], start: int, stop: int
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "records"
    path.write_bytes(MAGIC)
    leaves = [data for batch in batches for data in batch]
    write(path, *batches)
    reader = LedgerReader(path)
    assert list(reader.records()) == leaves
    assert list(reader.records(start, stop)) == leaves[start:stop]
    assert [reader.record(seq) for seq in range(reader.size)] == leaves
    assert reader.root() == root_of(leaves)
    reader.close()


def test_a_reader_sees_what_a_live_writer_appends(path: Path) -> None:
    writer = LedgerWriter(path, Files(), 0)
    reader = LedgerReader(path)
    writer.append([b"a"])
    assert reader.size == 0
    reader.refresh()
    assert list(reader.records()) == [b"a"]
    assert reader.root() == writer.root() == root_of([b"a"])
    writer.append([b"b", b"c"])
    reader.refresh()
    assert reader.root() == writer.root()
    reader.close()
    writer.close()


def test_a_ledger_larger_than_a_read_piece_reads_back(path: Path) -> None:
    dice = random.Random(3)
    batches = [[dice.randbytes(60_000) for _ in range(40)] for _ in range(5)]
    write(path, *batches)
    assert read(path)[0] == [data for batch in batches for data in batch]


@pytest.mark.parametrize("garbage", [False, True])
def test_an_unfinished_last_write_is_cut_off_and_said(path: Path, garbage: bool) -> None:
    write(path, [b"kept", b"also"])
    whole = path.read_bytes()
    torn = frame(2, [b"lost" * 30, b"lost"])
    for length in range(1, len(torn)):
        path.write_bytes(whole + torn[:length] + (bytes(len(torn) - length) if garbage else b""))
        writer = LedgerWriter(path, Files(), 2)
        assert "after record 1" in writer.notes[0]
        writer.append([b"next"])
        writer.close()
        assert read(path)[0] == [b"kept", b"also", b"next"]


def test_any_torn_mix_of_sectors_of_an_unsynced_batch_is_cut_off(path: Path) -> None:
    dice = random.Random(7)
    write(path, [b"kept"])
    whole = path.read_bytes()
    torn = frame(1, [dice.randbytes(3_000) for _ in range(4)])
    for _ in range(50):
        after = bytearray(torn)
        for sector in range(0, len(torn), 512):
            if dice.random() < 0.5:
                after[sector : sector + 512] = bytes(len(after[sector : sector + 512]))
        if bytes(after) == torn:
            continue
        path.write_bytes(whole + after)
        LedgerWriter(path, Files(), 1).close()
        assert path.read_bytes() == whole


def test_damage_before_a_valid_frame_refuses_to_open_naming_record_and_byte(path: Path) -> None:
    write(path, [b"first"], [b"second"], [b"third"])
    good = path.read_bytes()
    second = good.index(b"second")
    for position in (second, second - 5, second - 24, good.index(b"first")):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x40]) + good[position + 1 :])
        with pytest.raises(RecurosError, match="valid frames follow") as caught:
            LedgerWriter(path, Files(), 0)
        assert caught.value.code == "E9-INTEGRITY"
        assert caught.value.details["seq"] == (0 if position < second - 28 else 1)
        assert caught.value.details["offset"] <= position


def test_damage_inside_the_signed_prefix_refuses_to_open(path: Path) -> None:
    write(path, [b"first"], [b"second"])
    good = path.read_bytes()
    for bad in (good[:-1], good[:-1] + b"\0", good[: good.index(b"second") - 28], MAGIC):
        path.write_bytes(bad)
        with pytest.raises(RecurosError, match="2 records are signed"):
            LedgerWriter(path, Files(), 2)
        assert path.read_bytes() == bad


@pytest.mark.parametrize("start", [b"", MAGIC[:5], b"X" + MAGIC[1:]])
def test_a_file_that_does_not_begin_as_a_ledger_is_refused(path: Path, start: bytes) -> None:
    path.write_bytes(start)
    with pytest.raises(RecurosError, match="magic"):
        LedgerWriter(path, Files(), 0)


def test_random_bytes_never_break_the_scanner(path: Path) -> None:
    dice = random.Random(5)
    write(path, *[[dice.randbytes(40)] for _ in range(5)])
    good = path.read_bytes()
    for _ in range(300):
        data = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(MAGIC), len(data))] = dice.randrange(256)
        path.write_bytes(bytes(data) + dice.randbytes(dice.randrange(40)))
        found, reader = read(path)
        assert len(found) == reader.size <= 5


def test_a_record_outside_the_ledger_is_no_such_object(path: Path) -> None:
    reader = LedgerReader(path)
    with pytest.raises(RecurosError) as caught:
        reader.record(0)
    assert caught.value.code == "E4-NOENT"
    reader.close()
