"""The built-in probes: one small file each, and the explicit list of them.

Responsible for: `compile`, from `builtin:NAME[,key=value...]` to a program like anyone's, and `summary`, from its maps to figures; both
without torch. `build` makes one that can be attached to a dispatcher, verified for the sizes it is given.
`probes.catalogue` declares the same names with hooks, parameters, rights and one-line docs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from probes import catalogue, isa
from probes.library import (
    attn_entropy,
    cca,
    cka,
    dead_units,
    disagreement,
    distance,
    ece,
    entropy,
    examined,
    gradnoise,
    gradnorm,
    movement,
    nan_watch,
    pruned,
    rkd,
    rms,
    sparsity,
)
from probes.library.source import Document, Figures, Source

if TYPE_CHECKING:
    from probes.library.attached import BuiltIn

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        attn_entropy.SOURCE,
        examined.ATTENTION_KL,
        cka.SOURCE,
        dead_units.SOURCE,
        distance.DEEP_KNN,
        disagreement.SOURCE,
        ece.SOURCE,
        entropy.SOURCE,
        examined.EWC,
        examined.FISHER,
        gradnoise.SOURCE,
        gradnorm.SOURCE,
        examined.JACOBIAN,
        distance.MAHALANOBIS,
        movement.SOURCE,
        nan_watch.SOURCE,
        pruned.SOURCE,
        cca.PWCCA,
        rkd.SOURCE,
        rms.SOURCE,
        sparsity.SOURCE,
        cca.SVCCA,
    )
}


@lru_cache(maxsize=64)
def compile(prog: str) -> isa.Bytecode:
    """The program of `builtin:NAME[,key=value...]`. Raises what `probes.catalogue.parse` raises."""
    builtin, params = catalogue.parse(prog)
    return SOURCES[builtin.name].compile(params)


def summary(prog: str, document: Document) -> Figures:
    """What the maps of `builtin:NAME...` amount to; `document` as `probes.cells.read` gives it."""
    name = prog.removeprefix(catalogue.PREFIX).partition(",")[0]
    return SOURCES[name].summary(document)


def build(prog: str, every: int = 0, dims: Mapping[str, int] | None = None, **given: Any) -> BuiltIn:
    """A verified program for `builtin:NAME[,key=value...]`; `every` > 0 overrides its cadence.

    `dims`: the largest sizes it may meet, `isa.REFERENCE_DIMS` where they are not given; `given`: what `BuiltIn` takes besides.
    Raises what `probes.catalogue.parse` raises.
    """
    from probes.library.attached import load

    return load(prog if not every else f"{prog},every={every}", dims or {}, **given)
