from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kfs_support import commit, key_of, miss, snapshot_of, tensor

from console.main import run
from kfs.log import Filter, render, select, summary
from kfs.records import Record, RecordKind
from kfs.store import Store


@pytest.fixture
def store_run(tmp_path: Path) -> Path:
    with Store.open_writer(tmp_path / "store") as store:
        root, _ = store.put_snapshot(*snapshot_of(1, 2))
        store.append([miss(1), miss(2, actor="observer")])
        store.append([commit(1, result=root)])
        store.append([miss(3, data_cursor=[float("nan"), b"\x01"])])
    return tmp_path


def document(capsys: pytest.CaptureFixture[str], run_dir: Path, *argv: str, status: int = 0) -> dict[str, Any]:
    assert run([*argv, "--run", str(run_dir), "--json"]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    assert found["schema"] == f"recuros.kfs.{argv[1]}/v1"
    return found


@pytest.mark.parametrize(
    ("options", "seqs"),
    [
        ([], [0, 1, 2, 3]),
        (["--actor", "observer"], [1]),
        (["--kind", "window.commit"], [2]),
        (["--kind", "window."], [0, 1, 2, 3]),
        (["--kind", "window"], []),
        (["--since", "2"], [2, 3]),
        (["--since", "-1"], [3]),
        (["--until", "1"], [0]),
        (["--since", "2001-01-01"], [0, 1, 2, 3]),
        (["--until", "2001-01-01T00:00:00"], []),
        (["--limit", "2"], [2, 3]),
    ],
)
def test_log_filters(capsys: pytest.CaptureFixture[str], store_run: Path, options: list[str], seqs: list[int]) -> None:
    found = document(capsys, store_run, "kfs", "log", *options)
    assert [record["seq"] for record in found["records"]] == seqs
    assert found["size"] == 4


def test_log_finds_the_records_of_a_snapshot_by_a_prefix_of_its_id(
    capsys: pytest.CaptureFixture[str], store_run: Path
) -> None:
    with Store.open_reader(store_run / "store") as store:
        root = store.record(2).result_snap
    assert root is not None
    found = document(capsys, store_run, "kfs", "log", "--snapshot", root[:12])
    assert [record["result_snap"] for record in found["records"]] == [root]


def test_log_as_lines_and_names_prints_a_line_a_record(capsys: pytest.CaptureFixture[str], store_run: Path) -> None:
    assert run(["kfs", "log", "-o", "jsonl", "--run", str(store_run)]) == 0
    assert [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()] == [0, 1, 2, 3]
    assert run(["kfs", "log", "-o", "name", "--run", str(store_run)]) == 0
    assert capsys.readouterr().out.split() == ["0", "1", "2", "3"]


def test_show_is_json_even_for_values_that_json_lacks(capsys: pytest.CaptureFixture[str], store_run: Path) -> None:
    found = document(capsys, store_run, "kfs", "show", "3")
    assert (found["seq"], found["kind"], found["data_cursor"]) == (3, "window.miss", ["nan", "01"])
    assert len(found["leaf"]) == 64


def test_verify_answers_zero_for_an_intact_store_and_nine_for_a_changed_byte(
    capsys: pytest.CaptureFixture[str], store_run: Path
) -> None:
    found = document(capsys, store_run, "kfs", "verify")
    with Store.open_reader(store_run / "store") as store:
        path, entry = store.entry(key_of(tensor(1)))
        assert (found["ok"], found["records"], found["root"], found["problems"]) == (True, *store.head(), [])
    data = bytearray(path.read_bytes())
    data[entry.offset] ^= 1
    path.write_bytes(data)
    found = document(capsys, store_run, "kfs", "verify", status=9)
    assert not found["ok"]
    assert f"packs/{path.name}@{entry.offset}" in [problem["where"] for problem in found["problems"]]
    assert document(capsys, store_run, "kfs", "verify", "--fast")["ok"]


def test_ls_and_cat(capsysbinary: pytest.CaptureFixture[bytes], store_run: Path) -> None:
    with Store.open_reader(store_run / "store") as store:
        root = store.record(2).result_snap
    assert root is not None
    assert run(["kfs", "ls", root, "-o", "name", "--run", str(store_run)]) == 0
    assert capsysbinary.readouterr().out.decode().split() == [key_of(tensor(1)), key_of(tensor(2))]
    assert run(["kfs", "ls", "--kind", "report", "--json", "--run", str(store_run)]) == 0
    assert json.loads(capsysbinary.readouterr().out)["objects"] == []
    assert run(["kfs", "cat", key_of(tensor(1)), "--run", str(store_run)]) == 0
    assert capsysbinary.readouterr().out == tensor(1).data


@pytest.mark.parametrize(
    ("argv", "status", "code"),
    [
        (["kfs", "show", "4"], 4, "E4-NOENT"),
        (["kfs", "cat", "b3:00000000"], 4, "E4-NOENT"),
        (["kfs", "log", "--since", "noon"], 2, "E2-USAGE"),
        (["kfs", "ls", "--kind", "weights"], 2, "E2-USAGE"),
    ],
)
def test_errors_are_coded(
    capsys: pytest.CaptureFixture[str], store_run: Path, argv: list[str], status: int, code: str
) -> None:
    assert run([*argv, "--run", str(store_run)]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert code in captured.err


def test_no_store_is_no_such_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for verb in ("log", "verify", "ls"):
        assert run(["kfs", verb, "--run", str(tmp_path)]) == 4
        assert "there is no store" in capsys.readouterr().err


def test_a_damaged_ledger_shows_its_good_records_only_as_far_as_asked(store_run: Path) -> None:
    path = store_run / "store" / "ledger" / "records"
    data = bytearray(path.read_bytes())
    with Store.open_reader(store_run / "store") as store:
        data[store._ledger.location(2)] ^= 1
    path.write_bytes(data)
    with Store.open_reader(store_run / "store") as store:
        assert [record.seq for record in select(store, Filter(until=2))] == [0, 1]
        with pytest.raises(Exception, match="damaged at record 2"):
            list(select(store, Filter()))


def test_a_summary_fits_its_width(store_run: Path) -> None:
    with Store.open_reader(store_run / "store") as store:
        for record in store.records():
            assert len(summary(record, 40)) <= 40
            assert json.loads(json.dumps(render(record)))["kind"] == record.kind


def test_a_record_is_shown_by_its_number_from_the_end(capsys: pytest.CaptureFixture[str], store_run: Path) -> None:
    assert document(capsys, store_run, "kfs", "show", "-1")["seq"] == 3
    assert document(capsys, store_run, "kfs", "show", "-4")["seq"] == 0
    assert run(["kfs", "show", "-5", "--run", str(store_run)]) == 4
    assert "no record -5" in capsys.readouterr().err


def test_a_wrong_snapshot_name_gets_the_nearest_ones(capsys: pytest.CaptureFixture[str], store_run: Path) -> None:
    with Store.open_writer(store_run / "store") as store:
        root = store.record(2).result_snap
        named = Record("operator:7.1", RecordKind.SNAPSHOT, {"name": "best", "window": 1}, 10**15, result_snap=root)
        store.append([named])
    assert run(["snapshot", "show", "bst", "--run", str(store_run)]) == 4
    assert "did you mean: best?" in capsys.readouterr().err


def test_a_line_of_the_log_holds_the_beginning_of_an_id(store_run: Path) -> None:
    record = Record("observer", RecordKind.POLICY, {"settings": {"weights": "b3:" + "a1" * 32}}, 1)
    assert summary(record) == "settings={weights=b3:a1a1a1a1}"
