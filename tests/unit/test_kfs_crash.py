"""Full disks, failing disks and kill -9: what was acknowledged is there afterwards, and the store opens again."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kfs_support import commit, miss, snapshot_of

from kfs.files import Files
from kfs.store import Store
from kfs.verify import verify
from syscalls.errors import RecurosError

CHANGING = {"open", "mkdir", "pwritev", "fsync", "fdatasync", "rename", "link", "unlink", "rmdir", "ftruncate"}


class FailingCalls:
    """The module `os`, but changing call number `fail_at` fails (a write after writing half), and so do later ones if `stay`."""

    def __init__(self, fail_at: int, code: int, *, stay: bool = False) -> None:
        self.count = 0
        self.fail_at, self.code, self.stay = fail_at, code, stay

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING:
            return real

        def call(*args: Any) -> Any:
            self.count += 1
            if self.count != self.fail_at and not (self.stay and self.count > self.fail_at and name != "unlink"):
                return real(*args)
            if name == "pwritev":
                fd, buffers, offset = args
                os.pwrite(fd, bytes(buffers[0][: len(buffers[0]) // 2]), offset)
            raise OSError(self.code, os.strerror(self.code))

        return call


def work(store_dir: Path, files: Files) -> dict[int, str]:
    """A few commits; returns what was acknowledged: seq -> snapshot. Raises whatever the disk does, with that attached."""
    acknowledged: dict[int, str] = {}
    try:
        with Store.open_writer(store_dir, files) as store:
            for window in range(3):
                refs, new = snapshot_of(window, window + 1)
                root, _ = store.put_snapshot(refs, new)
                (seq,) = store.append([commit(window, t_mono=window, result=root)])
                acknowledged[seq] = root
                store.checkpoint()
    except RecurosError as e:
        e.details["acknowledged"] = acknowledged
        raise
    return acknowledged


def check_intact(store_dir: Path, acknowledged: dict[int, str]) -> None:
    with Store.open_writer(store_dir) as store:
        for seq, root in acknowledged.items():
            assert store.record(seq).result_snap == root
            assert len(store.snapshot(root)) == 2
        store.append([miss(1_000)])
    report = verify(store_dir)
    assert report.ok, report.problems


def count_calls(tmp_path: Path) -> int:
    calls = FailingCalls(0, 0)
    work(tmp_path / "counted" / "store", Files(calls))
    return calls.count


@pytest.mark.parametrize("stay", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_failure_of_any_call_loses_nothing_that_was_acknowledged(tmp_path: Path, code: int, stay: bool) -> None:
    expected = {errno.ENOSPC: {"E9-NOSPACE"}, errno.EIO: {"E9-POISONED"}}[code]
    codes = set()
    for fail_at in range(1, count_calls(tmp_path) + 1):
        store_dir = tmp_path / str(fail_at) / "store"
        try:
            acknowledged = work(store_dir, Files(FailingCalls(fail_at, code, stay=stay)))
        except RecurosError as e:
            codes.add(e.code)
            acknowledged = e.details["acknowledged"]
        check_intact(store_dir, acknowledged)
        shutil.rmtree(store_dir.parent)
    assert codes == expected


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_failure_while_a_hash_tile_fills_loses_nothing_and_the_next_open_mends_the_tiles(
    tmp_path: Path, code: int
) -> None:
    """The full tile and the level above it are new, and the partial ones go: every call of that checkpoint fails once."""
    made = tmp_path / "made" / "store"
    with Store.open_writer(made) as store:
        store.append([miss(number) for number in range(250)])
        store.checkpoint()
        store.append([miss(250)])
    fail_at, codes = 0, set()
    while True:
        fail_at += 1
        run_dir = tmp_path / str(fail_at)
        shutil.copytree(made.parent, run_dir)
        calls = FailingCalls(0, code)
        store = Store.open_writer(run_dir / "store", Files(calls))
        store.append([miss(number) for number in range(251, 260)])
        calls.fail_at = start = calls.count + fail_at
        try:
            store.checkpoint()
            store.close()
        except RecurosError as e:
            codes.add(e.code)
            with contextlib.suppress(RecurosError):
                store.close()
        check_intact(run_dir / "store", {})
        assert not list((run_dir / "store" / "tile").glob(".tmp-*"))
        shutil.rmtree(run_dir)
        if calls.count < start:
            break
    assert fail_at > 15
    assert codes == {"E9-NOSPACE" if code == errno.ENOSPC else "E9-POISONED"}


def test_a_full_disk_refuses_the_write_and_the_open_store_goes_on_when_there_is_space(tmp_path: Path) -> None:
    calls = FailingCalls(0, errno.ENOSPC)
    with Store.open_writer(tmp_path / "store", Files(calls)) as store:
        store.append([miss(1)])
        calls.fail_at = calls.count + 1
        with pytest.raises(RecurosError) as caught:
            store.append([miss(2)])
        assert caught.value.code == "E9-NOSPACE"
        assert not store.poisoned
        assert store.append([miss(2)]) == [1]
        calls.fail_at = calls.count + 2
        with pytest.raises(RecurosError):
            store.put_snapshot(*snapshot_of(1))
        assert not list(store.layout.packs.iterdir())
        store.put_snapshot(*snapshot_of(1))
    assert verify(tmp_path / "store").ok


def test_after_a_failed_fsync_nothing_is_written_again(tmp_path: Path) -> None:
    calls = FailingCalls(0, errno.EIO)
    store = Store.open_writer(tmp_path / "store", Files(calls))
    store.append([miss(1)])
    calls.fail_at = calls.count + 2  # the fdatasync after the write
    for attempt in (
        lambda: store.append([miss(2)]),
        lambda: store.append([miss(3)]),
        lambda: store.put_snapshot(*snapshot_of(1)),
        store.checkpoint,
    ):
        with pytest.raises(RecurosError) as caught:
            attempt()
        assert caught.value.code == "E9-POISONED"
    assert store.poisoned
    store.close()
    check_intact(tmp_path / "store", {})


FULL_DISK = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kfs_support import commit, miss, snapshot_of
from kfs.objects import blob
from kfs.store import Store
from kfs.verify import verify
from syscalls.errors import RecurosError

disk = Path(sys.argv[1])
store = Store.open_writer(disk / "store")
roots = {}
try:
    for window in range(10_000):
        root, _ = store.put_snapshot(*snapshot_of(window, window + 1), extras=[blob(os.urandom(20_000), "report")])
        (seq,) = store.append([commit(window, t_mono=window, result=root)])
        roots[seq] = root
    sys.exit("the disk never filled")
except RecurosError as e:
    assert e.code == "E9-NOSPACE", e
try:
    store.close()
except RecurosError as e:
    assert e.code == "E9-NOSPACE", e
os.unlink(disk / "ballast")
with Store.open_writer(disk / "store") as store:
    assert roots and all(store.record(seq).result_snap == root and store.snapshot(root) for seq, root in roots.items())
    store.append([miss(1)])
report = verify(disk / "store")
sys.exit(0 if report.ok else str(report.problems))
"""


def test_a_really_full_file_system_loses_nothing_and_opens_again_when_there_is_space(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=1m none {tmp_path} && head -c 300000 /dev/zero > {tmp_path}/ballast"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False, capture_output=True).returncode:
        pytest.skip("this host lets nobody mount a small file system")
    here = Path(__file__).parent
    command = f'{mount} && exec "$0" -c "$1" {tmp_path} {here}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, sys.executable, FULL_DISK],
        check=False,
        capture_output=True,
        text=True,
        cwd=here.parent.parent,
    )
    assert done.returncode == 0, done.stderr


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from kfs_support import commit, snapshot_of
from kfs.store import Store

store = Store.open_writer(sys.argv[1])
window = store.size
while True:
    root, _ = store.put_snapshot(*snapshot_of(window, window + 1))
    (seq,) = store.append([commit(window, t_mono=window, result=root)])
    os.write(1, f"{seq} {root}\\n".encode())
    if store.checkpoint_due() or window % 7 == 0:
        store.checkpoint()
    window += 1
"""


def test_killed_writers_lose_no_acknowledged_record(tmp_path: Path) -> None:
    dice = random.Random(11)
    here = Path(__file__).parent
    acknowledged: dict[int, str] = {}
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(here)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=here.parent.parent) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(dice.randint(1, 40))]
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        for line in lines:
            if line.endswith(b"\n"):
                seq, root = line.decode().split()
                assert int(seq) not in acknowledged
                acknowledged[int(seq)] = root
    assert len(acknowledged) > 100
    check_intact(tmp_path / "store", acknowledged)
