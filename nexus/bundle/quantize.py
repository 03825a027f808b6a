"""A quantized bundle from a plain one.

Responsible for: a new bundle whose backbone is quantized, whose adapters are the same bytes, and whose report says what was checked of the
quantized thing itself. Refuses: quantizing twice; carrying the plain bundle's verdict over; a quantized bundle that its check did not
pass; gated adapters without the opt-in (they are left out, and the manifest says so).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file

from nexus.bundle import format as form
from nexus.bundle import verify
from nexus.bundle.load import load_student
from nexus.bundle.texts import readme
from nexus.bundle.write import metadata, place, seal, unshared, versions, write_json
from nexus.model.quantized import checked_scheme, quantize_state
from syscalls.errors import RecurosError

PASSED: Final = "pass"


def quantize_bundle(
    src: Path | str,
    dst: Path | str,
    scheme: str,
    *,
    enable_uncensored: bool = False,
    recheck: Callable[[Path], Mapping[str, Any]] | None = None,
) -> form.Manifest:
    """Write `src`, a plain bundle, quantized to `dst`, which must not exist.

    `scheme`: qint8, int8pack (they run quantized on a CPU), int8, nf4 (storage). `enable_uncensored`: take gated adapters along.
    `recheck(bundle)` is given the finished quantized bundle and returns its verify report; unless `report["verdict"]` is "pass"
    there will be no bundle (E1-NO). Without it the report says that nobody checked.
    """
    source, scheme = Path(src), checked_scheme(scheme)
    manifest = form.read_manifest(source)
    if manifest.scheme != "none":
        raise RecurosError(
            "E2-USAGE", f"{source} is quantized already ({manifest.scheme})", hint="start from the plain bundle"
        )
    verify.verify(source, manifest, gate_open=enable_uncensored).raise_if_bad(source)
    student, _ = load_student(source, manifest, check=True)
    dropped = () if enable_uncensored else tuple(sorted(c.name for c in manifest.capabilities.values() if c.gated))
    capabilities = {n: dict(c.about) for n, c in manifest.capabilities.items() if n not in dropped}
    rewritten = {form.BACKBONE, form.BACKBONE_INDEX, form.REPORT, form.README, form.CONFIG}
    closed = {manifest.capabilities[name].adapter for name in dropped}
    with place(Path(dst)) as folder:
        for path in manifest.files:
            if path not in rewritten and path not in closed:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / path, folder / path, follow_symlinks=False)
        state = quantize_state(student.backbone, unshared(student.backbone), scheme)
        about = metadata({"scheme": scheme, "quantized_from": manifest.backbone_id})
        save_file(
            {key: value.contiguous() for key, value in state.items()}, str(folder / form.BACKBONE), metadata=about
        )
        config = form.read_json(source / form.CONFIG)
        config["adapters"] = {n: a for n, a in config.get("adapters", {}).items() if n not in dropped}
        write_json(folder / form.CONFIG, config)
        write_json(folder / form.REPORT, {"verdict": "not verified", "quantized_from": manifest.bundle_id})
        (folder / form.README).write_text(readme(str(manifest.data["name"]), capabilities, scheme), encoding="utf-8")
        data = {
            **manifest.data,
            "versions": versions(),
            "capabilities": capabilities,
            "quantization": {"scheme": scheme, "from": manifest.bundle_id, "left_out": list(dropped)},
        }
        sealed = seal(folder, data)
        if recheck is not None:
            sealed = _rechecked(folder, data, recheck(folder), scheme)
    return sealed


def _rechecked(folder: Path, data: Mapping[str, Any], report: Mapping[str, Any], scheme: str) -> form.Manifest:
    if report.get("verdict") != PASSED:
        raise RecurosError(
            "E1-NO",
            f"quantized as {scheme} the bundle does not meet its contracts: {report.get('verdict')!r}",
            hint="try another scheme; the report is in the error's details",
            details={"report": dict(report)},
        )
    write_json(folder / form.REPORT, dict(report))
    return seal(folder, data)
