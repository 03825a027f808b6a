"""Hints: the student's hidden states, projected, follow the teacher's.

hint = sum over mapped layers l of the mean over content positions i and teacher width j of w_i * (H_T[l][i, j] -
phi_l(H_S[l])[i, j])^2 (Romero et al. 2015, equation 3). The mean makes alpha independent of batch, length and width; the
squared norm of a position is the teacher's width times that mean.
"""

from __future__ import annotations

from torch import Tensor, nn

from servers.learner.losses.base import KdSettings, Rows, Term
from syscalls.errors import RecurosError


class HintTerm(Term):
    """alpha * hint."""

    name = "hint"
    needs = frozenset({"teacher", "hidden", "projector"})

    def coefficient(self, kd: KdSettings) -> float:
        """Alpha."""
        return kd.alpha

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Weighted mean squared distance, summed over mapped layers."""
        assert rows.hidden_weight is not None, "the engine keeps hidden states when this term is on"
        total = rows.student.new_zeros(())
        if rows.teacher_hidden and len(rows.teacher_hidden[0]) != len(rows.hidden_weight):
            raise _positions_differ(len(rows.hidden_weight), len(rows.teacher_hidden[0]))
        for teacher, student, project in zip(rows.teacher_hidden, rows.student_hidden, rows.projectors, strict=True):
            squared = (teacher - project(student)).square().mean(dim=-1)
            total = total + (squared * rows.hidden_weight).mean()
        return total


def _positions_differ(student: int, teacher: int) -> RecurosError:
    return RecurosError(
        "E2-MODEL",
        f"hint: the student has {student} hidden positions in this batch, the teacher {teacher}; they cannot be paired",
        hint="alpha = 0, or two models that cut their input alike",
    )


def uniform_map(student_layers: int, teacher_layers: int) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer), counted from 1, spread evenly and ending at both last layers."""
    return tuple((i, max(1, round(i * teacher_layers / student_layers))) for i in range(1, student_layers + 1))


def checked_map(
    pairs: tuple[tuple[int, int], ...], student_layers: int, teacher_layers: int
) -> tuple[tuple[int, int], ...]:
    """The declared map, or the uniform one when it is empty; layers that do not exist are E2-LIMIT."""
    for s, t in pairs:
        if not (1 <= s <= student_layers and 1 <= t <= teacher_layers):
            raise RecurosError(
                "E2-LIMIT",
                f"layer map pairs student layer {s} with teacher layer {t}; they have {student_layers} and {teacher_layers}",
                hint="count layers from 1",
            )
    return pairs or uniform_map(student_layers, teacher_layers)


def check_projector(kind: str, student_width: int, teacher_width: int) -> None:
    """Refuse the identity between layers of different widths (E2-LIMIT)."""
    if kind == "none" and student_width != teacher_width:
        raise RecurosError(
            "E2-LIMIT",
            f'proj "none" needs equal widths; the student has {student_width}, the teacher {teacher_width}',
            hint='use proj = "linear"',
        )


def build_projectors(kind: str, count: int, student_width: int, teacher_width: int) -> nn.ModuleList:
    """One phi per mapped layer: "linear" is learned; "none" is the identity and needs equal widths.

    Between equal widths a learned map starts at the identity. After a swap the student *is* nearly its teacher; a map that starts at
    random would pull it away from there by the largest gradient of the step, and over many generations both drift without a bound.
    """
    check_projector(kind, student_width, teacher_width)
    if kind == "none":
        return nn.ModuleList(nn.Identity() for _ in range(count))
    projectors = [nn.Linear(student_width, teacher_width) for _ in range(count)]
    if student_width == teacher_width:
        for phi in projectors:
            nn.init.eye_(phi.weight)
            nn.init.zeros_(phi.bias)
    return nn.ModuleList(projectors)
