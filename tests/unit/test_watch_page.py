"""The how-to page about watching a script: its script runs as it stands, and its commands print what it promises."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from console import main as console

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "watch-a-training-script.md"


def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    [script] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(PAGE.parents[2])}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=200
    )
    assert "student/0" in done.stdout
    assert "watching took" in done.stdout
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    for part in block.split("$ recuros ")[1:]:
        line, *promised = part.splitlines()
        status = console.run(shlex.split(line))
        assert status == (1 if " diff " in line else 0), line
        printed = [" ".join(seen.split()) for seen in capsys.readouterr().out.splitlines()]
        for wanted in promised:
            pattern = ".*".join(map(re.escape, wanted.split("...")))
            assert any(re.search(pattern, seen) for seen in printed), (line, wanted, printed)
