"""One model for many tasks: Encoder → Sharing → Heads, running only what the requested cells can reach.

    inputs ──encoder──▶ Features ──sharing──▶ {task: Features} ──heads──▶ {task: outputs}

An architecture whose sharing is woven into the encoder subclasses `MultiTaskModel` and writes `forward` itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput, unknown
from pluribus.modeling.features import Features, Outputs, Shared
from pluribus.modeling.heads import Heads
from pluribus.tasks import Task
from pluribus.tasks.forms import Form

FORMS: dict[Form, str] = {"value": "row", "list": "place of a list", "map": "place of a map"}


class Encoder(nn.Module, ABC):
    """Inputs → Features.

    Attributes
    ----------
    width : int
        The size of the last (of maps: the channel) dimension of `Features.main`, and of its levels.
    members : int or None
        How many predictions a row gets, where that is not one (an ensemble): then `main` is [B, members, width].
    """

    width: int
    members: int | None = None

    @abstractmethod
    def forward(self, inputs: Any, context: Mapping[str, Tensor]) -> Features: ...


class Sharing(nn.Module, ABC):
    """Features → one Features per requested task.

    Attributes
    ----------
    width : int
        The size of the last (of maps: the channel) dimension that the heads receive.
    cells : frozenset of {"value", "list", "map"}
        What it serves: tasks that answer by one row of outputs a cell, by place of a list, by place of a map. Those of different
        forms go through it in passes of their own.
    """

    width: int
    cells: ClassVar[frozenset[Form]] = frozenset({"value"})

    @abstractmethod
    def forward(self, features: Features, rows: Rows) -> Shared: ...

    def reads(self, task: str) -> tuple[str, ...]:
        """Names of the submodules that outputs of `task` depend on; the others must not run when only it is requested."""
        return tuple(name for name, _ in self.named_children())

    def slices(self, task: str) -> dict[str, slice]:
        """Parameter name → the slice of its first dimension that belongs to `task`, for parameters that stack tasks."""
        return {}


Slices = list[tuple[nn.Parameter, slice | None]]


class MultiTaskModel(nn.Module):
    """Encoder → Sharing → Heads.

    Parameters
    ----------
    tasks : sequence of Task
        What is predicted, in order.
    encoder : Encoder
    sharing : Sharing
    heads : Heads or None
        Default: built to fit, `Heads(tasks, sharing.width)`.

    Raises
    ------
    BadInput
        The sharing architecture does not serve what a task answers by.
    """

    def __init__(self, tasks: Sequence[Task], encoder: Encoder, sharing: Sharing, heads: Heads | None = None) -> None:
        super().__init__()
        self.tasks = {task.name: task for task in tasks}
        self.encoder = encoder
        self.sharing = sharing
        self.heads = heads or Heads(tasks, sharing.width)
        self.form: dict[str, Form] = {task.name: task.record.per for task in tasks}
        for name, form in self.form.items():
            if form not in sharing.cells:
                served = " and ".join(FORMS[form] for form in FORMS if form in sharing.cells)
                what = f"answers by {FORMS[form]}, and {type(sharing).__name__} serves tasks that answer by {served}"
                raise BadInput(what, where=f"task {name!r}", remedy="take another sharing architecture, shared_bottom for one")

    def requested(self, rows: Rows | None) -> Rows:
        """Every task on every row where `rows` is None; an unknown task is an error."""
        if rows is None:
            return dict.fromkeys(self.tasks)
        for name in rows:
            if name not in self.tasks:
                raise unknown("task", name, self.tasks)
        return rows

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        """Outputs of the requested cells. `rows`: task → row indices (None: all rows); tasks not named do not run."""
        rows = self.requested(rows)
        return self.outputs(self.encoder(inputs, context or {}), rows)

    def outputs(self, features: Features, rows: Rows) -> Outputs:
        """From the features of every row to the outputs of the requested cells."""
        shared = self.share(features, rows)
        forms = dict.fromkeys(self.form[name] for name in rows) or {"value": None}
        places = {}
        if features.mask is not None:
            for name, where in rows.items():
                if self.form[name] == "list":
                    places[name] = features.mask if where is None or features.selected else features.mask[where]
        read = tuple(features.per(form).main for form in forms)
        return Outputs(self.heads(shared.tasks, rows), read, shared.penalties, shared.extra, places)

    def share(self, features: Features, rows: Rows) -> Shared:
        """What the sharing makes of the features for the requested cells.

        Tasks that answer by one row of outputs a cell read `features.main`; those that answer by place of a list or of a map
        read the levels of that form, where there are any (`Features.per`). Each form has a pass of its own. Where no task is
        asked for (a process's share of a batch may have no label) nothing runs.
        """
        found = Shared({})
        for form in dict.fromkeys(self.form[name] for name in rows):
            one: Shared = self.sharing(features.per(form), {name: rows[name] for name in rows if self.form[name] == form})
            found = found.beside(one)
        return found

    def predict(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What files and metrics see, in the tasks' own units: the link of the outputs, in eval mode, without gradients.

        Returns
        -------
        dict
            Task → [m] or [m, C]; lists [m, L] or [m, L, w], -1 behind the last place of a row; maps as large as the labels.
        """
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self.link(self(inputs, rows, context))
        finally:
            self.train(training)

    def link(self, outputs: Outputs) -> dict[str, Tensor]:
        """Predictions from outputs (see `predict`)."""
        return self.heads.link(outputs, outputs.places) if outputs.places else self.heads.link(outputs)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of the part that every task's features come from: the encoder."""
        return list(self.encoder.parameters())

    def parameters_of(self, task: str) -> Slices:
        """Parameters that only serve `task`, whole or as a slice of the first dimension of a stacked one."""
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        found: Slices = []
        for part in (self.sharing, self.heads):
            named = dict(part.named_parameters())
            found += [(named[name], where) for name, where in part.slices(task).items()]
        return found


__all__ = ["Encoder", "Features", "MultiTaskModel", "Outputs", "Shared", "Sharing", "Slices"]
