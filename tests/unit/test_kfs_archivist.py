from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfs_support import commit, key_of, miss, snapshot_of, tensor

from kfs import records
from kfs.objects import NewObject, blob
from kfs.records import Record, RecordKind
from kfs.snapshot import build_tree
from kfs.store import Store
from kfs.verify import verify
from servers.archivist.server import TAIL_BYTES_MAX, ArchivistService
from syscalls import abi, limits
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage, pack_arrays


class Session:
    """The part of a kernel session that the handlers use: a configuration and real sealed pages by handle."""

    direct_caller = ""

    def __init__(self, store_dir: Path) -> None:
        self.config = {"store": str(store_dir)}
        self._pages: dict[int, WritePage] = {}

    def lend(self, page: WritePage) -> int:
        handle = len(self._pages) + 1
        self._pages[handle] = page
        return handle

    def map(self, handle: int) -> ReadPage:
        page = self._pages[handle]
        return ReadPage(os.dup(page.fd), page.size, handle)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path / "store")


@pytest.fixture
def service(session: Session) -> Iterator[ArchivistService]:
    service = ArchivistService(session)  # type: ignore[arg-type]  # a session with the same pages and no socket
    yield service
    service.drain()


def call(service: ArchivistService, method: str, **args: Any) -> dict[str, Any]:
    """A call as it arrives from the wire: through the columns of the table in both directions."""
    row = abi.method_of("archivist", method)
    reply = service.handlers[method](**row.check_args(row.bind(args)))
    service.idle()
    return row.check_reply(row.bind_reply(reply or {}))


def raw_page(session: Session, new: dict[str, NewObject]) -> tuple[list[Any], int]:
    """The page and index of `stage`: objects at 64-byte alignment, no header."""
    index, at = [], 0
    for name, item in new.items():
        length = len(bytes(item.data))
        index.append([name, item.dtype, list(item.shape), at, length])
        at += -(-length // 64) * 64
    page = WritePage(max(at, 1))
    for (_, _, _, offset, length), item in zip(index, new.values(), strict=True):
        page.view[offset : offset + length] = item.data
    return index, session.lend(page)


def test_the_handlers_are_the_methods_of_the_table(service: ArchivistService) -> None:
    assert set(service.handlers) == {row.name for row in abi.METHODS if row.server == "archivist"}


def test_a_snapshot_is_staged_committed_and_found_by_the_next_boot(
    session: Session, service: ArchivistService, tmp_path: Path
) -> None:
    refs, new = snapshot_of(1, 2, 3)
    index, page = raw_page(session, new)
    staged = call(service, "stage", window=1, refs=refs, index=index, page=page)
    assert staged["snapshot"] == build_tree(refs)[0]
    assert staged["stored_bytes"] > 0
    drafts = [
        records.encode(record) for record in (miss(1), commit(1, t_mono=5, result=staged["snapshot"]), miss(2), miss(3))
    ]
    answer = call(service, "append", records=drafts)
    assert answer["seqs"] == [0, 1, 2, 3]
    assert (answer["size"], answer["root"]) == service.store.head()
    assert call(service, "append", records=drafts[2:])["seqs"] == [2, 3]
    found = call(service, "open", boot="boot-2")
    assert records.decode(found["commit"]).result_snap == staged["snapshot"]
    assert [records.decode(data).draft() for data in found["tail"]] == [miss(2), miss(3)]
    assert (found["size"], found["root"]) == (answer["size"], answer["root"])
    assert verify(tmp_path / "store").ok


def test_only_what_the_store_lacks_needs_to_be_sent(session: Session, service: ArchivistService) -> None:
    refs, new = snapshot_of(1, 2, 3)
    index, page = raw_page(session, new)
    call(service, "stage", window=1, refs=refs, index=index, page=page)
    changed = refs | {"student/blocks.0/w0": key_of(tensor(9))}
    index, page = raw_page(session, {key_of(tensor(9)): tensor(9)})
    root = call(service, "stage", window=2, refs=changed, index=index, page=page)["snapshot"]
    assert service.store.snapshot(root) == changed
    again = call(service, "stage", window=3, refs=changed, index=[], page=0)
    assert (again["snapshot"], again["stored_bytes"]) == (root, 0)


def test_arrays_of_a_page_are_put_by_kind_and_name(session: Session, service: ArchivistService) -> None:
    rows = [("weights", "F32", (2,), bytes(range(8))), ("evidence", "U8", (3,), b"abc")]
    page = session.lend(pack_arrays(rows))
    wanted = [["cal", "evidence"], ["policy", "absent"], ["policy", "weights"]]
    ids = call(service, "put", objects=wanted, page=page)["ids"]
    assert ids == [service.store.put([blob(b"abc", "cal")])[0], "", ids[2]]
    found = service.store.get(ids[2])
    assert (found.dtype, found.shape, found.kind, bytes(found.data)) == ("F32", (2,), "policy", bytes(range(8)))


@pytest.mark.parametrize(
    ("method", "args", "code"),
    [
        ("append", {"records": [b"junk"]}, "E2-WIRE"),
        ("append", {"records": ["text"]}, "E2-WIRE"),
        ("append", {"records": [records.encode(miss(1, seq=3, t_wall=5))]}, "E2-WIRE"),
        ("append", {"records": [b""] * (limits.BATCH_RECORDS_MAX + 1)}, "E2-LIMIT"),
        ("append", {"records": [records.encode(commit(1, result=key_of(tensor(1))))]}, "E4-NOENT"),
        ("stage", {"window": 1, "refs": {"a/b/c": 3}, "index": [], "page": 1}, "E2-WIRE"),
        ("stage", {"window": 1, "refs": {"a/b/c": key_of(tensor(1))}, "index": [], "page": 1}, "E4-NOENT"),
        ("stage", {"window": 1, "refs": {}, "index": [[key_of(tensor(1)), "F32", [16], 0, 65]], "page": 1}, "E2-WIRE"),
        ("stage", {"window": 1, "refs": {}, "index": [[key_of(tensor(1)), "F32", [16], -1, 64]], "page": 1}, "E2-WIRE"),
        (
            "stage",
            {"window": 1, "refs": {}, "index": [[key_of(tensor(1)), "F32", [16], 0, 64]], "page": 1},
            "E9-INTEGRITY",
        ),
        (
            "stage",
            {"window": 1, "refs": {}, "index": [[key_of(tensor(1)), "F32", ["x"], 0, 64]], "page": 1},
            "E2-LIMIT",
        ),
        ("stage", {"window": 1, "refs": {}, "index": ["row"], "page": 1}, "E2-WIRE"),
        ("put", {"objects": [["cal"]], "page": 2}, "E2-WIRE"),
        ("put", {"objects": [["no-kind", "a"]], "page": 2}, "E2-LIMIT"),
    ],
)
def test_a_malformed_call_is_a_typed_error_and_writes_nothing(
    session: Session, service: ArchivistService, method: str, args: dict[str, Any], code: str
) -> None:
    session.lend(WritePage(64))
    session.lend(pack_arrays([("a", "U8", (1,), b"a")]))
    with pytest.raises(RecurosError) as caught:
        call(service, method, **args)
    assert caught.value.code == code
    assert service.store.size == 0
    assert not list(service.store.objects())


def test_a_tail_too_long_for_one_answer_keeps_its_newest_and_says_so(service: ArchivistService) -> None:
    drafts = [records.encode(miss(n, data_cursor=bytes(20_000))) for n in range(60)]
    for start in range(0, 60, 20):
        call(service, "append", records=drafts[start : start + 20])
    found = call(service, "open", boot="boot-2")
    assert sum(map(len, found["tail"])) <= TAIL_BYTES_MAX
    assert records.decode(found["tail"][-1]).draft() == miss(59, data_cursor=bytes(20_000))
    assert f"{60 - len(found['tail'])} records after the last commit" in found["notes"][-1]


def test_an_acknowledged_append_is_signed_after_a_while_and_at_the_drain(session: Session, tmp_path: Path) -> None:
    service = ArchivistService(session)  # type: ignore[arg-type]
    for number in range(300):
        call(service, "append", records=[records.encode(miss(number))])
    assert service.store.checkpoint_head().size > 0
    service.drain()
    with Store.open_reader(tmp_path / "store") as store:
        assert store.checkpoint_head().size == store.size == 300


def test_a_resent_batch_is_known_within_its_boot_and_new_in_the_next(session: Session) -> None:
    def boot(name: str) -> bytes:
        args = {"boot": name, "app": "digits", "abi": "1.0", "resumed_from": None, "env": {}}
        return records.encode(Record(actor="kernel", kind=RecordKind.BOOT, args=args, t_mono=1))

    spawned, later = records.encode(miss(0)), records.encode(miss(1))
    for first, name in ((0, "a"), (3, "b")):
        # What the kernel did before it could write, its boot record, and what follows go in one append.
        batch = [spawned, boot(name), later] if first == 0 else [records.encode(miss(9)), boot(name), later]
        for _ in range(2):
            service = ArchivistService(session)  # type: ignore[arg-type]
            for _ in range(2):
                assert call(service, "append", records=batch)["seqs"] == [first, first + 1, first + 2]
            service.drain()


def test_a_small_object_is_kept_from_the_frame_and_fetched_again(service: ArchivistService) -> None:
    name = call(service, "keep", kind="program", data=b"OBPF and so on")["id"]
    assert call(service, "fetch", id=name)["data"] == b"OBPF and so on"
    assert call(service, "keep", kind="program", data=b"OBPF and so on")["id"] == name
    with pytest.raises(RecurosError, match="kind"):
        call(service, "keep", kind="virus", data=b"x")
    with pytest.raises(RecurosError):
        call(service, "fetch", id="b3:" + "0" * 64)


def test_an_object_that_no_frame_holds_is_not_fetched(service: ArchivistService) -> None:
    (name,) = service.store.put([blob(bytes(TAIL_BYTES_MAX + 1), "program")])
    with pytest.raises(RecurosError, match=str(TAIL_BYTES_MAX)) as refused:
        call(service, "fetch", id=name)
    assert refused.value.code == "E2-LIMIT"
