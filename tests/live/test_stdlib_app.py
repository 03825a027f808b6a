"""The stdlib app with its plan cut short: a teacher learns, a student is distilled, and the report is about held-out files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from servers import manifest as manifests

WAIT_S = 150.0


def shortened(folder: Path) -> Path:
    """The app on one package of the library, with few and short windows."""
    manifest = manifests.load(manifests.app_path("stdlib"))
    assert manifest.data.kind == "code"
    assert manifest.data.path is None, "the app reads the library of the Python that runs it"
    manifest.data.path = str(Path(json.__file__).parent)
    manifest.data.reservoir = None
    manifest.data.fractions = [0.6, 0.2, 0.2]
    manifest.window.steps = 4
    for phase in manifest.phase:
        phase.windows, phase.warmup_steps = 2, 1
    file = folder / "short.toml"
    file.write_text(manifests.dump(manifest), encoding="utf-8")
    return file


def test_the_app_teaches_and_distils_and_reports_on_files_that_were_held_out(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "console.main", "--run", str(tmp_path / "run"), "boot"]
    done = subprocess.run(
        [*command, "-c", str(shortened(tmp_path)), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["windows"]["committed"] == 4
    assert report["windows"]["missed"] == 0
    assert report["ledger"]["verified"]
    assert report["teacher"]["params"] > 7 * report["student"]["params"]
    assert 0.0 < report["student"]["score"] < 1.0
