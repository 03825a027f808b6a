from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes import cells as cells_module
from probes.cells import HASH_PROBES, Cells, layout, linear_bin, log2_bin, mix, read
from probes.isa import SITES_MAX, MapKind, MapSpec
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage

ALL = (
    MapSpec("a", MapKind.ARRAY, 3, fields=("x", "y", "z")),
    MapSpec("rows", MapKind.ARRAY, 2, per_site=True, label="head"),
    MapSpec("h", MapKind.HASH, 4),
    MapSpec("log", MapKind.LOG2),
    MapSpec("lin", MapKind.LINEAR, 4, low=-1.0, high=1.0, per_site=True),
    MapSpec("ring", MapKind.RING, 3),
)


def filled() -> Cells:
    cells = Cells(ALL, program="ab" * 32, sites=("student/a", "student/b"))
    cells.add(0, 1, 2.5, 0)
    cells.set(0, 2, math.inf, 0)
    cells.raise_to(1, 1, 4.0, 1)
    for key in (7, -7, 1 << 62):
        cells.add(2, key, 1.0, 0)
    for x in (0.0, 1.0, 3.0, math.nan, math.inf, 1e-300):
        cells.hist(3, x, 0)
        cells.hist(4, x, 0)
    for tag in range(5):
        cells.emit(5, tag, tag / 2, 9, 1)
    return cells


def test_a_document_restores_every_map_exactly() -> None:
    cells = filled()
    maps = read(cells.buffer)["maps"]
    other = Cells(ALL, program="ab" * 32, sites=("student/a", "student/b"))
    for n, spec in enumerate(ALL):
        other.restore(n, maps[spec.name])
    again = read(other.buffer)["maps"]
    for spec in ALL:
        for key in set(maps[spec.name]) - {"written", "taken"}:
            assert again[spec.name][key] == maps[spec.name][key], (spec.name, key)


def test_a_map_reads_as_what_was_put_in() -> None:
    document = read(filled().buffer)
    maps = document["maps"]
    assert document["program"] == "ab" * 32
    assert document["sites"] == ["student/a", "student/b"]
    assert maps["a"]["values"] == [0.0, 2.5, "inf"]
    assert maps["a"]["fields"] == ["x", "y", "z"]
    assert [row["values"] for row in maps["rows"]["rows"]] == [[0.0, 0.0], [0.0, 4.0]]
    assert maps["h"]["items"] == [[-7, 1.0], [7, 1.0], [1 << 62, 1.0]]
    assert (maps["log"]["nan"], maps["log"]["nonpositive"], maps["log"]["nans"]) == (1.0, 1.0, 1)
    assert maps["log"]["counts"][32] == 1.0
    assert maps["log"]["counts"][33] == 1.0
    assert maps["log"]["counts"][0] == maps["log"]["counts"][63] == 1.0
    assert maps["lin"]["rows"][0] | {"counts": 0} == {
        "nan": 1.0,
        "below": 0.0,
        "above": 3.0,
        "low": -1.0,
        "high": 1.0,
        "counts": 0,
    }
    assert maps["ring"]["entries"] == [[9, 1, tag, tag / 2] for tag in range(3)]
    assert (maps["ring"]["drops"], maps["ring"]["written"]) == (2, 3)


def test_a_full_hash_counts_exactly_the_keys_it_did_not_take() -> None:
    cells = Cells((MapSpec("h", MapKind.HASH, 100),))
    for key in range(150):
        cells.add(0, key * 2**40 - 2**63, 1.0, 0)
    for key in range(100):
        cells.add(0, key * 2**40 - 2**63, 1.0, 0)
    document = read(cells.buffer)["maps"]["h"]
    assert len(document["items"]) == 100
    assert document["drops"] == 50
    assert {value for _, value in document["items"]} == {2.0}


def test_a_crowded_hash_counts_drops_instead_of_searching_on() -> None:
    cells = Cells((MapSpec("h", MapKind.HASH, 1000),))
    slots = cells.layout.places[0].slots
    crowd = [key for key in range(600_000) if mix(key) & (slots - 1) == 17][: HASH_PROBES + 5]
    for key in crowd:
        cells.add(0, key, 1.0, 0)
    assert cells.counter(0, cells_module.USED) == HASH_PROBES
    assert cells.counter(0, cells_module.DROPS) == 5


@given(st.lists(st.tuples(st.sampled_from(["set", "add", "raise_to", "get"]), st.integers(-4, 4), st.floats())))
def test_a_hash_is_a_bounded_dictionary(steps: list[tuple[str, int, float]]) -> None:
    cells, model, nans, drops = Cells((MapSpec("h", MapKind.HASH, 4),)), dict[int, float](), 0, 0
    for name, key, value in steps:
        if name == "get":
            assert cells.get(0, key, 0) == model.get(key, 0.0)
            continue
        getattr(cells, name)(0, key, value, 0)
        if math.isnan(value):
            nans += 1
        elif key not in model and len(model) == 4:
            drops += 1
        else:
            old = model.setdefault(key, 0.0)
            new = {"set": value, "add": old + value, "raise_to": max(old, value)}[name]
            nans += math.isnan(new)
            model[key] = old if math.isnan(new) else new
    document = read(cells.buffer)["maps"]["h"]
    assert (document["nans"], document["drops"]) == (nans, drops)
    assert [(k, float(v)) for k, v in document["items"]] == sorted(model.items())


def test_a_site_beyond_the_last_row_is_a_counted_drop() -> None:
    cells = Cells(ALL)
    cells.add(1, 0, 1.0, SITES_MAX)
    cells.hist(4, 0.5, SITES_MAX + 7)
    assert cells.get(1, 0, SITES_MAX) == 0.0
    assert (cells.counter(1, 1), cells.counter(4, 1)) == (1, 1)


def test_a_ring_drops_while_full_and_takes_again_when_drained() -> None:
    cells = Cells((MapSpec("r", MapKind.RING, 3),))
    for tag in range(10):
        cells.emit(0, tag, 1.0, 0, 0)
    assert [row[2] for row in cells.take(0)] == [0, 1, 2]
    for tag in range(10, 12):
        cells.emit(0, tag, math.nan, 0, 0)
    assert [row[2] for row in cells.take(0)] == [10, 11]
    assert cells.counter(0, cells_module.DROPS) == 7
    assert cells.counter(0, cells_module.NANS) == 2
    assert cells.take(0) == []


def test_an_addition_that_makes_a_nan_is_counted_and_not_stored() -> None:
    cells = Cells(ALL)
    cells.add(0, 0, math.inf, 0)
    cells.add(0, 0, -math.inf, 0)
    assert cells.get(0, 0, 0) == math.inf
    assert cells.counter(0, cells_module.NANS) == 1


@given(st.floats(min_value=5e-324))
def test_log2_bins_are_floors_of_the_logarithm(x: float) -> None:
    exponent = math.frexp(x)[1] - 1 if math.isfinite(x) else 31
    assert log2_bin(x) == 2 + max(-32, min(31, exponent)) + 32


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.integers(1, 40), st.floats())
def test_linear_bins_stay_inside_the_histogram(low: float, high: float, size: int, x: float) -> None:
    if low < high:
        with_zero = math.isinf(size / (high - low))
        place = layout((MapSpec("l", MapKind.LINEAR, size, low=low, high=high),)).places[0]
        bin_ = linear_bin(x, place)
        assert 0 <= bin_ <= size + 2
        if low <= x < high and not with_zero:
            assert 2 <= bin_ < 2 + size


def test_a_reader_never_sees_half_of_a_firing() -> None:
    page = WritePage(layout((MapSpec("a", MapKind.ARRAY, 2),)).total)
    cells, stop, seen = Cells((MapSpec("a", MapKind.ARRAY, 2),), page.view), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            document = read(page.view)["maps"]["a"]
            if not document["torn"]:
                seen.append(document["values"])

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(20_000):
        cells.begin((0,))
        cells.add(0, 0, 1.0, 0)
        cells.add(0, 1, 1.0, 0)
        cells.end((0,))
    stop.set()
    reader.join()
    assert all(a == b for a, b in seen)
    cells.close()
    page.close()


def test_a_firing_that_never_ends_is_reported_as_torn() -> None:
    cells = filled()
    cells.begin((0,))
    maps = read(cells.buffer)["maps"]
    assert maps["a"]["torn"]
    assert not maps["h"]["torn"]


def test_maps_live_in_a_page_that_others_read() -> None:
    page = WritePage(layout(ALL).total)
    cells = Cells(ALL, page.view)
    reader = ReadPage(os.dup(page.fd), page.size)
    cells.add(0, 0, 3.0, 0)
    assert read(reader.view)["maps"]["a"]["values"][0] == 3.0
    reader.close()
    cells.close()
    page.close()


@settings(max_examples=200)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_buffer_is_refused_or_read_never_worse(at: int, value: int) -> None:
    data = bytearray(filled().buffer)
    data[at] = value
    found = ""
    try:
        read(data)
    except RecurosError as e:
        found = e.code
    assert found in ("", "E9-INTEGRITY")


@pytest.mark.parametrize(
    "data", [b"", b"OBMC", bytes(64), b"OBMC" + struct.pack("<HHQI", 1, 1, 1 << 60, 5) + bytes(200)]
)
def test_other_bytes_are_not_maps(data: bytes) -> None:
    with pytest.raises(RecurosError) as caught:
        read(data)
    assert caught.value.code == "E9-INTEGRITY"


def test_a_document_of_another_map_is_not_restored() -> None:
    cells = filled()
    maps = read(cells.buffer)["maps"]
    for number, document in (
        (0, maps["h"]),
        (0, {}),
        (2, maps["h"] | {"items": [["x", 1]]}),
        (3, maps["log"] | {"counts": [1]}),
    ):
        with pytest.raises(RecurosError) as caught:
            cells.restore(number, document)
        assert caught.value.code == "E2-LIMIT"


def test_a_buffer_that_is_too_small_or_read_only_is_refused() -> None:
    for buffer in (bytearray(64), bytes(1 << 20)):
        with pytest.raises(RecurosError):
            Cells(ALL, buffer)


def test_the_reader_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, probes.cells; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
