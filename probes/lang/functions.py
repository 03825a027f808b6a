"""The functions, methods and names of the probe language, as data.

Responsible for: each function's form, what it gives and the sentence about it; the reference page and the error "no function"
are made from this table, and a test holds the compiler to it. Refuses: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from probes import isa


@dataclass(frozen=True, slots=True)
class Function:
    """`op`: the instruction it is, where it is one; `macro`: the expression it stands for, where it is several."""

    form: str
    gives: str
    doc: str
    op: str = ""
    macro: str = ""

    @property
    def name(self) -> str:
        """The word before the parenthesis."""
        return self.form.partition("(")[0]


REDUCTIONS: Final = (
    Function("sum(x)", "float", "sum of all elements", "SUM"),
    Function("sumsq(x)", "float", "sum of squares", "SUMSQ"),
    Function("absmax(x)", "float", "largest magnitude", "ABSMAX"),
    Function("min(x)", "float", "smallest element", "MIN"),
    Function("max(x)", "float", "largest element", "MAX"),
    Function("mean(x)", "float", "mean of all elements", "MEAN"),
    Function("dot(x, y)", "float", "sum of the products; equal shapes", "DOT"),
    Function("count_gt(x, e)", "int", "number of elements above e", "COUNTGT"),
    Function("count_nonfinite(x)", "int", "number of elements that are NaN or infinite", "COUNTNF"),
    Function("argmax(x)", "int", "position of the first largest element, in C order", "ARGMAX"),
    Function("entropy(x)", "float", "entropy of probabilities, over all elements", "ENTROPY"),
    Function("kl(x, y)", "float", "Kullback-Leibler divergence of probabilities; equal shapes", "KL"),
    Function("lse(x)", "float", "log of the sum of exponentials, of a vector", "LSE"),
    Function("entropy_logits(x)", "float", "entropy of the softmax of a vector", "ENTROPYL"),
    Function("kl_logits(x, y)", "float", "KL of the softmax of x from that of y, of vectors of equal length", "KLL"),
)
"""Functions of views that are one instruction."""

SCALARS: Final = (
    Function("sqrt(e)", "float", "square root", "FSQRT"),
    Function("exp(e)", "float", "e to the power", "FEXP"),
    Function("log(e)", "float", "natural logarithm", "FLOG"),
    Function("floor(e)", "float", "largest whole number not above e; an int stays as it is", "FFLOOR"),
    Function("abs(e)", "as e", "magnitude", "FABS"),
    Function("isfinite(e)", "bool", "neither NaN nor infinite", "ISFINITE"),
    Function("int(e)", "int", "towards zero, saturating; 0 for NaN", "F2I"),
    Function("float(e)", "float", "rounded to nearest even", "I2F"),
    Function("min(a, b, ...)", "int or float", "the smallest; NaN when one is NaN", "FMIN"),
    Function("max(a, b, ...)", "int or float", "the largest; NaN when one is NaN", "FMAX"),
)
"""Functions of numbers that are one instruction for each pair of operands."""

MACROS: Final = (
    Function("rms(x)", "float", "root of the mean square", macro="sqrt(sumsq(x) / x.size)"),
    Function("norm(x)", "float", "Euclidean length", macro="sqrt(sumsq(x))"),
    Function("var(x)", "float", "variance, not below 0", macro="max(sumsq(x) / x.size - mean(x) * mean(x), 0.0)"),
    Function("std(x)", "float", "standard deviation", macro="sqrt(var(x))"),
    Function("isnan(e)", "bool", "is NaN", macro="e != e"),
    Function("bool(e)", "bool", "is not 0; NaN is not 0", macro="e != 0"),
    Function("clip(e, low, high)", "int or float", "e kept inside [low, high]", macro="min(max(e, low), high)"),
    Function("len(x)", "int", "size along the first axis", macro="x.shape[0]"),
)
"""Functions that stand for an expression."""

INLINE: Final = tuple(h for h in isa.HELPERS if h.tier is not isa.Tier.ASYNC)
ASYNC: Final = tuple(h for h in isa.HELPERS if h.tier is isa.Tier.ASYNC)
VECTOR_ONLY: Final = frozenset({"lse", "entropy_logits", "kl_logits"})
"""Functions that would mix rows if they took a matrix."""
OF_VIEWS: Final = frozenset(
    {f.name for f in REDUCTIONS} | {"rms", "norm", "var", "std"} | {h.name for h in INLINE if set(h.views) == {1}}
)
"""Functions that `sum`, `mean`, `min` and `max` take vector by vector."""
NAMES: Final = frozenset({f.name for f in (*REDUCTIONS, *SCALARS, *MACROS)} | {h.name for h in isa.HELPERS} | {"range"})
REDUCTION_OPS: Final = {f.name: f.op for f in REDUCTIONS}
CONTEXT: Final = tuple(name for name, _ in isa.CONTEXT_INTS)
CONSTANTS: Final = ("inf", "True", "False")
METHODS: Final = {
    "add": ("m.add(e)", (isa.MapKind.LOG2, isa.MapKind.LINEAR), "count e in its bin"),
    "inc": ("m.inc(key)", (isa.MapKind.ARRAY, isa.MapKind.HASH), "add 1 to the cell"),
    "raise_to": ("m.raise_to(key, e)", (isa.MapKind.ARRAY, isa.MapKind.HASH), "keep the larger of the cell and e"),
    "emit": ("m.emit(tag, e)", (isa.MapKind.RING,), "append (step, site, tag, e)"),
}
"""Methods of maps: form, kinds, what it does. Arrays and hashes are also read and written as `m[key]`."""
AGGREGATES: Final = {
    "count": "count(): how often",
    "sum": "sum(e): the sum",
    "avg": "avg(e): sum and count, so the mean is sum / count",
    "min": "min(e): the smallest, with a count",
    "max": "max(e): the largest, with a count",
    "last": "last(e): the latest; a bare expression means the same",
    "hist": "hist(e): histogram by powers of two",
    "lhist": "lhist(e, low, high, step): histogram of equal bins",
    "emit": "emit(e): append to a ring of 1024 entries; a key is its tag",
}
"""What may stand right of `=` in a one-liner."""
