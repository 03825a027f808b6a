"""The table: every row is served, every value is checked on the way out and on the way in."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.handlers import HANDLERS
from syscalls import abi, wire
from syscalls.abi import METHODS, SYSCALLS, Arg, Right, Row
from syscalls.errors import RecurosError
from syscalls.stubs import Stubs

ROWS = (*SYSCALLS, *METHODS)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)
plain = st.none() | st.booleans() | i64 | st.floats(allow_nan=False) | st.text(max_size=9) | st.binary(max_size=9)
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "int": i64,
    "float": st.floats(allow_nan=False) | st.integers(-1000, 1000),
    "str": st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=9),
    "bytes": st.binary(max_size=9),
    "bool": st.booleans(),
    "list": st.lists(plain, max_size=3),
    "map": st.dictionaries(st.text(alphabet="abc", max_size=5), plain, max_size=3),
    "page": st.integers(0, 1 << 40),
    "any": plain,
}
WRONG: dict[str, list[Any]] = {
    "int": [1.0, "1", True, None, b"1", [], {}, 1 << 63, -(1 << 63) - 1],
    "float": ["1", True, None, []],
    "str": [1, b"text", None, []],
    "bytes": ["text", 1, None],
    "bool": [0, 1, "yes", None],
    "list": [(1, 2), {}, "list", None],
    "map": [[], "map", None],
    "page": [1.5, True, None, "1"],
}


SAMPLE = {"int": 1, "float": 1.0, "str": "s", "bytes": b"", "bool": True, "list": [], "map": {}, "page": 1, "any": None}


def good(row: Row) -> dict[str, Any]:
    return {a.name: SAMPLE[a.kind] for a in row.args}


def named(rows: tuple[Row, ...]) -> Any:
    return pytest.mark.parametrize("row", rows, ids=[r.qualified for r in rows])


def fails(code: str, call: Any, *args: Any) -> RecurosError:
    with pytest.raises(RecurosError) as caught:
        call(*args)
    assert caught.value.code == code, caught.value
    return caught.value


@named(ROWS)
@given(st.data())
def test_bound_values_pass_the_other_side(row: Row, data: st.DataObject) -> None:
    kwargs = {a.name: data.draw(FITTING[a.kind]) for a in row.args if a.required or data.draw(st.booleans())}
    bound = row.bind(kwargs)
    frame = wire.decode(wire.encode(wire.Call(1, row.nr, 1, bound)))
    assert isinstance(frame, wire.Call)
    checked = row.check_args(frame.args)
    assert list(checked) == [a.name for a in row.args]
    assert all(checked[name] == value for name, value in kwargs.items())


@named(ROWS)
@given(st.data())
def test_replies_pass_the_other_side(row: Row, data: st.DataObject) -> None:
    values = {a.name: data.draw(FITTING[a.kind]) for a in row.reply if a.required or data.draw(st.booleans())}
    checked = row.check_reply(row.bind_reply(values))
    assert list(checked) == [a.name for a in row.reply]
    assert all(checked[name] == value for name, value in values.items())


@named(ROWS)
def test_a_wrong_type_in_any_column_is_refused_in_both_directions(row: Row) -> None:
    for i, arg in enumerate(row.args):
        for wrong in WRONG[arg.kind]:
            assert arg.name in fails("E2-WIRE", row.bind, {**good(row), arg.name: wrong}).message
            args = row.bind(good(row))
            args[i] = wrong
            assert arg.name in fails("E2-WIRE", row.check_args, args).message


@named(ROWS)
def test_a_wrong_number_of_columns_is_refused(row: Row) -> None:
    for args in ([None] * (len(row.args) + 1), [None] * (len(row.args) - 1) if row.args else None, {}, "text", None, 7):
        fails("E2-WIRE", row.check_args, args)
        if not (isinstance(args, list) and len(args) == len(row.reply)):
            fails("E2-WIRE", row.check_reply, args)


@named(ROWS)
def test_unknown_and_missing_names_are_usage_errors_that_show_the_usage(row: Row) -> None:
    assert row.qualified in fails("E2-USAGE", row.bind, {"nonsense": 1}).message
    for arg in row.args:
        if arg.required:
            others = {k: v for k, v in good(row).items() if k != arg.name}
            error = fails("E2-USAGE", row.bind, others)
            assert arg.name in error.message
            assert error.hint.startswith(row.qualified)


def test_numbers_and_names_are_unique() -> None:
    numbers = [r.nr for r in ROWS]
    assert len(set(numbers)) == len(numbers)
    assert all(r.nr < 100 for r in SYSCALLS)
    assert all(r.nr >= 100 for r in METHODS)
    assert len({r.qualified for r in ROWS}) == len(ROWS)


def test_every_syscall_has_a_handler_and_every_handler_a_syscall() -> None:
    assert HANDLERS.keys() == {r.name for r in SYSCALLS}


@named(tuple(r for r in SYSCALLS if r.name not in ("hello", "call")))
def test_every_syscall_has_a_stub_with_its_columns(row: Row) -> None:
    stub = getattr(Stubs, row.name)
    assert stub.__doc__ == row.doc
    parameters = [p for name, p in inspect.signature(stub).parameters.items() if name != "self"]
    assert [p.name for p in parameters] == [a.name for a in row.args]
    for parameter, arg in zip(parameters, row.args, strict=True):
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == (inspect.Parameter.empty if arg.required else arg.default)


@named(ROWS)
def test_a_row_is_well_made(row: Row) -> None:
    kinds = set(FITTING)
    assert {a.kind for a in (*row.args, *row.reply)} <= kinds
    assert len({a.name for a in row.args}) == len(row.args)
    assert len({a.name for a in row.reply}) == len(row.reply)
    assert row.doc.endswith(".")
    assert not (row.oneway and row.reply)
    assert row.pages == tuple(i for i, a in enumerate(row.args) if a.kind == "page")
    for arg in (*row.args, *row.reply):
        if not arg.required:
            assert arg.check(arg.default, "default") == arg.default


@named(tuple(r for r in METHODS if r.server != "any"))
def test_every_method_is_served_by_its_server(row: Row) -> None:
    source = (abi.__file__ or "").replace("syscalls/abi.py", f"servers/{row.server}/server.py")
    with open(source, encoding="utf-8") as file:
        assert f'"{row.name}"' in file.read()


@given(st.sets(st.sampled_from(sorted(abi.RIGHT_NAMES))))
def test_rights_round_trip_by_name(names: set[str]) -> None:
    rights = abi.parse_rights(sorted(names))
    assert set(abi.right_names(rights)) == names


@pytest.mark.parametrize("name", ["root", "", "MAP", None, 1, [], [1], {}])
def test_an_unknown_right_is_refused_with_the_known_ones(name: Any) -> None:
    assert "read-trace" in fails("E2-MANIFEST", abi.parse_rights, [name]).hint


def test_every_right_is_one_bit() -> None:
    assert [int(r) for r in Right] == [1 << i for i in range(len(Right))]
    assert len(abi.RIGHT_NAMES) == len(Right)


def test_a_method_is_found_by_server_and_by_any() -> None:
    assert abi.method_of("learner", "ping").nr == abi.METHOD_BY_NAME["any.ping"].nr
    assert abi.method_of("learner", "grant").server == "learner"
    fails("E2-USAGE", abi.method_of, "learner", "stage")


def test_a_float_column_takes_an_integer_and_gives_a_float() -> None:
    value = Arg("x", "float").check(2, "test")
    assert (value, type(value)) == (2.0, float)
