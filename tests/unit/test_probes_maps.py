import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.maps import Array, BoundedHash, Histogram, Map, Table
from syscalls.errors import RecurosError

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def _through_json(source: Map, empty: Map) -> Map:
    empty.load(json.loads(json.dumps(source.to_dict(), allow_nan=False)))
    return empty


@given(st.lists(st.tuples(st.integers(-1, 5), FLOATS)))
def test_array_counts_drops_and_nans_and_survives_json(writes):
    held = Array(4)
    for index, value in writes:
        held.add(index, value)
    assert held.drops == sum(not 0 <= i < 4 for i, _ in writes)
    # A sum of opposite infinities is NaN inside the cell; it is written as text, so it survives too.
    assert repr(_through_json(held, Array(4)).to_dict()) == repr(held.to_dict())


@given(st.lists(st.tuples(st.sampled_from("abcdef"), FLOATS)))
def test_table_keeps_the_first_rows_and_counts_the_rest(writes):
    held = Table(("sum", "max"), rows_max=3)
    for row, value in writes:
        held.add(row, sum=value)
        held.raise_to(row, max=value)
    order = list(dict.fromkeys(row for row, _ in writes))
    assert list(held.rows) == order[:3]
    assert held.drops == 2 * sum(row not in order[:3] for row, _ in writes)
    for row in order[:3]:
        seen = [v for r, v in writes if r == row and not math.isnan(v)]
        assert held.get(row)["max"] == max([0.0, *seen])
    copy = _through_json(held, Table(("sum", "max"), rows_max=3))
    assert repr(copy.to_dict()) == repr(held.to_dict())


def test_a_nan_never_wipes_out_an_accumulator():
    held = Table(("sum",))
    for value in (1.0, math.nan, 2.0):
        held.add("layer", sum=value)
    assert held.get("layer") == {"sum": 3.0}
    assert held.nans == 1


@given(st.lists(FLOATS))
def test_linear_histogram_counts_every_value_exactly_once(values):
    held = Histogram(10, -1.0, 1.0)
    for value in values:
        held.add(value)
    assert sum(held.counts) + held.below + held.above + held.nans == len(values)
    assert held.nans == sum(math.isnan(v) for v in values)
    assert held.below == sum(v < -1 for v in values)
    assert held.above == sum(v >= 1 for v in values)
    assert _through_json(held, Histogram(10, -1.0, 1.0)).to_dict() == held.to_dict()


@given(st.floats(2.0**-8, 2.0**8, exclude_max=True))
def test_log2_histogram_has_one_bin_per_octave(value):
    held = Histogram(16, 2.0**-8, 2.0**8, scale="log2")
    held.add(value)
    index = list(held.counts).index(1)
    low, high = held.edges()[index : index + 2]
    assert low * (1 - 1e-12) <= value <= high * (1 + 1e-12)


def test_counts_binned_by_the_caller_fold_into_a_histogram_of_as_many_bins():
    held = Histogram(3, 0, 1)
    held.add(0.5)
    held.add_counts([1, 2, 3], below=4, above=5, nans=6)
    assert (list(held.counts), held.below, held.above, held.nans) == ([1, 3, 3], 4, 5, 6)
    with pytest.raises(RecurosError):
        held.add_counts([1, 2])


def test_a_full_hash_counts_new_keys_as_drops_and_keeps_serving_old_ones():
    held = BoundedHash(2)
    for key in ("a", 7, "c", "a", "d"):
        held.add(key)
    assert (held.get("a"), held.get(7), held.get("c"), held.drops, len(held)) == (2, 1, None, 2, 2)
    assert _through_json(held, BoundedHash(2)).to_dict() == held.to_dict()


@pytest.mark.parametrize(
    ("source", "into"),
    [
        (Array(3), Array(4)),
        (Array(3), BoundedHash(3)),
        (Histogram(4, 0, 1), Histogram(4, 0, 2)),
        (Histogram(4, 0, 1), Histogram(5, 0, 1)),
        (Table(("a",)), Table(("b",))),
    ],
)
def test_a_map_of_another_shape_is_refused(source, into):
    with pytest.raises(RecurosError) as caught:
        into.load(source.to_dict())
    assert caught.value.code == "E2-LIMIT"


@pytest.mark.parametrize("size", [0, -1, 1 << 21])
def test_sizes_are_bounded(size):
    with pytest.raises(RecurosError):
        Array(size)
