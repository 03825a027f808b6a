import json
import random

import pytest
import torch
from torch import nn

from tests.bench import _probes_time as timing
from tests.bench import _rows, render


def test_every_case_has_as_many_calls_and_what_comes_before_a_turn_is_not_one():
    seen = []
    cases = {
        "a": lambda: seen.append("a"),
        "b": timing.Turn(lambda: seen.append("b"), lambda: seen.append("before b")),
    }
    spent = timing.turns(cases, 50, random.Random(0), inner=2)
    assert {name: seen.count(name) for name in ("a", "b", "before b")} == {"a": 100, "b": 100, "before b": 50}
    assert all(seen[n - 1] == "before b" for n, name in enumerate(seen) if name == "b" and seen[n - 1] != "b")
    assert set(spent) == {"a", "b"}
    assert min(spent.values()) >= 0


def test_a_control_that_spreads_over_more_than_half_of_the_margin_resolves_nothing():
    control = [0.99, 1.0, 1.0, 1.01]
    assert timing.width(control) == pytest.approx(0.005)
    assert timing.resolved(control, 0.02)
    assert not timing.resolved(control, 0.009)
    assert not timing.resolved([1.0], 1.0)


def test_ratios_and_differences_are_of_one_round():
    found = {"a": [2.0, 9.0], "b": [1.0, 3.0]}
    assert timing.over(found, "a", "b") == [2.0, 3.0]
    assert timing.more(found, "a", "b") == [1.0, 6.0]


def test_hooks_are_exchanged_on_one_model_without_touching_each_other():
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), []
    bare = timing.Hooks(model)
    kept = []
    for name in ("first", "second"):
        bare.fork()
        model[0].register_forward_hook(lambda *_, name=name: seen.append(name))
        model[1].register_forward_hook(lambda *_, name=name, **__: seen.append(name), with_kwargs=True)
        model[1].weight.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(f"grad {name}"))
        kept.append(timing.Hooks(model))
    for hooks, wanted in (
        (bare, []),
        (kept[0], ["first", "first", "grad first"]),
        (kept[1], ["second", "second", "grad second"]),
        (bare, []),
    ):
        hooks.put()
        seen.clear()
        model(torch.ones(1, 2)).sum().backward()
        assert seen == wanted


def test_a_row_that_is_not_resolved_has_no_verdict_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_rows, "BUILD", tmp_path)
    monkeypatch.setattr(_rows, "ROOT", tmp_path)
    rows = _rows.Rows("part", "make bench PART=part")
    rows.add("clear", [1.0, 1.1, 1.2], "<= 1.02")
    rows.add("lost", [1.0, 1.1, 1.2], "<= 1.02", resolved=False)
    written = [json.loads(line) for line in rows.write().read_text(encoding="utf-8").splitlines()]
    assert [row["met"] for row in written] == [False, None]
    page = render.section("part", written)
    assert "0 of 1 targets met; 1 not resolved; missed: clear." in page
    assert "| lost | 1.1 | <= 1.02 | not resolved |" in page
