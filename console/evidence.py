"""Figures of layers out of the evidence that committed windows left.

Responsible for: which object holds a window's probe maps, both of its forms (the learner's page of arrays, the JSON of
`recuros.watch`), and the figures that name a layer in them. Refuses: to interpret a probe beyond the summary that came with its maps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from kfs.records import Record
from kfs.store import Store
from syscalls.errors import RecurosError
from syscalls.pages import unpack_arrays

LAYERS_MAX: Final = 256
WATCH: Final = "watch:"
WHOLE, LAST = "(model)", "(last layer)"
_NO_FIGURES: Final = frozenset({"samples", "by_head", "layers"})
Figures = dict[str, dict[str, float]]


def evidence_of(record: Record) -> str:
    """The object that holds the probe maps of a window.commit record; empty when it left none."""
    named = (record.args.get("inputs") or {}).get("evidence") or ""
    if not named and record.actor.startswith(WATCH) and record.input_ids:
        return record.input_ids[0]
    return str(named)


def read_layers(store: Store, evidence: str) -> dict[str, Figures]:
    """{program: {layer: {figure: value}}} of an evidence object. E4-NOENT when it was collected, E2-WIRE when it is none."""
    data = bytes(store.get(evidence).data)
    found: dict[str, Figures] = {}
    for held in _maps(data).values():
        if not isinstance(held, Mapping):
            continue
        summary = (held.get("map") or {}).get("summary")
        if isinstance(summary, Mapping) and (layers := layer_figures(summary)):
            name = str(held.get("program", "")).removeprefix("builtin:").partition(",")[0]
            found.setdefault(name, {}).update(layers)
    return found


def _maps(data: bytes) -> Mapping[str, Any]:
    if not data.startswith(b"{"):
        _, meta = unpack_arrays(memoryview(data))
        maps = meta.get("maps", {})
    else:
        try:
            maps = json.loads(data)
        except ValueError as error:
            raise RecurosError("E2-WIRE", f"evidence is neither a page nor JSON: {error}") from error
    return maps if isinstance(maps, Mapping) else {}


def layer_figures(summary: Mapping[str, Any]) -> Figures:
    """{layer: {figure: value}} out of a probe's summary: its maps name layers, its plain figures are of the whole model."""
    found: Figures = {}
    for key, value in summary.items():
        if isinstance(value, Mapping) and key != "ran":
            for layer, figures in list(value.items())[:LAYERS_MAX]:
                named = figures if isinstance(figures, Mapping) else {"norm" if key == "parameters" else key: figures}
                kept = {str(k): float(v) for k, v in named.items() if _is_number(v)}
                if kept:
                    found.setdefault(str(layer), {}).update(kept)
        elif (
            key == "last" and "kl" in summary and _is_number(value)
        ):  # attn-kl: the mean over layers, and the last layer's
            found.setdefault(LAST, {})["kl"] = float(value)
        elif _is_number(value) and key not in _NO_FIGURES:
            found.setdefault(WHOLE, {})[str(key)] = float(value)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
