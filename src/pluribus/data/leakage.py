"""What would make a study lie: rows in two parts, inputs that give the answer away, labels that are not there by chance.

Everything here returns `Finding`s with names, for the terminal and the report; nothing stops a study. Only training rows are
looked at, except where the question is about the parts, and for copies, which are looked for in the whole table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import feed
from pluribus.data.prepared import Prepared
from pluribus.data.ragged import looks_like_lists
from pluribus.data.splitting import PARTS, Split
from pluribus.data.table import LABELLED, NOT_APPLICABLE, Table
from pluribus.tasks.columns import word_of

if TYPE_CHECKING:
    import pandas as pd

DETERMINES = 0.99
"""From this `skill` on an input alone determines a target."""
COPIES = 0.999
"""From this share of equal cells on an input is a copy of a target."""
PREDICTABLE = 0.6
"""From this AUC on the presence of a label counts as predictable."""

_BINS = 256
_MAX_ROWS = 50_000
_COPY_ROWS = 20_000
_LEAST = 20
_MAX_PATTERNS = 24
_MAX_CELLS = 1e8  # of all pairs of an input and a target together: some seconds


@dataclass(frozen=True)
class Finding:
    """One finding.

    Parameters
    ----------
    kind : str
        What was found, for programs.
    names : tuple of str
        The columns or tasks.
    text : str
        A line for people.
    """

    kind: Literal["duplicate_rows", "determines", "copy", "overlap", "not_at_random"]
    names: tuple[str, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names), "text": self.text}


def check(table: Table, split: Split, data: Prepared, *, seed: int = 0) -> list[Finding]:
    """All checks of a split and prepared table; a copy is not also reported as determining its target.

    Parameters
    ----------
    table : Table
        The table.
    split : Split
        Its parts.
    data : Prepared
        The same table, encoded.
    seed : int
        Of the rows that are looked at where there are many.
    """
    copied = copies(table)
    pairs = {finding.names for finding in copied}
    found = [*duplicates(table, split), *copied]
    found += [f for f in determining(data) if f.names not in pairs]
    found += overlap(table, split)
    found += not_at_random(labelled_at_random(table, data, seed=seed))
    return found


def _row_hashes(frame: pd.DataFrame) -> NDArray[np.uint64]:
    import pandas as pd

    lists = {str(name): [_hashable(cell) for cell in frame[name]] for name in frame if looks_like_lists(frame[name])}
    frame = frame.assign(**lists) if lists else frame
    return np.asarray(pd.util.hash_pandas_object(frame, index=False), np.uint64)


def _hashable(cell: Any) -> str:
    """A list as Python writes it, whatever holds it; an array of several dimensions by its bytes."""
    if isinstance(cell, np.ndarray) and cell.ndim != 1:
        return f"{cell.dtype}{cell.shape}{hashlib.sha256(np.ascontiguousarray(cell).tobytes()).hexdigest()}"
    return repr(cell.tolist() if isinstance(cell, np.ndarray) else list(cell) if isinstance(cell, list | tuple) else cell)


def duplicates(table: Table, split: Split) -> list[Finding]:
    """Rows of valid or test whose inputs and targets stand in train as well."""
    columns = [*table.inputs, *dict.fromkeys(table.target_of(task) for task in table.tasks)]
    if table.task_column is not None:
        columns.append(table.task_column)
    hashes = _row_hashes(table.frame[columns])
    train = np.unique(hashes[split.parts["train"]])
    found = []
    for name in PARTS[1:]:
        rows = split.parts[name]
        again = int(np.isin(hashes[rows], train).sum())
        if again:
            text = f"{again} of {len(rows)} rows of {name} are identical to rows of train (inputs and targets)"
            found.append(Finding("duplicate_rows", (name,), text))
    return found


def copies(table: Table) -> list[Finding]:
    """Inputs that repeat a target, cell by cell, whatever the type; looked for in at most 20,000 rows."""
    import pandas as pd

    if table.long:
        return []
    rows = np.arange(0, table.n_rows, -(-table.n_rows // _COPY_ROWS))
    sample = table.frame.iloc[rows]
    dates = pd.api.types.is_datetime64_any_dtype
    plain = [name for name, record in table.types.items() if record.plain or record.is_words]
    inputs = [name for name in plain if not dates(sample[name].dtype)]
    numbers = [name for name in inputs if _is_number(sample[name])]
    matrix = sample[numbers].to_numpy(np.float64, na_value=np.nan)
    words = {name: _texts(sample[name]) for name in inputs if name not in numbers}
    found = []
    for task in table.tasks:
        labelled = table.hole_codes[task.name][rows] == LABELLED
        if labelled.sum() < _LEAST:
            continue
        if task.record.cell != "value":
            continue
        target = sample[task.name][labelled]
        same: dict[str, float] = {}
        if _is_number(target):
            equal = matrix[labelled] == target.to_numpy(np.float64)[:, None]
            same = dict(zip(numbers, equal.mean(0).tolist()))
        if words:
            text = _texts(target)
            same |= {name: float((column[labelled] == text).mean()) for name, column in words.items()}
        for name in inputs:
            if same.get(name, 0) >= COPIES:
                share = f"{same[name]:.1%} of its cells are equal"
                line = f"input {name!r} is a copy of target {task.name!r} ({share}): --ignore {name}"
                found.append(Finding("copy", (name, task.name), line))
    return found


def _is_number(series: pd.Series) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype))


def _texts(series: pd.Series) -> NDArray[np.object_]:
    return np.array([word_of(value) for value in series.to_numpy(object)], object)


def determining(data: Prepared) -> list[Finding]:
    """Inputs that alone determine a target, on at most 50,000 (with very many pairs: 2,000) of its training labels each.

    Beside `skill`, a number that rises or falls with the target throughout (squared rank correlation) counts.
    """
    names = data.columns.names
    pairs = max(1, len(names) * len(data.tasks))
    limit = int(np.clip(_MAX_CELLS / pairs, 2000, _MAX_ROWS))
    place = np.zeros(data.n_rows, np.int64)
    train = data.parts["train"]
    place[train] = np.arange(len(train))
    labels = {}
    for task in data.tasks:
        cells = data.labelled(task.name, "train")
        if len(cells) >= 4 and isinstance(cells.values, np.ndarray):
            at = np.linspace(0, len(cells) - 1, min(limit, len(cells))).astype(np.int64)
            labels[task.name] = (place[cells.rows[at]], cells.values[at])
    scores: dict[tuple[str, str], float] = {}
    for position, name in enumerate(names):
        number = data.numeric[train, position] if position < data.numeric.shape[1] else None
        if number is None:
            codes = data.categorical[train, position - data.numeric.shape[1]].astype(np.int64)
        else:
            codes = _bins(number, min(_BINS, max(2, min(len(train), limit) // 20)))
        for task in data.tasks:
            if task.name not in labels:
                continue
            rows, values = labels[task.name]
            classes = task.record.classes or not task.record.quantity  # an item's place in its table is no quantity
            score = skill(codes[rows], values, classes=classes, binary=task.record.positive)
            if number is not None and not classes and 0.8 < score < DETERMINES:
                score = max(score, _monotone(number[rows], values))
            scores[name, task.name] = score
    return [
        Finding(
            "determines",
            (name, task.name),
            f"input {name!r} alone determines target {task.name!r} (skill {scores[name, task.name]:.3f}): is it known when the "
            "prediction is made? if not, --ignore it",
        )
        for task in data.tasks
        for name in names
        if scores.get((name, task.name), 0) >= DETERMINES
    ]


def _bins(values: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """At most `most` quantile bins, or the distinct values where there are few; the last code is for missing ones."""
    present = ~np.isnan(values)
    distinct = np.unique(values[present])
    edges = distinct if len(distinct) <= most else np.unique(np.quantile(values[present], np.linspace(0, 1, most + 1)[1:-1]))
    codes = np.searchsorted(edges, values, side="left")
    codes[~present] = len(edges) + 1
    return np.asarray(codes, np.int64)


def _monotone(number: NDArray[np.float32], values: NDArray[np.float64]) -> float:
    """Squared rank correlation over the rows where the number is present, times their share."""
    present = ~np.isnan(number)
    if present.sum() < 4:
        return 0.0
    correlation = np.corrcoef(_midranks(number[present]), _midranks(values[present]))[0, 1]
    return float(correlation**2 * present.mean())


def _midranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[place])


def skill(codes: NDArray[np.int64], values: NDArray[np.float64], *, classes: bool, binary: bool) -> float:
    """How well a target is predicted by the bin of one input, cross-fitted over two halves; 1 is perfectly, 0 like a constant.

    Numbers: R² of the bins' means. Two classes: 2·AUC − 1 of the bins' rates. Classes: the share of the constant's errors that
    the bins' most frequent class avoids.

    Parameters
    ----------
    codes : ndarray of int64
        [m], each label's bin.
    values : ndarray of float64
        [m], the labels.
    classes : bool
        Whether values are classes or places, not quantities.
    binary : bool
        Whether values are 0 and 1.
    """
    half = np.arange(len(codes)) % 2 == 0
    size = int(codes.max()) + 1
    predicted = np.empty(len(codes))
    for fit in (half, ~half):
        if classes and not binary:
            predicted[~fit] = _commonest(codes[fit], values[fit].astype(np.int64), size)[codes[~fit]]
        else:
            count = np.bincount(codes[fit], minlength=size)
            total = np.bincount(codes[fit], weights=values[fit], minlength=size)
            mean = np.where(count > 0, total / np.maximum(count, 1), values[fit].mean())
            predicted[~fit] = mean[codes[~fit]]
    if binary:
        return 2 * _auc(values, predicted) - 1
    if classes:
        base = 1 - np.bincount(values.astype(np.int64)).max() / len(values)
        return float(1 - (predicted != values).mean() / base) if base > 0 else 0.0
    spread = ((values - values.mean()) ** 2).sum()
    return float(1 - ((values - predicted) ** 2).sum() / spread) if spread > 0 else 0.0


def _commonest(codes: NDArray[np.int64], classes: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The most frequent class of each of `size` codes, the smallest of several; of a code that does not occur, that of all."""
    width = int(classes.max()) + 1
    best = np.full(size, np.bincount(classes).argmax())
    pairs = codes * width + classes
    if size * width <= 2**20:
        counts = np.bincount(pairs, minlength=size * width).reshape(size, width)
        return np.where(counts.any(1), counts.argmax(1), best)
    found, often = np.unique(pairs, return_counts=True)  # of many codes and classes few go together
    code, label = np.divmod(found, width)
    order = np.lexsort((-label, often))  # so that the last one written is the most frequent
    best[code[order]] = label[order]
    return best


def _auc(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Area under the ROC curve by mid-ranks; 0.5 where there is one class only."""
    positive = labels == 1
    n1 = int(positive.sum())
    n0 = len(labels) - n1
    if not n0 or not n1:
        return 0.5
    return float((_midranks(scores)[positive].sum() - n1 * (n1 + 1) / 2) / (n0 * n1))


def overlap(table: Table, split: Split, key: str | Iterable[str] | None = None) -> list[Finding]:
    """Long layout: the same key (the group column, else the inputs) labelled for one task in train and for another in test.

    What a model shares between tasks then knows test rows of one task from training on another.

    Parameters
    ----------
    table : Table
        The table; in the wide layout nothing is found.
    split : Split
        Its parts.
    key : str or iterable of str, optional
        The columns that say what is the same.
    """
    if not table.long:
        return []
    if key is None:
        key = table.group if table.group is not None else table.inputs
    columns = [key] if isinstance(key, str) else list(key)
    hashes = _row_hashes(table.frame[columns])
    task, part = table.task_index, split.part_of()
    seen, place = np.unique(hashes, return_inverse=True)
    trained = np.zeros((len(seen), len(table.tasks)), bool)
    trained[place[part == 0], task[part == 0]] = True
    elsewhere = trained.sum(1)[place] - trained[place, task] > 0
    found = []
    called = f"by {columns[0]!r}" if len(columns) == 1 else "by their inputs"
    for index, name in enumerate(table.names):
        mine = (part == 2) & (task == index)
        again = int((mine & elsewhere).sum())
        if again:
            text = f"{again} of {int(mine.sum())} test rows of {name!r} stand in another task's training part ({called})"
            found.append(Finding("overlap", (name,), text))
    return found


def labelled_at_random(table: Table, data: Prepared, *, seed: int = 0, max_rows: int = 20_000) -> dict[str, float]:
    """Task → AUC with which the inputs predict, cross-fitted over two halves, whether a cell is labelled (0.5: by chance).

    Cells that are not applicable are left out; tasks without at least 50 labels and 50 holes among the training rows are too. The
    predictor is a small LightGBM on at most `max_rows` training rows. Tasks with the same holes are asked once; of more than 24
    patterns of holes, 24 evenly among the tasks are asked.

    Parameters
    ----------
    table : Table
        The table.
    data : Prepared
        The same table, encoded.
    seed : int
        Of the rows that are drawn, and of the trees.
    max_rows : int
        At most so many training rows are looked at.
    """
    import lightgbm

    found: dict[str, float] = {}
    features = np.concatenate((data.numeric, data.categorical.astype(np.float32)), 1)
    if table.long or not features.shape[1]:  # a long table's task column says which rows are a task's; texts say nothing here
        return {}
    settings = {
        "objective": "binary",
        "num_leaves": 15,
        "learning_rate": 0.1,
        "min_data_in_leaf": 20,
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
    }
    alike: dict[bytes, list[str]] = {}
    for name, code in table.hole_codes.items():
        pattern = np.where(code == NOT_APPLICABLE, 2, code == LABELLED).astype(np.int8)
        alike.setdefault(hashlib.sha256(pattern.tobytes()).digest(), []).append(name)
    patterns = list(alike.values())
    asked = np.unique(np.linspace(0, len(patterns) - 1, min(len(patterns), _MAX_PATTERNS)).astype(np.int64))
    for names in (patterns[i] for i in asked.tolist()):
        code = table.hole_codes[names[0]]
        rows = data.parts["train"][code[data.parts["train"]] != NOT_APPLICABLE]
        labelled = (code[rows] == LABELLED).astype(np.float64)
        if min(labelled.sum(), (1 - labelled).sum()) < 50:
            continue
        rng = np.random.default_rng(seed)  # the same draw for tasks with the same holes
        rare, often = sorted((np.flatnonzero(labelled == 0), np.flatnonzero(labelled == 1)), key=len)
        # The AUC does not depend on the share of the two sides: the rarer one is kept as far as half the room.
        few = rng.permutation(rare)[: max_rows // 2]
        picked = rng.permutation(np.concatenate((few, rng.permutation(often)[: max_rows - len(few)])))
        x, y = features[rows[picked]], labelled[picked]
        score = np.empty(len(y))
        half = np.arange(len(y)) % 2 == 0
        for fit in (half, ~half):
            booster = lightgbm.train(settings, lightgbm.Dataset(x[fit], y[fit]), num_boost_round=50)
            score[~fit] = np.asarray(booster.predict(x[~fit], num_threads=1), np.float64)
        found |= dict.fromkeys(names, float(np.mean([_auc(y[part], score[part]) for part in (half, ~half)])))
    return found


def not_at_random(areas: Mapping[str, float]) -> list[Finding]:
    """A finding for every task whose labels' presence can be predicted."""
    return [
        Finding(
            "not_at_random",
            (name,),
            f"whether {name!r} is labelled can be predicted from the inputs (AUC {area:.2f}): conclusions about it hold for "
            "labelled rows only",
        )
        for name, area in areas.items()
        if area >= PREDICTABLE
    ]


def lineage(table: Table) -> dict[str, str]:
    """Task → SHA-256 of its data: the inputs, ids, weights, groups and times of its labelled rows, and its labels.

    The same for the same content in the same row order, whatever file it came from.
    """
    columns = [c for c in (*table.inputs, table.id, table.weight, table.group, table.time, table.task_column) if c is not None]
    hashes = _row_hashes(table.frame[list(dict.fromkeys(columns))])
    items = [_row_hashes(each.frame) for each in table.attributes.values()]
    found = {}
    for task in table.tasks:
        cells = table.cells[task.name]
        digest = hashlib.sha256(repr((task.name, task.kind, task.classes, sorted(set(columns)))).encode())
        for each in items:
            digest.update(each.tobytes())
        feed(digest, cells.rows.astype(np.int64))
        feed(digest, cells.values, task.size or 0)
        digest.update(hashes[cells.rows].tobytes())
        if cells.weight is not None and table.weights.changes(task):
            feed(digest, cells.weight)
        found[task.name] = digest.hexdigest()
    return found
