"""A study of checkpoints, for whoever calls it: experts of one base against every road to one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pluribus.study import arena
from pluribus.study.checkpoint_spec import METHODS, CheckpointStudy, Expert, RoadSpec, load, parse
from pluribus.study.checkpoint_study import EXPERTS, CheckpointArena
from pluribus.study.crews.local import Workers
from pluribus.study.evaluator import COLUMNS, Evaluate, code_of
from pluribus.study.progress import Reporter
from pluribus.study.run_folder import RunFolder, StudyResult

Road = RoadSpec
"""Its name in the first edition."""

__all__ = [
    "COLUMNS",
    "EXPERTS",
    "METHODS",
    "CheckpointStudy",
    "CheckpointsStudy",
    "Evaluate",
    "Expert",
    "Road",
    "RoadSpec",
    "code_of",
    "load",
    "parse",
]


class CheckpointsStudy:
    """A study of checkpoints.

    Parameters
    ----------
    spec : CheckpointStudy
        The settings (`parse` and `load` check them).
    evaluate : callable
        The evaluator, see `pluribus.study.evaluator`. It runs in this process.
    folder : str or Path, default "runs"
        Where runs are kept.
    named : str, default "evaluate"
        What the evaluator is called in messages.
    code : str, default ""
        What identifies the evaluator: a changed one is another run.
    say : callable, optional
        Called with each line that tells the progress.

    Attributes
    ----------
    folder : Path
        The run's own folder.

    Raises
    ------
    BadInput
        Checkpoints that do not fit together, before anything is written; from `run` also an evaluator whose answer is not what
        it must be.
    """

    def __init__(
        self,
        spec: CheckpointStudy,
        evaluate: Evaluate,
        *,
        folder: str | Path = "runs",
        named: str = "evaluate",
        code: str = "",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.say = Path(folder) / (spec.name or "checkpoints"), say
        self._arena = CheckpointArena(spec, evaluate, named, code)
        self._arena.check()

    def run(self) -> StudyResult:
        """All of it; what is finished is not done again."""
        return arena.run(self._arena, RunFolder(self.folder), Workers(1), Reporter(self.folder, self.say))
