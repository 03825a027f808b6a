from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfs.objects import object_id
from kfs.snapshot import TreeCache, build_tree, decode_node, encode_node, read_tree
from syscalls.errors import RecurosError

NAMES = st.text(st.characters(blacklist_characters="/", blacklist_categories=["Cs"]), min_size=1, max_size=8)
IDS = st.integers(0, 9).map(lambda n: object_id("U8", (1,), bytes([n])))
LEAVES = st.dictionaries(st.tuples(NAMES, NAMES, NAMES).map("/".join), IDS, max_size=20)
A, B = object_id("U8", (1,), b"a"), object_id("U8", (1,), b"b")


@given(LEAVES)
def test_a_tree_reads_back_as_what_it_was_built_from(leaves: dict[str, str]) -> None:
    root, nodes = build_tree(leaves)
    assert read_tree(root, nodes.__getitem__) == leaves


@given(LEAVES)
def test_the_root_depends_on_neither_order_nor_cache(leaves: dict[str, str]) -> None:
    cache: TreeCache = {}
    shuffled = dict(reversed(leaves.items()))
    assert build_tree(leaves, cache) == build_tree(shuffled, cache) == build_tree(shuffled)


@given(LEAVES, LEAVES)
def test_a_cache_from_another_tree_does_no_harm(first: dict[str, str], second: dict[str, str]) -> None:
    cache: TreeCache = {}
    build_tree(first, cache)
    assert build_tree(second, cache) == build_tree(second)


def test_names_are_sorted_by_their_utf_8_bytes() -> None:
    names = ["z", "é", "a.b", "a", "\U0001f600", "\uffff"]
    node = encode_node("module", dict.fromkeys(names, A))
    assert list(msgpack.unpackb(node)[2]) == sorted(names, key=str.encode)


def test_a_role_swap_shares_every_subtree_but_the_root() -> None:
    student = {"student/blocks.0/w": A, "student/blocks.1/w": B}
    _, before = build_tree(student)
    root, after = build_tree(student | {path.replace("student", "teacher"): leaf for path, leaf in student.items()})
    assert set(after) - set(before) == {root}


@pytest.mark.parametrize("path", ["", "student", "student/w", "student//w", "/blocks/w", "student/blocks/", "a/b/c/d"])
def test_a_path_that_is_not_role_module_tensor_is_refused(path: str) -> None:
    with pytest.raises(RecurosError) as caught:
        build_tree({path: A})
    assert caught.value.code == "E2-LIMIT"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", msgpack.packb([1, "role", {}]), msgpack.packb([2, "root", {}]), msgpack.packb([1, "root", {"a": 1}]),
        msgpack.packb([1, "root", {"b": A, "a": A}]), msgpack.packb([1, "root", {"a": "b3:1"}]),
        b"\x93\x01\xa4root\x82\xa1a\xa1b\xa1a\xa1b",
        msgpack.packb([1, "root", {}]) + b"\x00", b"\x93\xcc\x01\xa4root\x80", msgpack.packb([True, "root", {}]),
    ],
)  # fmt: skip
def test_a_node_that_is_not_canonical_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(RecurosError) as caught:
        decode_node(data, "root")
    assert caught.value.code == "E9-INTEGRITY"
