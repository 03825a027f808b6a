"""The how-to page about a policy of one's own: its pack is one that the Observer would take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from servers.observer.policy import HeldOut, numbers_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "own-policy.md"


def test_the_pack_of_the_page_decides_as_it_says() -> None:
    [source] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "softer"}
    exec(compile(source, str(PAGE), "exec"), names)
    pack = names["PACK"]
    numbers = numbers_of(pack, {"pack": "softer", "step": 0.2})
    seen = HeldOut()
    seen.add(0.05, 0.9)
    seen.add(0.08, 0.9)
    evidence = names["Evidence"](
        window=9, diagnostics={}, trajectory=None, held_out=seen, samples=None, temperature=2.0, changed_at=0
    )
    decision = pack.decide(evidence, numbers)
    assert decision.settings == {"temperature": 2.2}
    assert "0.0800 above its average 0.0500" in decision.reasons[0]
    seen.fresh = False
    assert pack.decide(evidence, numbers).settings == {}
    assert pack.decide(replace(evidence, temperature=3.95, held_out=HeldOut(2, 0.9, 0.1, True)), numbers).settings == {
        "temperature": 4.0
    }
