"""A committee: several fitted members behind one face, each task answered by one of them.

"Keep your T specialists" and "one model for most, a specialist for the rest" are both committees; they serve, predict and
travel like any other artefact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pluribus.data.columns import FittedColumns
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling.artefact.fitted import Costs, Fitted, Wanted
from pluribus.modeling.artefact.importance import Importance
from pluribus.modeling.artefact.loading import load
from pluribus.tasks import Task


class Committee(Fitted):
    """Members by name, and the member that answers for each task."""

    artefact = "committee"

    def __init__(
        self, tasks: Sequence[Task], columns: FittedColumns, members: Mapping[str, Fitted], answers: Mapping[str, str]
    ) -> None:
        super().__init__(tasks, columns)
        self.members, self.answers = dict(members), dict(answers)
        for name, member in answers.items():
            source = self.members[member]
            if name in source.thresholds:
                self.thresholds[name] = source.thresholds[name]
            if name in source.calibration:
                self.calibration[name] = source.calibration[name]

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Any]:
        """Each member is asked once, for the cells that are its own."""
        found: dict[str, Any] = {}
        for member, fitted in self.members.items():
            mine = {name: rows for name, rows in wanted.items() if self.answers[name] == member}
            if mine:
                found |= fitted.answer(data, mine)
        return {name: found[name] for name in wanted}

    def importance(self, data: Prepared, wanted: Wanted, seconds: float = 10.0) -> dict[str, Importance]:
        """Each member says it of the tasks that it answers."""
        found: dict[str, Importance] = {}
        asked = {member: {name: rows for name, rows in wanted.items() if self.answers[name] == member} for member in self.members}
        for member, mine in asked.items():
            if mine:
                found |= self.members[member].importance(data, mine, seconds * len(mine) / len(wanted))
        return {name: found[name] for name in wanted if name in found}

    def costs(self) -> Costs:
        return Costs.together([member.costs() for member in self.members.values()])

    def write(self, folder: Path) -> dict[str, Any]:
        for name, member in self.members.items():
            member.save(folder / "members" / name)
        return {"members": list(self.members), "answers": self.answers}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Committee:
        for name in manifest["members"]:
            if not isinstance(name, str) or "/" in name or name.startswith("."):
                raise BadInput(f"has a member with the impossible name {name!r}", where="members", remedy="restore the folder")
        members = {name: load(folder / "members" / name) for name in manifest["members"]}
        answers = {str(task): str(member) for task, member in manifest["answers"].items()}
        for task in tasks:
            if answers.get(task.name) not in members:
                raise BadInput(f"no member answers for task {task.name!r}", where="answers", remedy="restore the folder")
        return cls(tasks, columns, members, answers)
