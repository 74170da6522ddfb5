"""scikit-learn's face: `fit(X, Y)`, `predict(X)`, with holes in Y and any candidate of the catalog inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, check_random_state, validate_data

from pluribus.data.prepared import prepare
from pluribus.data.splitting import Split
from pluribus.data.table import Table
from pluribus.data.table.targets import infer_kind
from pluribus.errors import BadInput
from pluribus.modeling import Budget
from pluribus.study.plan import make
from pluribus.study.trial import calibrate
from pluribus.tasks import Task
from pluribus.tasks.columns import Column

FEWEST_FOR_VALIDATION = 50


class MultiTaskEstimator(BaseEstimator):  # type: ignore[misc]
    """One model for several targets of any kinds, with missing labels allowed.

    The default fits a shared-bottom network with equal weights: residual MLP over embedded columns, one linear head a
    target, early stopping on a fifth of the rows. Kinds are inferred from each column of Y (booleans and two values: binary; few
    words: multiclass; small whole numbers: count; else regression) unless `tasks` names them.

    Parameters
    ----------
    candidate: any name of `pluribus catalog --family candidate`.
    tasks: None, or one kind (or `Task`) for each column of Y, by position or by name.
    settings: settings of the candidate (see its defaults).
    budget: core-seconds that a fit may take; None: until the early stop.
    validation: share of rows kept for early stopping and calibration; with fewer than 50 rows the training rows serve.
    random_state: seed of that split, of initial weights and of shuffling.

    Attributes
    ----------
    tasks_: the tasks, with kinds and classes. model_: the fitted artefact (`save`, `costs`, …). n_features_in_,
    feature_names_in_: as usual. classes_ (classifiers): labels of the one target, or a list of them.

    Raises
    ------
    BadInput (a ValueError): infinite inputs, shapes that do not fit, a target without two values, unknown names.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> Y = np.column_stack([X[:, 0] > 0, X @ [1.0, 2.0, 0.0]])
    >>> Y[:50, 1] = np.nan
    >>> MultiTaskEstimator(tasks=["binary", "regression"], random_state=0).fit(X, Y).predict(X).shape
    (200, 2)
    """

    _kinds: tuple[str, ...] = ()  # what a subclass admits; empty: everything

    def __init__(
        self,
        candidate: str = "shared_bottom_equal",
        *,
        tasks: Sequence[str | Task] | Mapping[str, str | Task] | None = None,
        settings: Mapping[str, Any] | None = None,
        budget: float | None = None,
        validation: float = 0.2,
        random_state: Any = None,
    ) -> None:
        self.candidate = candidate
        self.tasks = tasks
        self.settings = settings
        self.budget = budget
        self.validation = validation
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> MultiTaskEstimator:
        """Fit on rows X [n, F] (array or DataFrame, NaN allowed) and targets y [n] or [n, T] (NaN: missing)."""
        frame = self._inputs(X, reset=True)
        columns = self._targets(y, len(frame))
        if len(frame) < 2:
            raise BadInput(f"n_samples = {len(frame)} is too few", where="fit", remedy="give two rows at least")
        tasks = self._tasks(columns)
        table_columns = dict(columns)
        roles: dict[str, Any] = {"split": "random", "source": "fit"}
        if sample_weight is not None:
            weight = check_array(sample_weight, ensure_2d=False, dtype=np.float64)
            if weight.shape != (len(frame),):
                raise BadInput(f"sample_weight has shape {weight.shape} for {len(frame)} rows", where="fit")
            if not weight.any():
                raise BadInput("every sample weight is zero", where="fit", remedy="give some row a positive weight")
            table_columns[_WEIGHT] = pd.Series(weight)
            roles["weight"] = _WEIGHT
        table = Table(pd.concat([frame, pd.DataFrame(table_columns)], axis=1), tasks, **roles)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        data = prepare(table, self._split(len(frame), seed))
        candidate = make(self.candidate, dict(self.settings or {}))
        why = candidate.unreadable(data)
        if why is None and len(data.tasks) > 1:
            why = candidate.unfit(data)
        if why is not None:
            raise BadInput(why, where=f"candidate {self.candidate!r}", remedy="choose another candidate")
        self.model_ = candidate.fit(data, Budget(float("inf") if self.budget is None else self.budget), seed)
        calibrate(self.model_, data)
        self.tasks_ = self.model_.tasks
        self.n_iter_ = max((len(c) for c in self.model_.record.get("curves", {}).values()), default=1) or 1
        return self

    def predict_table(self, X: Any) -> pd.DataFrame:
        """Predictions as files hold them: `TASK`, `TASK__p`, `TASK__p_CLASS`."""
        check_is_fitted(self, "model_")
        return self.model_.predict(self._inputs(X, reset=False))

    def predict(self, X: Any) -> Any:
        """Values and labels: [n] for one target, else [n, T]; a DataFrame where Y was one."""
        found = self.predict_table(X)
        columns = [self._decoded(task, found[task.name].to_numpy()) for task in self.tasks_]
        if self._single:
            return columns[0]
        if self._named:
            return pd.DataFrame(dict(zip([task.name for task in self.tasks_], columns)))
        return np.column_stack(columns)

    def _decoded(self, task: Task, values: NDArray[Any]) -> NDArray[Any]:
        if not task.classes:
            return values.astype(np.float64)
        labels = self._labels[task.name]
        place = {name: i for i, name in enumerate(task.classes)}
        return labels[[place[value] for value in values]]

    # -- input ----------------------------------------------------------------------------------------------------

    def _inputs(self, X: Any, *, reset: bool) -> pd.DataFrame:
        """X as a DataFrame with string column names; arrays become x0, x1, …"""
        if isinstance(X, pd.DataFrame) and any(dtype.kind not in "fiub" for dtype in map(np.dtype, _numpy_types(X))):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if not len(X):
                raise BadInput("0 samples are too few", where="fit" if reset else "predict")
            return X.reset_index(drop=True).rename(columns=str)
        array = validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan")
        if hasattr(array, "dtype") and array.dtype.kind == "c":
            raise ValueError("Complex data not supported")
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(array.shape[1])])
        return pd.DataFrame(np.asarray(array, dtype=np.float64), columns=[str(name) for name in names])

    def _targets(self, y: Any, rows: int) -> dict[str, pd.Series]:
        """Target columns by name; remembers the labels of classes in their own type."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        self._named = isinstance(y, pd.DataFrame)
        array = None if self._named else _as_array(y)
        frame = y if array is None else pd.DataFrame(array)
        self._single = array is not None and array.ndim == 1
        if len(frame) != rows:
            raise ValueError(f"Found input variables with inconsistent numbers of samples: [{rows}, {len(frame)}]")
        for column in frame:
            values = frame[column]
            if pd.api.types.is_float_dtype(values) and np.isinf(values.to_numpy(dtype=float)).any():
                raise ValueError(f"Input y contains infinity in target {column!r}")
            if values.isna().all():
                raise ValueError(f"Input y contains NaN only in target {column!r}")
        named = self._named
        return {str(c) if named else f"y{c}": frame[c].reset_index(drop=True) for c in frame}

    def _tasks(self, columns: dict[str, pd.Series]) -> list[Task]:
        """A `Task` per target; class labels are kept in their own type for `predict`."""
        self._labels: dict[str, NDArray[Any]] = {}
        given: dict[str, str | Task] = {}
        if isinstance(self.tasks, Mapping):
            given = dict(self.tasks)
        elif self.tasks is not None:
            if len(self.tasks) != len(columns):
                raise BadInput(f"{len(self.tasks)} kinds for {len(columns)} targets", where="tasks")
            given = dict(zip(columns, self.tasks))
        found = []
        for name, values in columns.items():
            kind = given.get(name)
            if isinstance(kind, Task):
                task = kind if kind.name == name else kind.with_(name=name)
            else:
                task = self._infer(name, values, kind)
            if self._kinds and task.kind not in self._kinds:
                raise BadInput(f"is {task.kind}, not {' or '.join(self._kinds)}", where=f"target {name!r}")
            if task.record.classes:
                labels = np.unique(np.asarray([v for v in values if not pd.isna(v)]))
                if len(labels) < 2:
                    what = f"Classifier can't train when only one class is present ({labels[0]!r})"
                    raise BadInput(what, where=f"target {name!r}")
                self._labels[name] = labels
                words = dict(zip(labels.tolist(), (str(i) for i in range(len(labels)))))
                columns[name] = values.map(lambda v, words=words: None if pd.isna(v) else words[v]).astype(object)
                task = task.with_(classes=tuple(words.values()))
            found.append(task)
        return found

    def _infer(self, name: str, values: pd.Series, kind: str | None) -> Task:
        return Task(name, kind or infer_kind(Column(values, f"target {name!r}"))[0])

    def _split(self, rows: int, seed: int) -> Split:
        everything = np.arange(rows)
        if rows < FEWEST_FOR_VALIDATION:
            parts = {"train": everything, "valid": everything}
        else:
            order = np.random.default_rng(seed).permutation(rows)
            held = max(1, round(self.validation * rows))
            parts = {"train": np.sort(order[held:]), "valid": np.sort(order[:held])}
        return Split({**parts, "test": everything[:0]}, everything, "row", everything[:0])


class MultiTaskRegressor(RegressorMixin, MultiTaskEstimator):  # type: ignore[misc]
    """`MultiTaskEstimator` for targets that are all numbers; every column of Y is a regression unless `tasks` says count."""

    _kinds = ("regression", "count")

    def _infer(self, name: str, values: pd.Series, kind: str | None) -> Task:
        return Task(name, kind or "regression")


class MultiTaskClassifier(ClassifierMixin, MultiTaskEstimator):  # type: ignore[misc]
    """`MultiTaskEstimator` for targets that are all classes; two labels are binary, more are multiclass."""

    _kinds = ("binary", "multiclass", "ordinal")

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> MultiTaskClassifier:
        """As `MultiTaskEstimator.fit`; sets `classes_`."""
        super().fit(X, y, sample_weight)
        labels = [self._labels[task.name] for task in self.tasks_]
        self.classes_ = labels[0] if self._single else labels
        return self

    def _infer(self, name: str, values: pd.Series, kind: str | None) -> Task:
        from sklearn.utils.multiclass import type_of_target

        known = np.asarray([v for v in values if not pd.isna(v)])
        if type_of_target(known) == "continuous":
            raise ValueError(f"Unknown label type: continuous, in target {name!r}")
        return Task(name, kind or ("binary" if len(np.unique(known)) <= 2 else "multiclass"))

    def predict_proba(self, X: Any) -> Any:
        """P(class) [n, C] in the order of `classes_`; a list of them where there are several targets."""
        found = self.predict_table(X)
        each = []
        for task in self.tasks_:
            p = found[list(task.columns)].to_numpy()
            each.append(np.column_stack((1 - p[:, 0], p[:, 0])) if task.record.positive else p)
        return each[0] if self._single else each

    def predict(self, X: Any) -> Any:
        """The likeliest label of every target."""
        check_is_fitted(self, "model_")
        proba = self.predict_proba(X)
        each = [proba] if self._single else proba
        columns = [self._labels[task.name][p.argmax(1)] for task, p in zip(self.tasks_, each)]
        if self._single:
            return columns[0]
        if self._named:
            return pd.DataFrame(dict(zip([task.name for task in self.tasks_], columns)))
        return np.column_stack(columns)


_WEIGHT = "pluribus row weight"


def _numpy_types(frame: pd.DataFrame) -> list[Any]:
    return [dtype if isinstance(dtype, np.dtype) else np.dtype(object) for dtype in frame.dtypes]


def _as_array(y: Any) -> NDArray[Any]:
    """y as an array of one or two dimensions; sparse and ragged ones are refused."""
    if hasattr(y, "toarray"):
        raise TypeError("Sparse data was passed for y, but dense data is required. Use '.toarray()' to convert it")
    array = np.asarray(y)
    if array.ndim not in (1, 2):
        raise ValueError(f"y should be a 1d or 2d array, got an array of shape {array.shape} instead")
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported")
    return array
