"""Candidates: roads with their settings, which a study fits and judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pluribus.data.prepared import Prepared
from pluribus.errors import unknown
from pluribus.modeling.artefact.fitted import Array, Costs, Fitted
from pluribus.modeling.budget import Budget, in_turn
from pluribus.modeling.search import Choice, IntRange, LogUniform, SearchSpace, Uniform
from pluribus.tasks.forms import Form


class Candidate(ABC):
    """A road with its settings.

    Class attributes: `name` and `road` (as in the catalog), `label` for people, `space` where settings are searched.
    `settings` overrides the defaults; an unknown setting is an error.
    """

    name: ClassVar[str]
    road: ClassVar[str]
    label: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    space: ClassVar[SearchSpace] = SearchSpace()
    per_task: ClassVar[bool] = False
    """Whether this is a specialist: one model per task, nothing shared (a reference of the verdict)."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """The types of input that it reads beside those that become plain numbers and categories: "text", "sequence" …"""
    cells: ClassVar[frozenset[Form]] = frozenset({"value"})
    """What the tasks that it predicts answer by: one row of outputs a cell, place of a list, place of a map (`Kind.per`)."""
    heads: ClassVar[frozenset[str | None]] = frozenset({None})
    """What answers the tasks that it predicts (`Kind.head`); None: a linear map of features."""
    processes: ClassVar[bool] = False
    """Whether `fit` may be called on all ranks of a running `torch.distributed` group together, and then shares the work."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """What a fit's seconds should not pay for: modules that it imports ("module"), functions that compile ("module:function").
    A study calls them once before its trainings, and each worker before its first fit."""
    encoder: ClassVar[str | None] = None
    """Candidates with the same word here have the same encoder: joint and single are compared among them."""

    def __init__(self, **settings: Any) -> None:
        for key in settings:
            if key not in self.defaults:
                raise unknown("setting", key, self.defaults, where=f"candidate {self.name!r}")
        self.settings: dict[str, Any] = {**self.defaults, **settings}

    def unfit(self, data: Prepared) -> str | None:
        """Why this candidate cannot run on `data`, or None where it can."""
        return None

    def ignored(self, data: Prepared) -> list[str]:
        """Input columns that it cannot read: texts and sequences, unless `reads` names them."""
        return [i.name for i in data.columns.inputs if not i.record.plain and i.type not in self.reads]

    def unreadable(self, data: Prepared) -> str | None:
        """Why it cannot run on `data` for want of something to read (all inputs are of types that it does not read) or because
        it does not predict what there is to predict; else None."""
        for task in data.tasks:
            record = task.record
            if record.head not in self.heads or record.per not in self.cells:
                return f"it does not {record.verb or f'predict tasks of kind {record.name}'}"
        kinds = sorted({i.type for i in data.columns.inputs})
        if data.columns.names or len(self.ignored(data)) < len(data.columns.inputs):
            return None
        return f"the inputs are {' and '.join(kinds)} only, which it does not read"

    def grid(self, data: Prepared) -> list[dict[str, Any]]:
        """Settings that a study tries whatever its budget, each with one of the configurations drawn from `space`."""
        return []

    @abstractmethod
    def estimate(self, data: Prepared) -> float:
        """Rough core-seconds of one fit to its early stop (for `--plan` and for sharing out the budget)."""

    @abstractmethod
    def fit(self, data: Prepared, budget: Budget, seed: int) -> Fitted:
        """Train on `data.parts["train"]`, stop early on `data.parts["valid"]`, within the budget. Deterministic in `seed`
        unless the budget cuts it short; then `record["undertrained"]` names the tasks. Never looks at other parts."""


__all__ = [
    "Array",
    "Budget",
    "Candidate",
    "Choice",
    "Costs",
    "Fitted",
    "IntRange",
    "LogUniform",
    "SearchSpace",
    "Uniform",
    "in_turn",
]
