"""Small tables for notebooks: what `_repr_html_` of a session, a runtime and a watch shows.

Responsible for: escaped HTML without scripts, styles of its own or anything to load. Refuses: markup in values.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A captioned table."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_text(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def status(found: Mapping[str, Any]) -> str:
    """The status map: where the plan is, and the servers."""
    if not found:
        return "<p>RecurOS: no status yet</p>"
    windows = found.get("windows", {})
    losses = [f"{k} {v:.4g}" for k in ("loss", "kd", "task") if isinstance(v := found.get("metrics", {}).get(k), float)]
    title = f"RecurOS {found.get('app', '')}: {found.get('state', '')}"
    facts = [
        (
            "plan",
            f"{found.get('done_windows', 0)} of {found.get('planned', 0)} windows, generation {found.get('generation', 0)}",
        ),
        ("windows", ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in windows.items())),
        ("figures", ", ".join(losses) or "-"),
        ("probes", ", ".join(str(p.get("prog")) for p in found.get("probes", [])) or "none"),
        ("snapshot", found.get("snapshot") or "none yet"),
        ("ledger", f"{found.get('ledger', {}).get('size', 0)} records"),
    ]
    keys = ("name", "class", "state", "pid", "restarts")
    servers = [[s.get(k, "-") for k in keys] for s in found.get("servers", [])]
    return table(title, ("", ""), facts) + table("servers", keys, servers)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
