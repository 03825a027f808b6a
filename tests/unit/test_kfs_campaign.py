"""Short versions of `make campaign PART=kfs`, and the model of a disk that they rest on."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kfs.files import Files
from tests.campaign import _faults, _flips, _fuzz, _kill, _mutants, kfs
from tests.campaign._disk import OLDEST, Disk, Recorder
from tests.campaign._power import CREATION_CALLS, Count, Images, crash_everywhere, trace

Trials = Iterator[tuple[int, str]]


def violations(trials: Trials) -> list[str]:
    return [what for _, what in trials if what]


# --- the model ------------------------------------------------------------------------------------------------------------


def replayed(calls: Recorder) -> Disk:
    disk = Disk()
    for op in calls.log:
        disk.apply(op)
    return disk


def test_on_the_model_what_is_not_synced_may_be_gone_and_what_is_synced_stays(tmp_path: Path) -> None:
    calls = Recorder(tmp_path)
    files = Files(calls)
    files.replace(tmp_path / "kept", b"k" * 1_500)
    assert replayed(calls).crash(random.Random(1), OLDEST, OLDEST) == {"kept": b"k" * 1_500}
    fd = calls.open(tmp_path / "lost", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    calls.pwritev(fd, [b"l" * 1_500], 0)
    disk = replayed(calls)
    assert "lost" not in disk.crash(random.Random(1), OLDEST, OLDEST)
    assert disk.crash(random.Random(1), OLDEST, 1.0)["lost"] == b""
    assert disk.crash(random.Random(1), 1.0, 1.0)["lost"] == b"l" * 1_500
    torn = {disk.crash(random.Random(n), 0.5, 1.0)["lost"] for n in range(200)}
    assert len(torn) > 8
    assert bytes(512) + b"l" * 988 in torn
    calls.fsync(fd)
    os.close(fd)
    disk = replayed(calls)
    assert "lost" not in disk.crash(random.Random(1), OLDEST, OLDEST), "syncing a file does not make its name durable"
    assert disk.crash(random.Random(1), OLDEST, 1.0)["lost"] == b"l" * 1_500


def test_on_the_model_a_sync_after_a_failed_one_writes_only_what_was_written_again(tmp_path: Path) -> None:
    calls = Recorder(tmp_path)
    Files(calls).replace(tmp_path / "file", b"old!")
    fd = os.open(tmp_path / "file", os.O_WRONLY)
    calls.pwritev(fd, [b"new!"], 0)
    calls.fail_at, calls.fail_with = calls.count + 1, 5
    with pytest.raises(OSError, match="Input/output"):
        calls.fsync(fd)
    calls.fsync(fd)
    assert replayed(calls).crash(random.Random(1), OLDEST, OLDEST) == {"file": b"old!"}
    calls.pwritev(fd, [b"new!"], 0)
    calls.fsync(fd)
    os.close(fd)
    assert replayed(calls).crash(random.Random(1), OLDEST, OLDEST) == {"file": b"new!"}


def test_a_call_that_the_model_lacks_is_refused_rather_than_missed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"lacks os\.truncate"):
        _ = Recorder(tmp_path).truncate


# --- the campaigns --------------------------------------------------------------------------------------------------------


def test_no_power_cut_loses_anything_that_was_acknowledged() -> None:
    count = Count()
    with Images() as images:
        found = [str(v) for seed in range(4) for v in crash_everywhere(trace(seed), seed, images, count, samples=2)]
    assert not found
    assert count.states > 400


def test_no_power_cut_after_a_killed_creation_leaves_a_store_that_does_not_open() -> None:
    count = Count()
    with Images() as images:
        traces = {seed: trace(seed, steps=0) for seed in range(-CREATION_CALLS, 0)}
        found = [str(v) for seed, log in traces.items() for v in crash_everywhere(log, seed, images, count, samples=3)]
    assert not found
    # The last trace ran through: no call of a creation was left out.
    assert len([op for op in traces[-CREATION_CALLS] if op.what == "open"]) == 0
    assert len([op for op in traces[-1] if op.what == "open"]) == 1


def test_every_write_barrier_and_every_order_is_needed() -> None:
    with Images() as images:
        verdicts = list(_mutants.judge(24, images, quick=7))
    assert not [verdict.mutant for verdict in verdicts if verdict.caught is None]
    assert len(verdicts) >= 40


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged() -> None:
    assert not violations(_kill.kills(60, seed=3))


@pytest.fixture(scope="module")
def victim() -> Iterator[_flips.Victim]:
    made = _flips.Victim()
    yield made
    made.close()


def test_a_flipped_bit_is_found_and_located(victim: _flips.Victim) -> None:
    assert not violations(_flips.flips(victim, 300, seed=5))


def test_a_forged_record_with_valid_checksums_is_found_and_named(victim: _flips.Victim) -> None:
    assert not violations(_flips.forgeries(victim, 60, seed=5))


def test_swapped_deleted_foreign_and_older_files_are_found(victim: _flips.Victim) -> None:
    assert not violations(_flips.whole_files(victim))


def test_a_full_or_failing_disk_at_any_call_loses_nothing_and_poison_is_respected() -> None:
    assert not violations(_faults.faults(every=3))


def test_decoders_refuse_with_typed_errors_in_bounded_memory() -> None:
    assert not violations(_fuzz.fuzz(4_000, seed=11))


def test_a_violation_is_counted_told_and_says_how_to_see_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trials(count: int, seed: int, details: dict[str, object]) -> Trials:
        yield 1, ""
        yield 2, f"seed {seed} broke it"

    broken = kfs.Campaign("made to fail", "trials", 1.0, trials)
    monkeypatch.setattr(kfs, "CAMPAIGNS", (broken,))
    monkeypatch.setattr(kfs, "RESULTS", kfs.ROOT / "build" / "campaign" / f"{tmp_path.name}.jsonl")
    monkeypatch.setattr("sys.argv", ["kfs", "--seed", "9", "--count", "10"])
    assert kfs.main() == 1
    row = json.loads(kfs.RESULTS.read_text(encoding="utf-8"))
    kfs.RESULTS.unlink()
    assert (row["campaign"], row["count"], row["violations"]) == ("made to fail", 2, 1)
    told = capsys.readouterr().out
    assert "seed 9 broke it" in told
    assert "--only 'made to fail' --seed 9 --count 10" in told
