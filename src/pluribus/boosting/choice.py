"""Per task the best of several boosters, chosen on held-out rows: the joint model where it helps, the task's own elsewhere.

R-MTGB serves most tasks better than boosters of their own, but not always the outlier tasks: block 2 does not wholly undo a
pooled start. No booster should be called better for every task without this choice. Choosing costs a second fit: all
candidates are fitted on part of the rows, compared on the others task by task, and the chosen ones are fitted on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from pluribus.boosting.cells import BoosterCells
from pluribus.boosting.estimator import Valid, hold_out
from pluribus.boosting.histogram import Floats, Ints
from pluribus.boosting.kind_booster import KindBooster, KindClassifier, KindRegressor
from pluribus.boosting.objectives import Classes
from pluribus.boosting.rmtgb import RMTGBClassifier, RMTGBRegressor
from pluribus.boosting.settings import Common
from pluribus.boosting.treeshap import shap_values
from pluribus.errors import BadInput


@dataclass(eq=False, repr=False)
class ChoiceSettings(Common):
    """The parameters of the choice for each task."""

    estimators: Sequence[tuple[str, Any]] | None = None
    _: KW_ONLY
    validation_fraction: float = 0.2


class _PerTaskChoice(ChoiceSettings, KindBooster):
    """estimators: (name, booster) pairs; None: R-MTGB with 50 rounds a block, and the same trees with 150 rounds a task.

    After fit: `choice_` the chosen name of each task, `losses_` [candidates, tasks] the mean held-out losses, `fitted_`
    name -> booster fitted on all rows (chosen ones only).
    """

    choice_: list[str]
    fitted_: dict[str, Any]

    early_stopping = False
    _default: type

    def _shares_objective(self, cells: BoosterCells) -> bool:
        return True

    def _candidates(self) -> list[tuple[str, Any]]:
        if self.estimators is None:
            return [("joint", self._default(50, 50, 50)), ("own", self._default(0, 0, 150))]
        found = list(self.estimators)
        if not found or len({name for name, _ in found}) < len(found):
            raise BadInput("needs pairs (name, booster) with different names", where="estimators")
        return found

    def _fit_one(self, model: Any, table: Floats, cells: BoosterCells, which: Any, seed: int) -> Any:
        model = clone(model)
        given = model.get_params(deep=False)
        model.set_params(categorical_features=self.columns_.categorical.tolist(), random_state=seed)
        if given.get("n_jobs") is None:
            model.set_params(n_jobs=self.n_jobs)
        weight = None if cells.weight is None else cells.weight[which]
        return model.fit(table[cells.row[which]], cells.y[which], task=cells.task[which], sample_weight=weight)

    def _scores(self, model: Any, table: Floats, task: Ints) -> Floats:
        """Raw scores [n, K] on this booster's scale: values, log-odds, or log-probabilities."""
        o = self.objectives_[0]
        if not isinstance(o, Classes):
            values: Floats = np.asarray(model.predict(table, task=task), dtype=np.float64)[:, None]
            return values
        return o.scores(np.log(np.clip(model.predict_proba(table, task=task), 1e-15, 1.0)))

    def _boost(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, rng: np.random.RandomState) -> None:
        kept, held = hold_out(cells, self.validation_fraction, rng)
        candidates = self._candidates()
        seed = int(rng.randint(2**31 - 1))
        T = len(cells.names)
        self.losses_ = np.zeros((len(candidates), T))
        loss_of = self.objectives_[0].loss
        for i, (_, model) in enumerate(candidates):
            trial = self._fit_one(model, table, cells, kept, seed)
            losses = loss_of(y[held], self._scores(trial, table[cells.row[held]], cells.task[held])) if len(held) else np.empty(0)
            weight = np.ones(len(held)) if cells.weight is None else cells.weight[held]
            count = np.bincount(cells.task[held], weights=weight, minlength=T)
            total = np.bincount(cells.task[held], weights=weight * losses, minlength=T)
            self.losses_[i] = np.divide(total, count, out=np.zeros(T), where=count > 0)  # nothing held out: the first named
            self._report("candidates", i + 1, len(candidates))
        best = np.argmin(self.losses_, axis=0)
        self.choice_ = [candidates[i][0] for i in best]
        everything = np.arange(len(cells.row))
        self.fitted_ = {
            name: self._fit_one(model, table, cells, everything, seed) for name, model in candidates if name in self.choice_
        }

    def _raw(self, table: Floats, task: Ints | None) -> Any:
        if task is None:
            return [self._scores(self.fitted_[name], table, np.full(len(table), t)) for t, name in enumerate(self.choice_)]
        o = self.objectives_[0]
        found = np.zeros((len(table), o.outputs))
        first = next(iter(self.fitted_))  # serves the unseen tasks
        names = np.array([*self.choice_, first], dtype=object)[task]
        for name, model in self.fitted_.items():
            rows = np.flatnonzero(names == name)
            if len(rows):
                found[rows] = self._scores(model, table[rows], task[rows])
        return found

    def _contributions(self, table: Floats, t: int) -> tuple[Floats, Floats]:
        """SHAP values of the task's chosen booster; of two scores their difference, the log-odds. More classes keep the
        booster's own scores, whose softmax are the probabilities."""
        phi, base = shap_values(self.fitted_[self.choice_[t]], table, t)
        if phi.shape[2] == 2 and self.objectives_[0].outputs == 1:
            return phi[:, :, 1:] - phi[:, :, :1], base[1:] - base[:1]
        return phi, base


class PerTaskChoiceRegressor(_PerTaskChoice, KindRegressor):
    """Per task the best of several regression boosters, chosen on held-out rows."""

    _default = RMTGBRegressor


class PerTaskChoiceClassifier(_PerTaskChoice, KindClassifier):
    """Per task the best of several classification boosters, chosen on held-out rows."""

    _default = RMTGBClassifier
