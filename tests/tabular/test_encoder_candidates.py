"""The other encoders as candidates: specialists as alone as ever, ensembles judged as ensembles, context rows that travel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pluribus import catalog
from pluribus.data.prepared import Cells, Prepared
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.modeling import Budget, Candidate, load
from pluribus.tabular.encoder_candidates import MultiTabNetwork, SingleTabM
from pluribus.tasks import Task

BUDGET = Budget(300.0)
SMALL: dict[str, dict[str, Any]] = {
    "ft_transformer": {"width": 16, "depth": 1, "heads": 2, "attention_dropout": 0.0},
    "tabm": {"width": 16, "depth": 1, "members": 4},
    "multitab_net": {"width": 8, "heads": 2, "hidden": 16, "tower": 8},
}
SINGLES: dict[str, dict[str, Any]] = {
    **{f"single_{name}": {**settings, "patience": 2} for name, settings in SMALL.items()},
    "realmlp_single": {"width": 16, "depth": 2},
}
SHORT: dict[str, Any] = {"dropout": 0.0, "epochs": 5, "patience": 2}


@pytest.fixture(scope="module")
def twins(mixed: Prepared) -> Prepared:
    """Three regression tasks on the same inputs, with different labels and holes: one bank."""
    rng = np.random.default_rng(0)
    x = np.nan_to_num(mixed.numeric)
    cells, tasks = {}, []
    for i in range(3):
        rows = np.flatnonzero(rng.random(mixed.n_rows) < 0.9)
        noise = rng.normal(size=len(rows)) * (0.1 if i else 5.0)  # the first has nearly nothing to learn
        cells[f"y{i}"] = Cells(rows, 10 * i + x[rows, i] + 0.5 * x[rows, (i + 1) % 4] + noise)
        tasks.append(Task(f"y{i}"))
    return replace(mixed, tasks=tuple(tasks), cells=cells)


def _made(name: str, **settings: Any) -> Candidate:
    made: Candidate = catalog.get("candidate", name).resolve()(**settings)
    return made


@pytest.mark.parametrize("name", SINGLES)
def test_the_same_in_any_company(name: str, twins: Prepared) -> None:
    """A specialist trained beside others, some of which stop before it, equals the one trained alone (no dropout)."""
    settings = {**SINGLES[name], "dropout": 0.0, "epochs": 5}
    rows = np.arange(twins.n_rows)
    beside = _made(name, **settings).fit(twins, BUDGET, 1)
    alone = _made(name, **settings).fit(twins.only(["y2"]), BUDGET, 1)
    a, b = (fitted.scores(twins, rows, ["y2"])["y2"] for fitted in (beside, alone))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("encoder", SMALL)
@pytest.mark.parametrize("single", [False, True])
def test_learns(encoder: str, single: bool, twins: Prepared) -> None:
    """Clearly better than the constant predictor where there is something to learn."""
    settings = {**SMALL[encoder], **SHORT, "epochs": 12, "lr": 1e-2}
    fitted = _made(f"single_{encoder}" if single else encoder, **settings).fit(twins, BUDGET, 0)
    for name in ("y1", "y2"):
        cells, train = twins.labelled(name, "valid"), twins.labelled(name, "train")
        value = metrics.compute("rmse", fitted.scores(twins, cells.rows, [name])[name], cells.values)
        assert value < 0.5 * float(np.std(train.values)), name


@pytest.mark.parametrize("encoder", SMALL)
def test_joint_and_single_are_of_one_encoder(encoder: str) -> None:
    """What the verdict's "same encoder" goes by."""
    joint, single = (catalog.get("candidate", name).resolve() for name in (encoder, f"single_{encoder}"))
    assert joint.encoder == single.encoder == encoder
    assert single.per_task
    assert not joint.per_task


def test_ensembles_stop_by_the_ensemble(twins: Prepared) -> None:
    """A curve holds the metric of the averaged prediction, not the members' mean metric."""
    fitted = SingleTabM(**SMALL["tabm"], **SHORT).fit(twins, BUDGET, 0)
    for name, curve in fitted.record["curves"].items():
        cells = twins.labelled(name, "valid")
        value = metrics.compute("rmse", fitted.scores(twins, cells.rows, [name])[name], cells.values)
        assert value == pytest.approx(min(curve), rel=1e-4)


def test_every_kind_in_a_bank_of_ensembles(mixed: Prepared) -> None:
    """Five kinds of task through specialists with members; the stored model answers as the trained one did."""
    fitted = SingleTabM(**SMALL["tabm"], **SHORT).fit(mixed, BUDGET, 0)
    names = [task.name for task in mixed.tasks]
    scores = fitted.scores(mixed, np.arange(40), names)
    some = fitted.scores(mixed, np.array([5, 2]), names[2:3])
    np.testing.assert_allclose(some[names[2]], scores[names[2]][[5, 2]], rtol=1e-5)


def test_context_rows_travel_with_the_model(mixed: Prepared, tmp_path: Path) -> None:
    """Row layers read training rows drawn by the seed; the folder holds them, and a row is answered alone as in company."""
    settings = {**SMALL["multitab_net"], **SHORT, "epochs": 2, "rows": True, "context": 12}
    fitted = MultiTabNetwork(**settings).fit(mixed, BUDGET, 3)
    encoder: Any = fitted.model.encoder
    known = torch.where(encoder.context_missing, torch.nan, encoder.context_numeric).numpy()
    train = mixed.numeric[mixed.parts["train"]]
    for row in known:
        assert any(np.array_equal(row, other, equal_nan=True) for other in train)
    assert np.isnan(known).any()
    fitted.save(tmp_path / "model")
    again = load(tmp_path / "model")
    names = [task.name for task in mixed.tasks]
    whole, one = again.scores(mixed, np.arange(60), names), again.scores(mixed, np.array([7]), names)
    for name in names:
        assert np.array_equal(whole[name], fitted.scores(mixed, np.arange(60), names)[name])
        np.testing.assert_allclose(one[name][0], whole[name][7], rtol=1e-4, atol=1e-6)


def test_no_more_context_than_rows(mixed: Prepared) -> None:
    few = mixed.with_parts(train=mixed.parts["train"][:9], valid=mixed.parts["valid"])
    settings = {**SMALL["multitab_net"], **SHORT, "epochs": 1, "rows": True}
    fitted = MultiTabNetwork(**settings).fit(few, BUDGET, 0)
    assert fitted.config["architecture"]["settings"]["context"] == 9


@pytest.mark.parametrize(("name", "settings"), [("mask", {"mask": "task_task"}), ("embedding", {"embedding": "periodic"})])
def test_unknown_words_are_said(name: str, settings: dict[str, Any], mixed: Prepared) -> None:
    with pytest.raises(BadInput, match=f"unknown .*{name}"):
        MultiTabNetwork(**settings).fit(mixed, BUDGET, 0)


@pytest.mark.parametrize("encoder", ["tabm", "multitab_net"])
def test_exports_to_onnx(encoder: str, twins: Prepared, tmp_path: Path) -> None:
    """Ensembles and attention run in another runtime with the same answers."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    import onnxruntime

    from pluribus.tabular import export_onnx

    fitted = _made(encoder, **SMALL[encoder], **{**SHORT, "epochs": 1}).fit(twins, BUDGET, 0)
    folder = export_onnx(fitted, tmp_path / "onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for count in (1, 30):
        feed = {"numeric": twins.numeric[:count], "categorical": twins.categorical[:count].astype(np.int64)}
        names = [task.name for task in twins.tasks]
        expected = fitted.scores(twins, np.arange(count), names)
        for name, value in zip(names, session.run(names, feed)):
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-3)
