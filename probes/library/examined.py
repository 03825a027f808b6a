"""Figures of a window's end that need passes of their own: Fisher information, EWC, Jacobians, KL of attention.

Sources and formulas: `probes.helpers.examine`, which makes the figures with the model that the window made, at every WINDOWS-th window;
the learner is not training meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from probes.library.source import Document, Figures, Source, table

_TEXT = '''
"""{doc} at the end of every WINDOWS-th window."""
hook("on_snapshot")

WINDOWS = 8

looks = map.results("{helper}")


def probe():
    if firing % WINDOWS == 0:
        {helper}(into=looks)
'''


def _look(document: Document) -> dict[str, float] | None:
    """The cells of the latest look; None before one that had a sample."""
    row = next(iter(table(document, "looks").values()), None)
    return row if row and row["samples"] else None


def _figures(names: tuple[str, ...], counts: tuple[str, ...]) -> Callable[[Document], Figures]:
    def summary(document: Document) -> Figures:
        row = _look(document)
        if row is None:
            return {**dict.fromkeys(names), **dict.fromkeys(counts, 0), "status": "no window's end was looked at yet"}
        return {**{n: row[n] for n in names}, **{n: int(row[n]) for n in counts}, "status": "ok"}

    return summary


def of_jacobian(document: Document) -> Figures:
    """{"student", "teacher": Frobenius norms, "drift" or None where the inputs are tokens, "directions", "samples"}."""
    found = _figures(("student", "teacher", "drift"), ("directions", "samples"))(document)
    return {**found, "drift": found["drift"] or None}


def _source(name: str, helper: str, doc: str, summary: Callable[[Document], Figures]) -> Source:
    return Source(name, _TEXT.format(helper=helper, doc=doc), summary)


FISHER = _source(
    "fisher",
    "fisher_samples",
    "Diagonal of the Fisher information",
    _figures(("trace", "max", "mean"), ("samples", "parameters")),
)
EWC = _source(
    "ewc",
    "ewc",
    "Elastic distance from the generation's first look",
    _figures(("penalty", "moved", "trace"), ("samples", "parameters")),
)
JACOBIAN = _source("jacobian", "jacobian", "Norm and drift of the Jacobian", of_jacobian)
ATTENTION_KL = _source(
    "attn-kl", "attention_kl", "KL of attention", _figures(("kl", "last"), ("layers", "by_head", "samples"))
)
