"""Following a ledger file, and the figures of layers in the evidence that windows left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from console.dash import feed as feeds
from console.dash.feed import Feed
from console.evidence import evidence_of, layer_figures, read_layers
from kfs.objects import blob
from kfs.records import Record, RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

LIMIT_S = 30.0


def miss(number: int, **changes: Any) -> Record:
    args = {"window": number, "boot": "b", "reason": "E7-MISSED", "late_ns": number}
    return Record("kernel", RecordKind.WINDOW_MISS, args, t_mono=number + 1, **changes)


async def take(feed: Feed, after: int, count: int) -> list[int]:
    """The numbers of the next `count` records beyond `after`, each checked against its text."""
    found = []
    async for seq, text in feed.follow(after):
        assert json.loads(text)["seq"] == seq
        found.append(seq)
        if len(found) == count:
            return found
    return found


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, LIMIT_S))


@pytest.mark.parametrize("inotify", [True, False], ids=["inotify", "looking"])
def test_followers_get_every_record_from_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inotify: bool
) -> None:
    if not inotify:
        monkeypatch.setattr(feeds, "_watch", lambda path: -1)
        monkeypatch.setattr(feeds, "LOOK_S", 0.01)
    else:
        monkeypatch.setattr(feeds, "LOOK_S", 3600.0)
    with Store.open_writer(tmp_path / "store") as store:
        store.append([miss(n) for n in range(3)])

        async def work() -> None:
            feed = Feed(store.layout.records)
            feed.start()
            early, late = (asyncio.create_task(take(feed, *a)) for a in ((-1, 7), (4, 2)))
            await asyncio.sleep(0)
            for n in range(3, 7):
                store.append([miss(n)])
                await asyncio.sleep(0)
            assert await early == list(range(7))
            assert await late == [5, 6]
            waiting = asyncio.create_task(take(feed, 6, 1))
            await asyncio.sleep(0)
            feed.stop()
            assert await waiting == []

        run(work())


def test_what_fell_out_of_memory_is_read_from_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "KEPT", 4)
    monkeypatch.setattr(feeds, "CHUNK", 3)
    with Store.open_writer(tmp_path / "store") as store:
        store.append([miss(0)])

        async def work() -> None:
            feed = Feed(store.layout.records)
            feed.start()
            for n in range(1, 20):
                store.append([miss(n)])
            assert await take(feed, 18, 1) == [19]
            assert await take(feed, -1, 20) == list(range(20))
            assert [json.loads(feed.text(seq))["args"]["window"] for seq in (0, 10, 19)] == [0, 10, 19]
            feed.stop()

        run(work())


def test_a_half_written_frame_is_no_record_and_no_damage(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        store.append([miss(0)])
        store.append([miss(1)])
        path = store.layout.records
    whole = path.read_bytes()
    copy = tmp_path / "records"
    copy.write_bytes(whole[:-5])

    async def work() -> None:
        feed = Feed(copy)
        feed.start()
        assert feed.size == 1
        assert feed.damage == ""
        with copy.open("r+b") as file:
            file.seek(len(whole) - 5)
            file.write(whole[-5:])
        assert await take(feed, 0, 1) == [1]
        feed.stop()

    run(work())


def test_damage_inside_the_ledger_is_said(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        for n in range(3):
            store.append([miss(n)])
        path = store.layout.records
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    async def work() -> None:
        feed = Feed(path)
        assert feed.size < 3
        assert feed.damage
        feed.stop()

    run(work())


def test_figures_of_layers_are_named_and_plain_ones_are_the_models() -> None:
    assert layer_figures({"cka": 0.5, "pairs": {"1:2": {"cka": 0.4, "status": "ok"}}, "ran": {"firings": 3}}) == {
        "(model)": {"cka": 0.5},
        "1:2": {"cka": 0.4},
    }
    assert layer_figures({"global": 2.0, "parameters": {"a.weight": 1.5, "b": float("nan")}}) == {
        "(model)": {"global": 2.0},
        "a.weight": {"norm": 1.5},
    }
    assert layer_figures({"kl": 1.0, "last": 3.0, "layers": 2, "samples": 8, "status": "ok"}) == {
        "(model)": {"kl": 1.0},
        "(last layer)": {"kl": 3.0},
    }
    assert layer_figures({"cka": None, "pairs": {}, "flag": True}) == {}


def test_evidence_of_a_watched_loop_is_read_as_well(tmp_path: Path) -> None:
    maps = {"1": {"program": "builtin:rms,every=10", "hook": "h", "map": {"summary": {"layers": {"x": {"rms": 2.0}}}}}}
    with Store.open_writer(tmp_path / "store") as store:
        good, bad, odd = store.put(
            [blob(json.dumps(maps).encode(), "cal"), blob(b"{nonsense", "cal"), blob(b"\x00" * 4, "cal")]
        )
        assert read_layers(store, good) == {"rms": {"x": {"rms": 2.0}}}
        for broken in (bad, odd):
            with pytest.raises(RecurosError, match="E2-WIRE"):
                read_layers(store, broken)
    args = {"window": 1, "metrics": {}}
    watched = Record("watch:7", RecordKind.WINDOW_COMMIT, args, t_mono=1, input_ids=(good,))
    assert evidence_of(watched) == good
    assert evidence_of(Record("kernel", RecordKind.WINDOW_COMMIT, args, t_mono=1, input_ids=(good,))) == ""
    named = {**args, "inputs": {"evidence": bad}}
    assert evidence_of(Record("kernel", RecordKind.WINDOW_COMMIT, named, t_mono=1)) == bad
