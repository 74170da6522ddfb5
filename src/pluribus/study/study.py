"""A study of one table, for whoever calls it: several roads walked, the winner judged, one model left to use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluribus.data.prepared import Prepared
from pluribus.data.splitting import Split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.study import arena
from pluribus.study import spec as specs
from pluribus.study.crews.local import Workers
from pluribus.study.crews.processes import Teams
from pluribus.study.plan import Plan
from pluribus.study.progress import Reporter, on_terminal
from pluribus.study.run_folder import RunFolder, StudyResult, open_run
from pluribus.study.table_study import TableArena
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Study", "StudyResult", "open_run"]


class Study:
    """A study of one table.

    Parameters
    ----------
    table : str, Path, DataFrame or Table
        A CSV or Parquet file, or what was read already; the roles of a `Table` are its own.
    targets : sequence of str or Task
        What is predicted; a str is `NAME[:KIND]`.
    folder : str or Path, default "runs"
        Where runs are kept; a study's own folder is `folder/NAME`.
    jobs : int, optional
        Trainings at a time, one thread each. Default: the number of cores, divided by `processes` where they count.
    processes : int, default 1
        How many processes train one joint network together, each its share of every batch; what has no such training (trees,
        specialists) keeps one. Results agree with those of one process up to rounding and the draws of dropout.
    quiet : bool, default True
        No lines and no progress bars.
    **settings
        Any key of `pluribus schema`, with the same meaning and default as on the command line: id, ignore, weight, group,
        task_column, split, metrics, candidates, lgbm_params, champion, budget, seeds, allow_committee, name, …

    Attributes
    ----------
    folder : Path
        The run's own folder.

    Raises
    ------
    BadInput
        Anything in the table or the settings that cannot be used; nothing is written then.
    """

    def __init__(
        self,
        table: str | Path | pd.DataFrame | Table,
        targets: Sequence[str | Task] = (),
        *,
        folder: str | Path = "runs",
        jobs: int | None = None,
        processes: int = 1,
        quiet: bool = True,
        **settings: Any,
    ) -> None:
        named = [t if isinstance(t, str) else specs.row_of(t) for t in targets]
        source = str(table) if isinstance(table, (str, Path)) else getattr(table, "source", "table")
        if isinstance(table, Table):
            named = [specs.row_of(task) for task in table.tasks]
        row = {"table": source, "targets": named, **settings}
        given = None if isinstance(table, (str, Path)) else table
        self._begin(specs.parse(row, where="study"), given, folder, jobs, processes, quiet)

    @classmethod
    def from_spec(
        cls,
        spec: specs.TableStudy,
        *,
        folder: str | Path = "runs",
        jobs: int | None = None,
        processes: int = 1,
        quiet: bool = True,
    ) -> Study:
        """A study from checked settings (`pluribus.study.spec.load` reads them from a file)."""
        study = cls.__new__(cls)
        study._begin(spec, None, folder, jobs, processes, quiet)
        return study

    def _begin(
        self,
        spec: specs.TableStudy,
        given: pd.DataFrame | Table | None,
        folder: str | Path,
        jobs: int | None,
        processes: int,
        quiet: bool,
    ) -> None:
        self.folder = Path(folder) / spec.run_name
        self.quiet = quiet
        self.processes = processes
        cores = max(1, os.cpu_count() or 1)
        self.jobs = jobs if jobs is not None else cores
        self.teams = jobs if jobs is not None else max(1, cores // max(1, processes))
        for word, value in (("jobs", self.jobs), ("processes", self.processes)):
            if value < 1:
                raise BadInput(f"is {value}; it must be at least 1", where=word, remedy="give a whole number from 1 on")
        self._arena = TableArena(spec, given)

    @property
    def table(self) -> Table:
        """The table with its roles; kinds are inferred where none was given."""
        return self._arena.table

    @property
    def split(self) -> Split:
        """The rows of the three parts."""
        return self._arena.split

    @property
    def data(self) -> Prepared:
        """Everything encoded, test rows included."""
        return self._arena.data

    @property
    def learnable(self) -> Prepared:
        """What trials see: the train and valid parts, and no label of a test row."""
        return self._arena.learnable

    def plan(self) -> Plan:
        """Check everything, write `split.parquet` and `study.yaml`, and return what would be trained at what cost."""
        folder = RunFolder(self.folder)
        arena.claim(self._arena, folder)
        self._arena.write_split(folder)
        return self._arena.plan

    def run(self) -> StudyResult:
        """Train, choose, judge, save and report; goes on where an earlier call with the same settings stopped."""
        report = Reporter(self.folder, None if self.quiet else on_terminal)
        with Workers(self.jobs) as workers:
            crew = Teams(workers, self.teams, self.processes)
            return arena.run(self._arena, RunFolder(self.folder), crew, report)

    def clean(self) -> None:
        """Remove the intermediate files (prepared table, trials); the results stay, and the run cannot be resumed."""
        shutil.rmtree(RunFolder(self.folder).work, ignore_errors=True)
