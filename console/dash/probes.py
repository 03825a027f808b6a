"""Probes for the page: the maps of an attached one, and what the verifier says of a program.

Responsible for: reading maps from their page where there is one, with the summary of a built-in, and verifying a built-in as the kernel
does, for the reference sizes. Refuses: to make a certificate up; what cannot be verified here carries the verifier's sentence.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from syscalls.client import Client
from syscalls.errors import RecurosError

BUILTIN: Final = "builtin:"


def read(client: Client, number: int) -> dict[str, Any]:
    """The maps of probe `number`, its summary where it is a built-in, and the way they were read; E4-NOENT for no such probe."""
    from console.verbs.probe_maps import reader

    row = next((p for p in client.status()["status"]["probes"] if p["id"] == number), None)
    if row is None:
        raise RecurosError("E4-NOENT", f"no probe has id {number}", hint="recuros probe ls")
    with reader(client, number) as (look, way):
        found = look()
    if way == "page" and str(row["prog"]).startswith(BUILTIN):
        from probes import library

        found["summary"] = library.summary(row["prog"], found)
    return {"id": number, "prog": row["prog"], "hook": row["hook"], "sites": row["sites"], "read": way, "found": found}


def verified(prog: str) -> dict[str, Any]:
    """The verifier's answer for a built-in: its certificate, or the sentence with which it refuses."""
    from console import programs
    from probes import isa, library

    if not prog.startswith(BUILTIN):
        raise RecurosError("E2-USAGE", f"{prog!r:.80} is no built-in", hint="loaded programs carry their certificate")
    try:
        program = library.compile(prog)
        certificate = asdict(programs.certify(program))
    except RecurosError as error:
        return {"prog": prog, "ok": False, "code": error.code, "message": error.message, "hint": error.hint}
    return {
        "prog": prog,
        "ok": True,
        "certificate": {**certificate, "tiers": isa.Tier(certificate["tiers"]).name.lower()},
        "instructions": len(program.code),
        "bytes": len(isa.encode(program)),
    }
