"""The journal of a run: its finished trials, one folder each."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from pluribus.files import place_folder, read_json
from pluribus.files.linked import link_equal
from pluribus.study.plan import Trial
from pluribus.study.trial import Predictions, finished, valid_predictions


class Journal:
    """The finished trials of a run.

    A trial is a function of the run's data, whose content hash claims the run's folder, and of its own fields: its folder holds
    its result, its predictions and, for finals, its model. Whoever computes a trial writes below `scratch`; only the study's own
    process, which holds the run's lock, lets the trial's folder appear, by a rename. So a trial is there whole or not at all,
    and what a killed study or a dying process leaves behind is never taken for one.

    As a context manager it makes the scratch folder, and removes it and whatever an earlier, killed call left.

    Parameters
    ----------
    trials : Path
        Where the trials' folders stand.

    Attributes
    ----------
    scratch : Path
        An empty folder on the same file system, while the block runs. Its name is new each time: a process that outlives a
        killed study cannot write into the folders of the next one.
    """

    def __init__(self, trials: Path) -> None:
        self.trials = trials
        self._asides = trials.parent / "scratch"

    def __enter__(self) -> Journal:
        self.trials.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        self._asides.mkdir()
        self.scratch = Path(tempfile.mkdtemp(dir=self._asides))
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        shutil.rmtree(self._asides, ignore_errors=True)
        for aside in self.trials.glob(".*.tmp"):  # workers of the first edition wrote there
            shutil.rmtree(aside, ignore_errors=True)

    def finished(self, trial: Trial) -> dict[str, Any] | None:
        """The result of a trial that is there already, or None."""
        return finished(self.trials, trial)

    def keep(self, trial: Trial) -> None:
        """Let the folder that a call left in the scratch folder appear as the trial's; one that left none is not kept.

        Weights that equal another trial's (a backbone that trains with nobody) become another name of that file.
        """
        made = self.scratch / trial.id
        if not made.is_dir():
            return
        for file in (made / "model").glob("*.safetensors"):
            link_equal(file, sorted(self.trials.glob(f"*/model/{file.name}")))
        place_folder(made, self.trials / trial.id)

    def result(self, trial_id: str) -> dict[str, Any]:
        """What a finished trial says of itself: scores, curves, seconds, costs."""
        found: dict[str, Any] = read_json(self.trials / trial_id / "result.json")
        return found

    def predictions(self, trial_id: str) -> Predictions:
        """The predictions of a finished trial on the labelled cells of the valid part."""
        return valid_predictions(self.trials, trial_id)

    def model(self, trial_id: str) -> Path:
        """The folder of a final's model."""
        return self.trials / trial_id / "model"
