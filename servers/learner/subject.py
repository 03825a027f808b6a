"""The learner's models as probe helpers may look at them at a window's end.

Responsible for: making a `probes.helpers.subject.Subject` of an engine. Refuses: to hand out anything that trains.
"""

from __future__ import annotations

from torch import Tensor

from probes.helpers.subject import Batch, Subject
from probes.hooks import Dispatcher
from servers.learner.engine import Engine
from servers.learner.objective import layer_map
from servers.models.model import valid_rows


def subject_of(engine: Engine, dispatcher: Dispatcher, batch: Batch) -> Subject:
    """Both roles on `batch`, the last that was trained on; rows are those with a target."""

    def forward(role: str, columns: Batch) -> tuple[Tensor, Tensor]:
        engine.fetch()
        model = engine.roles[role].model
        there = {name: values.to(engine.device) for name, values in columns.items()}
        out = model.forward(there)
        targets = valid_rows(model.targets(there)[..., None], out.valid_mask)[:, 0]
        return valid_rows(out.logits, out.valid_mask), targets

    modules = {role: held.model.module for role, held in engine.roles.items()}
    return Subject(
        modules,
        forward,
        batch,
        dispatcher.quiet,
        pairs=layer_map(engine.kd, engine._roles),
        generation=engine.generation,
        teacher_version=engine.roles["teacher"].version,
    )
