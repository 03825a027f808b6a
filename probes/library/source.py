"""What a built-in is: the source of a verified program and the reader of its maps.

Responsible for: `Source`, its parameters put in as constants, and the few ways in which readers look into a document of
`probes.cells.read`. Refuses: nothing; `probes.catalogue` has checked names and values. Standard library only, so that the kernel's
side, the shell and the Observer compile and read without torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from probes import isa, lang

Document = Mapping[str, Any]
"""What `probes.cells.read` gives for the maps of one program."""
Figures = dict[str, Any]
ROWS_CHOSEN: Final = """
    # At most ROWS rows, spread evenly: multiples of a stride near n / golden ratio that shares no factor with n (Weyl's
    # sequence), so that they are distinct and do not lock on to one position of a fixed-length sequence.
    n = student.shape[0]
    stride = 1
    if n > ROWS:
        first = int(float(n) * 0.6180339887 + 0.5)
        coprime = 0
        for step_ in range(40):
            if coprime == 0:
                a = n
                b = first + step_
                for euclid in range(48):
                    if b > 0:
                        rest = a % b
                        a = b
                        b = rest
                if a == 1:
                    coprime = 1
                    stride = first + step_
"""
"""Lines of a program of `on_kd_step` that bounds its rows: gives `n` and `stride`; row k is `k * stride % n`.

40 tries and 48 divisions are enough for any n below 2^31 (Jacobsthal's function of 9 primes; Lamé 1844).
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A built-in: `text` in the probe language, whose constants in capitals are its parameters, and `summary`, its reader."""

    name: str
    text: str
    summary: Callable[[Document], Figures]

    def compile(self, params: Mapping[str, float], hook: str = "") -> isa.Bytecode:
        """The program with these parameters (`every` among them), for `hook` where that is not its own."""
        text = self.text
        for key, value in params.items():
            text = _constant(text, key, value)
        program = lang.compile_source(text, f"{self.name.replace('-', '_')}.py")
        return isa.Bytecode(
            name=self.name,
            hook=hook or program.hook,
            every=int(params.get("every", program.every)),
            maps=program.maps,
            code=program.code,
            lines=program.lines,
            source=text,
        )


def _constant(text: str, key: str, value: float) -> str:
    return re.sub(rf"(?m)^{key.upper()} = .*$", f"{key.upper()} = {value!r}", text)


# --- looking into a document --------------------------------------------------------------------------------------------


def fields(document: Document, name: str) -> dict[str, float]:
    """An array's cells by the names of its fields."""
    held = document["maps"][name]
    return dict(zip(held["fields"], map(float, held["values"]), strict=True))


def values(document: Document, name: str) -> list[float]:
    """An array's cells."""
    return [float(value) for value in document["maps"][name]["values"]]


def rows(document: Document, name: str) -> Iterator[tuple[str, list[float]]]:
    """The cells of each site of a per-site array, with the site's name (its number where it has none)."""
    names = document.get("sites") or []
    for number, row in enumerate(document["maps"][name]["rows"]):
        yield names[number] if number < len(names) else str(number), [float(value) for value in row["values"]]


def table(document: Document, name: str) -> dict[str, dict[str, float]]:
    """The same by the names of the fields; sites that have not fired, whose cells are all 0, are left out."""
    columns = document["maps"][name]["fields"]
    return {site: dict(zip(columns, row, strict=True)) for site, row in rows(document, name) if any(row)}


def ratio(numerator: float, denominator: float) -> float | None:
    """Their quotient, or None where there is none."""
    if not denominator:
        return None
    quotient = numerator / denominator
    return quotient if math.isfinite(quotient) else None


def mean_of(found: list[float | None]) -> float | None:
    """Mean of those that there are; None of none."""
    there = [value for value in found if value is not None]
    return sum(there) / len(there) if there else None
