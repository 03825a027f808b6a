"""Contracts are parsed from one table and nothing else; the judge never rounds in the student's favour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nexus import app
from nexus.contracts import Contract, check_names, parse
from nexus.judge import FAIL, INSUFFICIENT, PASS, bounds, judge
from syscalls.errors import RecurosError

HEAD = "| capability | metric | retain | chance | items |\n|---|---|---|---|---|\n"
ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_found_among_prose_and_other_tables() -> None:
    text = (
        "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nwords\n\n"
        + HEAD
        + "| code | byte-accuracy | 0.97 | 0 | 400 |\n\nmore\n"
    )
    assert parse(text, "page") == {"code": Contract("code", "byte-accuracy", 0.97, 0.0, 400)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no table", "no table has the columns"),
        ("| capability | retain |\n|---|---|\n| a | 1 |\n", "the first has capability | retain"),
        (HEAD, "is empty"),
        (HEAD + "| code | exact-match | 0.97 | 0 |\n", "4 cells where 5"),
        (HEAD + "| Code | exact-match | 0.97 | 0 | 400 |\n", "is no name"),
        (HEAD + "| code | vibes | 0.97 | 0 | 400 |\n", "metric 'vibes' is unknown"),
        (HEAD + "| code | exact-match | 0 | 0 | 400 |\n", "retain = '0'"),
        (HEAD + "| code | exact-match | nan | 0 | 400 |\n", "retain = 'nan'"),
        (HEAD + "| code | exact-match | 0.97 | 1 | 400 |\n", "chance = '1'"),
        (HEAD + "| code | exact-match | 0.97 | 0 | 12 |\n", "items = '12'"),
        (HEAD + 2 * "| code | exact-match | 0.97 | 0 | 400 |\n", "has a contract already"),
    ],
)
def test_a_bad_page_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(RecurosError, match="E2-MANIFEST") as caught:
        parse(text, "page")
    assert said in caught.value.message


def test_contracts_and_capabilities_are_the_same_names_on_the_same_metric() -> None:
    found = parse(HEAD + "| code | exact-match | 0.97 | 0 | 400 |\n", "page")
    check_names(found, {"code": "exact-match"}, "page")
    for capabilities, said in (
        ({"sort": "exact-match"}, "names no capability"),
        ({"code": "byte-accuracy"}, "are scored by byte-accuracy"),
        ({"code": "exact-match", "sort": "exact-match"}, "'sort' has no contract"),
    ):
        with pytest.raises(RecurosError, match="E2-MANIFEST") as caught:
            check_names(found, capabilities, "page")
        assert said in caught.value.message


def scores(right: int, n: int) -> np.ndarray:  # type: ignore[type-arg]
    return (np.arange(n) < right).astype(np.float64)


@pytest.mark.parametrize(
    ("teacher", "student", "n", "verdict"),
    [
        (400, 400, 400, PASS),
        (400, 399, 400, PASS),
        (400, 389, 400, INSUFFICIENT),  # .9725: the mean holds, its lower bound does not
        (400, 380, 400, FAIL),
        (399, 399, 399, INSUFFICIENT),  # too few items
        (4, 4, 400, INSUFFICIENT),  # a teacher at chance
    ],
)
def test_verdicts(teacher: int, student: int, n: int, verdict: str) -> None:
    contract = Contract("a", "exact-match", 0.97, 0.0, 400)
    assert judge(contract, scores(teacher, n), scores(student, n), 42).verdict == verdict


def test_chance_is_taken_off_both() -> None:
    contract = Contract("a", "choice-accuracy", 0.97, 0.25, 400)
    found = judge(contract, scores(300, 400), scores(200, 400), 42)  # .75 and .50 where .25 is luck
    assert found.ratio == pytest.approx(0.5)
    assert found.verdict == FAIL


def test_the_bootstrap_is_paired() -> None:
    """Two students of one mean: the one that errs where the teacher errs too has the narrower interval (oracle: plain loops)."""
    teacher = scores(300, 400)
    same, other = scores(290, 400), np.roll(scores(290, 400), 100)
    low_same, high_same = bounds(teacher, same, 0.0, 1)
    low_other, high_other = bounds(teacher, other, 0.0, 1)
    assert high_same - low_same < (high_other - low_other) / 2
    dice = np.random.default_rng(7)
    ratios = []
    for _ in range(2000):
        pick = dice.integers(0, 400, 400)
        ratios.append(same[pick].sum() / teacher[pick].sum())
    assert low_same == pytest.approx(np.quantile(ratios, 0.05), abs=0.003)


def test_scores_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(RecurosError, match="E9-INTEGRITY"):
        judge(Contract("a", "exact-match", 0.97, 0.0, 400), scores(1, 400), scores(1, 401), 42)


# The app's file

APP = """
[app]
name = "mini"
teachers = "t.csv"
contracts = "c.md"
[[teacher]]
id = "sort"
model-name = "mini/sort"
licence = "made here"
make = {}
[[capability]]
name = "sort"
teacher = "sort"
data = { kind = "digit-sort" }
"""
CSV = "ModelName,Parameters,Category,BestFeature\nmini/sort,1M,text,sorting\n"
TABLE = HEAD + "| sort | exact-match | 0.97 | 0 | 400 |\n"


def written(folder: Path, app_text: str = APP, csv: str = CSV, table: str = TABLE) -> Path:
    (folder / "app.toml").write_text(app_text, encoding="utf-8")
    (folder / "t.csv").write_text(csv, encoding="utf-8")
    (folder / "c.md").write_text(table, encoding="utf-8")
    return folder / "app.toml"


def test_the_pilot_is_a_valid_app() -> None:
    found = app.load(ROOT / "nexus" / "apps" / "pilot.toml")
    assert set(found.contracts) == {"code", "sort", "canary", "sentences"}
    assert len(found.rows) == len(found.table.teacher)


def test_a_small_app_loads(tmp_path: Path) -> None:
    assert app.load(written(tmp_path)).capability("sort").teacher == "sort"


@pytest.mark.parametrize(
    ("app_text", "csv", "table", "said"),
    [
        (APP, "Name\n", TABLE, "the first line is not"),
        (APP, CSV + ",1M,text,x\n", TABLE, "line 3 names no model"),
        (APP, CSV + "mini/sort,1M,text,x\n", TABLE, "line 3 repeats 'mini/sort'"),
        (APP, CSV + "mini/other,1M,text,x\n", TABLE, "no [[teacher]] has it"),
        (APP, CSV + "mini/sort,1M\n", TABLE, "line 3 has 2 cells"),
        (APP, CSV, TABLE + "| lost | exact-match | 0.97 | 0 | 400 |\n", "'lost' names no capability"),
        (APP.replace("mini/sort", "mini/sart"), CSV, TABLE, "lists 'mini/sort'"),
        (APP.replace('licence = "made here"', ""), CSV, TABLE, "has no licence note"),
        (APP.replace("make = {}", ""), CSV, TABLE, "none of path, package, make, command, url"),
        (APP.replace('teacher = "sort"', 'teacher = "sart"'), CSV, TABLE, "no teacher is called 'sart'"),
        (APP.replace('kind = "digit-sort"', ""), CSV, TABLE, "has no dataset"),
        (APP + "gated = true\n", CSV, TABLE, "tier 1 and gated = True"),
        (APP + "backbone = false\n", CSV, TABLE, "no capability may teach the backbone"),
        (APP + "threshold = 0.5\n", CSV, TABLE, "threshold: unknown key"),
        (APP.replace('name = "sort"', 'name = "backbone"'), CSV, TABLE, "cannot be called 'backbone'"),
    ],
)
def test_a_bad_app_is_refused_with_the_reason(tmp_path: Path, app_text: str, csv: str, table: str, said: str) -> None:
    with pytest.raises(RecurosError, match="E2-MANIFEST") as caught:
        app.load(written(tmp_path, app_text, csv, table))
    assert said in caught.value.message
