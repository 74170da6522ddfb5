"""Chains of tasks with out-of-fold inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluribus.boosting.baselines import features
from pluribus.boosting.erc import ChainEnsemble, Chains, _Chaining
from pluribus.data.prepared import Cells, Prepared
from pluribus.errors import BadInput
from pluribus.files import sha256
from pluribus.modeling import Budget, load

BUDGET = Budget(120.0)
SHORT: dict[str, Any] = {"rounds": 8, "patience": 8}


def _chaining(data: Prepared) -> _Chaining:
    return _Chaining(ChainEnsemble(**SHORT), data, 1, 0, np.arange(data.n_rows) % 3)


def test_a_chain_by_hand(mixed: Prepared) -> None:
    """Oracle: one order of two tasks with plain LightGBM calls. Three folds, each predicted by a model of the others; the second
    task reads them as one more column; validation and prediction read the whole model."""
    import lightgbm

    data = mixed.only(["loss", "calls"])
    run = _chaining(data)
    order = [next(task for task in data.tasks if task.name == name) for name in ("loss", "calls")]
    run.chain(order, 1e12)
    candidate, X = ChainEnsemble(**SHORT), features(data)
    word = [data.numeric.shape[1]]

    def grown(task: Any, matrix: Any, cells: Cells, rounds: int) -> Any:
        params = candidate._params(task, 0, 1)
        whole = lightgbm.Dataset(matrix[cells.rows], cells.numbers, categorical_feature=word, params=dict(params))
        return lightgbm.train(params, whole, rounds)

    train = data.labelled("loss", "train")
    rounds = run.models["loss",].current_iteration()
    z = grown(order[0], X, train, rounds).predict(X)
    holes = np.setdiff1d(data.parts["train"], train.rows)
    assert len(holes)
    each = []
    for k in range(3):
        out = train.rows % 3 == k
        model = grown(order[0], X, train[~out], rounds)
        z[train.rows[out]] = model.predict(X[train.rows[out]])
        each.append(model.predict(X[holes]))
    z[holes] = np.mean(each, axis=0)
    np.testing.assert_allclose(run.said["loss",][:, 0], z, rtol=1e-9)
    wide = np.column_stack([X, z]).astype(np.float32)
    second = run.models["loss", "calls"]
    theirs = grown(order[1], wide, data.labelled("calls", "train"), second.current_iteration())
    np.testing.assert_allclose(second.predict(wide), theirs.predict(wide), rtol=1e-6)


def test_what_later_tasks_read_does_not_know_the_rows_own_label(mixed: Prepared) -> None:
    """Broken: a chain is trained on what it will not have. Spoiling the labels of one fold leaves its own rows' inputs alone."""
    data = mixed.only(["loss"])
    cells = data.cells["loss"]
    mine = (cells.rows % 3 == 1) & np.isin(cells.rows, data.parts["train"])
    spoilt = replace(data, cells={"loss": Cells(cells.rows, np.where(mine, cells.values + 1e3, cells.values))})
    fixed = data.with_parts(train=data.parts["train"], valid=data.parts["valid"][:0])  # no early stop: the same rounds
    found = []
    for each in (fixed, replace(fixed, cells=spoilt.cells)):
        run = _chaining(each)
        task = each.tasks[0]
        matrix = features(each)
        run._model(task, ("loss",), matrix, 0.0, 1e12, True)
        found.append(run.said["loss",])
    rows = cells.rows[mine]
    np.testing.assert_array_equal(found[0][rows], found[1][rows])
    others = cells.rows[~mine & np.isin(cells.rows, data.parts["train"])]
    assert not np.array_equal(found[0][others], found[1][others])


def test_the_answer_is_the_mean_over_the_chains(mixed: Prepared) -> None:
    fitted = ChainEnsemble(chains=2, **SHORT).fit(mixed.only(["loss", "calls"]), BUDGET, 0)
    assert [[name for name, _ in chain] for chain in fitted.chains] in (
        [["loss", "calls"], ["calls", "loss"]],
        [["calls", "loss"], ["loss", "calls"]],
    )
    rows, X = np.arange(40), features(mixed, np.arange(40))
    total = np.zeros(40)
    for chain in fitted.chains:
        read = X
        for name, booster in chain:
            said = booster.predict(read)
            total += said / 2 if name == "calls" else 0.0
            read = np.column_stack([read, said]).astype(np.float32)
    np.testing.assert_allclose(fitted.scores(mixed, rows, ["calls"])["calls"], total, rtol=1e-12)


def test_no_more_chains_than_orders_and_time(mixed: Prepared) -> None:
    """Two tasks have two orders; a budget that is over with the first chain begins no second."""
    data = mixed.only(["loss", "calls"])
    assert len(ChainEnsemble(chains=9, **SHORT).fit(data, BUDGET, 0).chains) == 2
    short = ChainEnsemble(chains=9).fit(data, Budget(1e-3), 0)
    assert len(short.chains) == 1
    assert short.record["undertrained"] == ["loss", "calls"]


def test_bad_input(mixed: Prepared) -> None:
    assert "two tasks" in str(ChainEnsemble().unfit(mixed.only(["loss"])))
    with pytest.raises(BadInput, match="two tasks"):
        ChainEnsemble().fit(mixed.only(["loss"]), BUDGET, 0)
    with pytest.raises(BadInput, match="folds must be a whole number of at least 2"):
        ChainEnsemble(folds=1)
    with pytest.raises(BadInput, match="chains must be"):
        ChainEnsemble(chains=True)


def test_damage_is_named(mixed: Prepared, tmp_path: Path) -> None:
    fitted = ChainEnsemble(chains=1, **SHORT).fit(mixed.only(["loss", "calls"]), BUDGET, 0)
    assert isinstance(fitted, Chains)
    fitted.save(tmp_path / "m")
    first, second = (tmp_path / "m" / f"chain_0_{j}.txt" for j in range(2))
    manifest = json.loads((tmp_path / "m" / "pluribus.json").read_text("utf-8"))
    for text, message in (
        (first.read_text("utf-8"), r"chain_0_1\.txt: takes 5 features, but 6"),
        ("no", "is not a LightGBM model"),
    ):
        second.write_text(text, "utf-8")
        manifest["files"]["chain_0_1.txt"] = sha256(second)
        (tmp_path / "m" / "pluribus.json").write_text(json.dumps(manifest), "utf-8")
        with pytest.raises(BadInput, match=message):
            load(tmp_path / "m")
