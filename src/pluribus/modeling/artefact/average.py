"""An average: several fitted members behind one face, each task answered by a weighted mean of them.

The members are the fits of one candidate (other seeds, other folds), or those of several candidates (a blend). Averaging the
fits of one candidate gains about twice what the luckiest of them gains (measured over 764 pairs of a table and a method by the
authors of TabM).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling.artefact.fitted import Costs, Fitted, Wanted
from pluribus.modeling.artefact.loading import load
from pluribus.modeling.artefact.preprocessing import Preprocessing
from pluribus.tasks import Task


class Average(Fitted):
    """Members by name, and how much each weighs in the answer to each task.

    A task that answers with lists or maps has one member of weight 1: those are not averaged.

    Parameters
    ----------
    tasks : sequence of Task
        What it predicts.
    columns : Preprocessing
        What prepares the tables that it predicts; the members were fitted on the same.
    members : mapping
        Name → fitted artefact. Their calibrations are applied before the mean is taken.
    weights : mapping
        Task → member → weight, positive; they are scaled to a sum of 1.

    Raises
    ------
    BadInput
        A task without a member, an unknown member, weights that are not positive, lists or maps with several members.
    """

    artefact = "average"

    def __init__(
        self,
        tasks: Sequence[Task],
        columns: Preprocessing,
        members: Mapping[str, Fitted],
        weights: Mapping[str, Mapping[str, float]],
    ) -> None:
        super().__init__(tasks, columns)
        self.members = dict(members)
        self.weights: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            given = weights.get(task.name, {})
            where = f"average, task {task.name!r}"
            for name, weight in given.items():
                if name not in self.members:
                    raise BadInput(
                        f"weighs the member {name!r}, which is not there", where=where, remedy="restore the model folder"
                    )
                if not (math.isfinite(weight) and weight > 0):
                    raise BadInput(f"the weight of {name!r} is {weight}, not a positive number", where=where)
            if not given:
                raise BadInput("no member answers it", where=where, remedy="weigh one")
            if len(given) > 1 and task.record.per != "value":
                raise BadInput("lists and maps are not averaged", where=where, remedy="weigh one member")
            total = sum(given.values())
            self.weights[task.name] = {name: weight / total for name, weight in given.items()}
        for task in self.tasks:  # what only one member answers keeps its threshold and calibration
            (first, *others) = self.weights[task.name]
            if not others and task.name in self.members[first].thresholds:
                self.thresholds[task.name] = self.members[first].thresholds[task.name]

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Any]:
        """Each member is asked once, for the cells that it has a weight in."""
        found: dict[str, Any] = {}
        for name, member in self.members.items():
            mine = {task: rows for task, rows in wanted.items() if name in self.weights[task]}
            if not mine:
                continue
            for task, said in member.calibrated_answer(data, mine).items():
                weight = self.weights[task][name]
                if weight == 1:
                    found[task] = said
                else:
                    found[task] = weight * np.asarray(said) + found.get(task, 0.0)
        return {task: found[task] for task in wanted}

    def costs(self) -> Costs:
        """The sum over the members that answer."""
        return Costs.together([member.costs() for member in self.members.values()])

    def write(self, folder: Path) -> dict[str, Any]:
        """Each member as a folder of its own: `member-I/`."""
        places = {name: f"member-{i}" for i, name in enumerate(self.members)}
        for name, place in places.items():
            self.members[name].save(folder / place)
        return {"members": places, "weights": self.weights}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: Any) -> Average:
        """Undo `write`; the members' hashes are checked."""
        places, weights = manifest["members"], manifest["weights"]
        for i, (name, place) in enumerate(places.items()):
            if place != f"member-{i}":
                raise BadInput(
                    f"has the member {name!r} at the impossible place {place!r}", where="members", remedy="restore the folder"
                )
        for task, each in weights.items():
            for name, weight in each.items():
                if not isinstance(weight, int | float) or isinstance(weight, bool):
                    raise BadInput(
                        f"the weight of {name!r} is no number", where=f"weights, {task!r}", remedy="restore the folder"
                    )
        return cls(tasks, columns, {name: load(folder / place) for name, place in places.items()}, weights)
