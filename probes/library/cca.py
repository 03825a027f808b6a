"""SVCCA and PWCCA between student and teacher hidden states: the mean canonical correlation, plain and weighted.

    rho_1 >= rho_2 >= ... = singular values of Q_x^T Q_y,  Q: orthonormal bases of the centred features
    SVCCA = mean of rho after both sides are cut to the directions that hold 99 % of their variance
    PWCCA = sum_i alpha_i rho_i / sum_i alpha_i,  alpha_i = sum_j |<h_i, x_j>|,  h_i the student's canonical variates

Sources: Raghu et al. 2017, section 2; Morcos, Raghu and Bengio 2018, equation 3. Made by `probes.helpers.cca` over a reservoir of the
latest rows; None until there are ten rows for each direction compared, below which canonical correlations are near 1 for noise too.
"""

from __future__ import annotations

from collections.abc import Callable

from probes.library.source import Document, Figures, Source, mean_of, table

_TEXT = '''
"""{doc} of each mapped pair of layers."""
hook("on_kd_step", every=25)

pairs = map.results("{name}")


def probe(hs, ht):
    {name}(hs, ht, into=pairs)
'''


def _summary(name: str) -> Callable[[Document], Figures]:
    def summary(document: Document) -> Figures:
        pairs = {
            site: {name: row[name] or None, "rows": int(row["rows"])} for site, row in table(document, "pairs").items()
        }
        return {name: mean_of([pair[name] for pair in pairs.values()]), "pairs": pairs}

    return summary


SVCCA = Source("svcca", _TEXT.format(name="svcca", doc="SVCCA"), _summary("svcca"))
PWCCA = Source("pwcca", _TEXT.format(name="pwcca", doc="Projection-weighted CCA"), _summary("pwcca"))
