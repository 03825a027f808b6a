"""Programs to compare with: set up under build/peers/NAME, never in the project's own environment, and driven as commands.

Responsible for: finding or installing restic (the distribution's package, unpacked), DVC and Ray (virtual environments); git is the
system's. Refuses: to pretend; a peer that cannot be set up is None, and its rows say so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench._rows import ROOT

PEERS = ROOT / "build" / "peers"
SETUP_S = 900


def _ran(command: list[str], folder: Path) -> bool:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SETUP_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        print(f"peer: {command[0]}: {e}", flush=True)
        return False
    if done.returncode:
        print(f"peer: {' '.join(command)[:100]} ended with {done.returncode}: {done.stderr.strip()[-200:]}", flush=True)
    return done.returncode == 0


def git() -> Path | None:
    """The system's git."""
    found = shutil.which("git")
    return Path(found) if found else None


def restic() -> Path | None:
    """The system's restic, or the distribution's package unpacked."""
    if found := shutil.which("restic"):
        return Path(found)
    folder = PEERS / "restic"
    program = folder / "usr" / "bin" / "restic"
    if not program.exists() and shutil.which("apt-get"):
        folder.mkdir(parents=True, exist_ok=True)
        fetched = _ran(["apt-get", "download", "restic"], folder) or (
            _ran(["apt-get", "update"], folder) and _ran(["apt-get", "download", "restic"], folder)
        )
        if fetched:
            _ran(["dpkg", "-x", *map(str, folder.glob("restic_*.deb")), str(folder)], folder)
    return program if program.exists() else None


def dvc() -> Path | None:
    """DVC in an environment of its own."""
    folder = PEERS / "dvc"
    program = folder / ".venv" / "bin" / "dvc"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not _ran([sys.executable, "-m", "venv", str(folder / ".venv")], folder) or not _ran(
            [
                str(folder / ".venv" / "bin" / "python"),
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "dvc",
            ],
            folder,
        ):
            return None
    return program if program.exists() else None


def ray() -> Path | None:
    """An interpreter that has Ray, in an environment of its own."""
    folder = PEERS / "ray"
    python = folder / ".venv" / "bin" / "python"
    if python.exists() and _ran([str(python), "-c", "import ray"], folder):
        return python
    folder.mkdir(parents=True, exist_ok=True)
    made = _ran([sys.executable, "-m", "venv", str(folder / ".venv")], folder)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "ray"]
    return python if made and _ran(install, folder) else None
