"""What runs inside the gate's sandbox: load a bundle as a user would, and score it on recorded items.

Responsible for: per-item scores of each capability, with the gate closed or open, as the bundle's own loader gives them; what a
gated capability's items score without it; that a call without the opt-in is denied; where the router sends items. Imports the bundle
loader and this project's scoring, no teacher, no runtime. Refuses: nothing; it reports, and the parent judges.

`python -m nexus.gate.check SPEC.json`: {"bundle", "items", "out", "open", "poison", "capabilities": {name: {"metric", "gated"}}}.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syscalls.errors import RecurosError

if TYPE_CHECKING:
    import torch

    from nexus.bundle.load import NexusModel
    from nexus.data.samples import Samples


def read_items(path: Path, capability: str) -> Samples:
    """Test items that the gate recorded."""
    from safetensors.numpy import load_file

    from nexus.data.samples import Samples

    flat = load_file(str(path))
    scored = flat[f"{capability}/scored"].astype(bool)
    return Samples(flat[f"{capability}/ids"], scored, flat[f"{capability}/lengths"])


def scores_of(model: NexusModel, name: str | None, items: Samples, metric: str) -> list[float]:
    """Per-item scores with a capability's adapter acting (None: the bare backbone)."""
    from nexus.data.samples import score

    student = model.student

    def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        student.set_adapter(name)
        found: torch.Tensor = student(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return found

    return [round(float(v), 6) for v in score(logits, items, metric)]


def acting(model: NexusModel, name: str) -> str | None:
    """The adapter that a capability acts by, loaded if it is not."""
    from nexus.bundle.load import read_adapter

    capability = model.manifest.capabilities[name]
    if not capability.adapter:
        return None
    if name not in model.student.adapter_names:
        model.student.attach(name, read_adapter(model.student, model.bundle, model.manifest, capability))
    return name


def check(spec: dict[str, Any]) -> dict[str, Any]:
    """The scores, and what was denied."""
    from nexus.bundle.load import NexusModel

    model = NexusModel.load(spec["bundle"], full=True)
    model.student.eval()
    items = Path(spec["items"])
    found: dict[str, Any] = {"scores": {}, "leak": {}, "denied": {}, "routes": {}}
    for name, about in spec["capabilities"].items():
        samples = read_items(items, name)
        if not about["gated"] or spec["open"]:
            found["scores"][name] = scores_of(model, acting(model, name), samples, about["metric"])
        else:
            public = [None, *(n for n, a in spec["capabilities"].items() if not a["gated"])]
            for other in public:
                by = None if other is None else acting(model, other)
                leaked = scores_of(model, by, samples, "exact-match")
                found["leak"][f"{name} by {other or 'backbone'}"] = sum(leaked) / len(leaked)
            found["denied"][name] = _denied(model, name, samples)
    if model.router is not None:
        found["routes"] = routes(model, spec["capabilities"], items, found["scores"])
    return found


def routes(
    model: NexusModel, about: dict[str, Any], items: Path, own: dict[str, list[float]]
) -> dict[str, dict[str, Any]]:
    """Where each open capability's items go when no capability is named, and what they score there.

    {name: {"to": {adapter or "": items}, "scores": per item}}; `own`: per-item scores with the capability's own adapter.
    """
    import numpy as np

    found: dict[str, dict[str, Any]] = {}
    for name, table in about.items():
        if table["gated"]:
            continue
        samples = read_items(items, name)
        chosen = [model.route(prompt).capability or "" for prompt, _ in samples.texts()]
        scores = list(own[name])
        for other in sorted(set(chosen) - {name}):
            where = np.flatnonzero([to == other for to in chosen])
            by = acting(model, other) if other else None
            for i, value in zip(where, scores_of(model, by, samples.take(where), table["metric"]), strict=True):
                scores[i] = value
        found[name] = {"to": {to: chosen.count(to) for to in sorted(set(chosen))}, "scores": scores}
    return found


def _denied(model: NexusModel, name: str, samples: Samples) -> str:
    """The code that a call without the opt-in gets; "" when it is answered."""
    prompt = samples.head(1).texts()[0][0]
    try:
        model.generate(prompt, capability=name, max_new_tokens=1)
    except RecurosError as error:
        return error.code
    return ""


def poison(path: str) -> None:
    """What a bundle that cheats would do: read a teacher by a library that no audit hook of Python sees, and call home."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        list(file.keys())
    with socket.socket() as home:
        home.settimeout(1.0)
        home.connect_ex(("127.0.0.1", 9))


def main() -> None:
    """Read the spec, write the findings."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if spec.get("poison"):
        poison(spec["poison"])
    found = check(spec) if not spec.get("poison_only") else {}
    out = Path(spec["out"])
    out.write_text(json.dumps(found, sort_keys=True), encoding="utf-8")


if __name__ == "__main__":
    main()
