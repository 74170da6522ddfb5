"""Extra-trees with several outputs: scikit-learn's numbers, holes, damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from pluribus.boosting.baselines import features
from pluribus.boosting.extra_trees import CHUNK, ExtraTrees, Forests
from pluribus.data.prepared import Cells, Prepared
from pluribus.errors import BadInput
from pluribus.files import sha256
from pluribus.modeling import Budget, load

BUDGET = Budget(120.0)
FEW: dict[str, Any] = {"trees": 25, "min_samples_leaf": 2}


def _filled(mixed: Prepared) -> Prepared:
    """The tasks of `mixed` without holes: two with numbers, two with classes."""
    rng = np.random.default_rng(0)
    rows, x = np.arange(mixed.n_rows), np.nan_to_num(mixed.numeric)
    values = {
        "loss": 100 * x[:, 0] + rng.normal(size=len(rows)),
        "calls": rng.poisson(np.exp(x[:, 1])).astype(float),
        "default": (x[:, 2] > 0).astype(float),
        "grade": np.digitize(x[:, 3], [-0.5, 0.5]).astype(float),
    }
    tasks = tuple(task for task in mixed.tasks if task.name in values)
    return replace(mixed, tasks=tasks, cells={name: Cells(rows, each) for name, each in values.items()})


def _scale(values: Any) -> tuple[Any, float]:
    """Mean and root of the summed variances, to the last bit as the candidate has them: rounding decides ties."""
    mean = np.average(values, axis=0, weights=np.ones(len(values)))
    return mean, float(np.sqrt(np.average((values - mean) ** 2, axis=0, weights=np.ones(len(values))).sum()))


def test_predictions_are_scikit_learns(mixed: Prepared) -> None:
    """Oracle: one ExtraTreesRegressor on the standardised targets of the same rows, grown at once; inputs with missing cells."""
    data = _filled(mixed)
    fitted = ExtraTrees(**FEW).fit(data, BUDGET, 3)
    train, rows = data.parts["train"], np.arange(data.n_rows)
    X = features(data)
    assert np.isnan(X[train]).any()
    targets = np.column_stack([data.cells[name].values for name in ("loss", "calls")])
    (m, s), (m2, s2) = _scale(targets[train][:, :1]), _scale(targets[train][:, 1:])
    mean, scale = np.concatenate([m, m2]), np.array([s, s2])
    settings = {"n_estimators": 25, "min_samples_leaf": 2, "max_leaf_nodes": 4096, "random_state": 3}
    theirs = ExtraTreesRegressor(**settings).fit(X[train], (targets[train] - mean) / scale)
    found = fitted.scores(data, rows, ["loss", "calls"])
    expected = mean + scale * theirs.predict(X)
    np.testing.assert_allclose(np.column_stack(list(found.values())), expected, rtol=1e-12, atol=1e-12)
    default, grade = data.cells["default"].values[:, None], np.eye(3)[data.cells["grade"].values.astype(int)]
    (m, s), (m3, s3) = _scale(default[train]), _scale(grade[train])
    targets = np.column_stack([(default - m) / s, (grade - m3) / s3])
    classes = ExtraTreesRegressor(max_features=X.shape[1] ** -0.5, **settings).fit(X[train], targets[train]).predict(X)
    found = fitted.scores(data, rows, ["default", "grade"])
    np.testing.assert_allclose(found["default"], np.clip(m + s * classes[:, 0], 0, 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["grade"], np.clip(m3 + s3 * classes[:, 1:], 0, 1), rtol=1e-12, atol=1e-12)


def test_leaves_hold_the_mean_of_what_is_labelled_there(mixed: Prepared) -> None:
    """By hand: one tree, holes in both targets; a hole adds nothing to a leaf, and a leaf of holes has its parent's value."""
    data = mixed.only(["loss", "calls"])
    fitted = ExtraTrees(trees=1, min_samples_leaf=2).fit(data, BUDGET, 0)
    trees, X = fitted.trees["numbers"], features(data, dtype=np.float64)
    for column, name in enumerate(("loss", "calls")):
        cells = data.labelled(name, "train")
        reached: dict[int, list[float]] = {}
        for row, value in zip(cells.rows, cells.numbers):
            node = 0
            while True:
                reached.setdefault(node, []).append(value)
                f = trees.feature[node]
                if f < 0:
                    break
                left = trees.missing_left[node] if np.isnan(X[row, f]) else X[row, f] <= trees.threshold[node]
                node = int(trees.left[node] if left else trees.right[node])
        parent = {int(c): n for n in np.flatnonzero(trees.feature >= 0) for c in (trees.left[n], trees.right[n])}
        for node in np.flatnonzero(trees.feature < 0):
            at = int(node)
            while at not in reached:
                at = int(parent[at])
            assert trees.value[node, column] == pytest.approx(np.mean(reached[at]))


def test_weights_count_cell_by_cell(mixed: Prepared) -> None:
    """Labels of weight 0 may be anything."""
    cells = mixed.cells["loss"]
    weight = (np.arange(len(cells)) % 2).astype(float)
    found = []
    for values in (cells.values, np.where(weight > 0, cells.values, 0.0)):
        data = replace(mixed.only(["loss", "calls"]), cells={**mixed.cells, "loss": Cells(cells.rows, values, weight)})
        found.append(ExtraTrees(**FEW).fit(data, BUDGET, 0).scores(mixed, cells.rows, ["loss"])["loss"])
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_a_short_budget_leaves_a_small_forest(mixed: Prepared) -> None:
    fitted = ExtraTrees(trees=200).fit(mixed, Budget(1e-6), 0)
    assert {group: len(trees) for group, trees in fitted.trees.items()} == {"classes": CHUNK, "numbers": CHUNK}
    assert fitted.record["undertrained"] == [task.name for task in mixed.tasks]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trees": 0}, "trees must be a whole number"),
        ({"max_leaf_nodes": 1}, "of at least 2"),
        ({"min_samples_leaf": 0.5}, "min_samples_leaf must be"),
        ({"max_features": 2}, "share of the columns"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ExtraTrees(**settings)


def test_damage_is_named(mixed: Prepared, tmp_path: Path) -> None:
    fitted = ExtraTrees(trees=2).fit(mixed.only(["loss"]), BUDGET, 0)
    assert isinstance(fitted, Forests)
    fitted.save(tmp_path / "m")
    path = tmp_path / "m" / "numbers.npz"

    def damage(write: Any) -> None:
        write()
        manifest = json.loads((tmp_path / "m" / "pluribus.json").read_text("utf-8"))
        manifest["files"]["numbers.npz"] = sha256(path)
        (tmp_path / "m" / "pluribus.json").write_text(json.dumps(manifest), "utf-8")

    with np.load(path) as held:
        arrays = dict(held)
    damage(lambda: np.savez(path, **{**arrays, "left": arrays["left"] * 0}))
    with pytest.raises(BadInput, match="the trees are not sound"):
        load(tmp_path / "m")
    damage(lambda: path.write_bytes(b"not an archive"))
    with pytest.raises(BadInput, match=r"numbers\.npz: cannot be read"):
        load(tmp_path / "m")
