"""Group commit: every caller gets its own numbers, durable; a refusal stays with its sender; poison and closing reach everybody."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kfs_support import commit, miss

from kfs.files import Files
from kfs.group import GroupCommit
from kfs.objects import blob
from kfs.store import Store
from kfs.verify import verify
from syscalls.errors import RecurosError
from tests.campaign._disk import Recorder


def test_writers_share_commits_and_each_gets_its_own_numbers(tmp_path: Path) -> None:
    writers, each = 8, 20
    start = threading.Barrier(writers)

    def write(writer: int) -> dict[int, int]:
        start.wait()
        return {group.append([miss(number := 1_000 * writer + n)])[0]: number for n in range(each)}

    with GroupCommit(tmp_path / "store") as group, ThreadPoolExecutor(writers) as pool:
        told = [pair for found in pool.map(write, range(writers)) for pair in found.items()]
    assert group.commits < writers * each
    assert sorted(seq for seq, _ in told) == list(range(writers * each))
    with Store.open_reader(tmp_path / "store") as store:
        assert all(store.record(seq).args["window"] == number for seq, number in told)
    assert verify(tmp_path / "store").ok


def test_a_draft_that_is_refused_is_refused_to_its_sender_alone(tmp_path: Path) -> None:
    def send(number: int) -> str:
        bad = number % 5 == 0
        draft = commit(number, t_mono=number, result="b3:" + "0" * 64) if bad else miss(number)
        try:
            group.append([draft])
        except RecurosError as e:
            return e.code
        return ""

    with GroupCommit(tmp_path / "store") as group, ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(send, range(50)))
    assert codes == ["E4-NOENT" if number % 5 == 0 else "" for number in range(50)]
    with Store.open_reader(tmp_path / "store") as store:
        assert {record.args["window"] for record in store.records()} == {n for n in range(50) if n % 5}


def test_what_is_sent_twice_at_once_is_stored_once(tmp_path: Path) -> None:
    with GroupCommit(tmp_path / "store") as group, ThreadPoolExecutor(8) as pool:
        seqs = list(pool.map(lambda _: group.append([miss(1)]), range(32)))
    assert seqs == [[0]] * 32


def test_another_job_has_its_turn_in_the_sequencers_thread(tmp_path: Path) -> None:
    with GroupCommit(tmp_path / "store") as group:
        (name,) = group.run(lambda store: store.put([blob(b"evidence", "cal")]))
        assert group.append([miss(1, input_ids=(name,))]) == [0]
        assert group.run(lambda store: store.checkpoint()).size == 1
        with pytest.raises(RecurosError, match="E4-NOENT"):
            group.run(lambda store: store.get("b3:" + "0" * 64))


def test_a_failed_sync_reaches_everybody_who_waited_and_all_who_come_later(tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    calls = Recorder(tmp_path / "run")
    with GroupCommit(tmp_path / "run" / "store", Files(calls)) as group, ThreadPoolExecutor(6) as pool:
        group.append([miss(0)])
        calls.fail_at, calls.fail_with = calls.count + 2, errno.EIO

        def send(number: int) -> str:
            try:
                group.append([miss(number)])
            except RecurosError as e:
                return e.code
            return ""

        assert set(pool.map(send, range(1, 30))) == {"E9-POISONED"}
    with Store.open_writer(tmp_path / "run" / "store") as store:
        assert store.record(0).args["window"] == 0


def test_a_store_that_does_not_open_says_so_to_who_opens_it_and_a_closed_one_refuses(tmp_path: Path) -> None:
    with GroupCommit(tmp_path / "store") as group, pytest.raises(RecurosError, match="E3-BUSY"):
        GroupCommit(tmp_path / "store")
    group.close()
    with pytest.raises(RecurosError, match="E75-AGAIN"):
        group.append([miss(1)])
