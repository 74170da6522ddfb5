"""Late labels: if these fail, recent rows pull every rate, loss and metric up or down, or drift a model silently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from pluribus.data.prepared import Cells, prepare
from pluribus.data.sampling import TaskSampler, UniformMix
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.data.table.delayed import CLIP, seen_share, weighed
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.modeling.funnels import entire_space
from pluribus.tasks import Task

DAYS, WINDOW, MEAN = 60.0, 20.0, 6.0


def world(seed: int, rows: int = 40_000) -> dict[str, Any]:
    """Clicks of 60 days, a quarter of which convert, after an exponential delay of at most 20 days: what is known today."""
    rng = np.random.default_rng(seed)
    day, x = rng.uniform(0, DAYS, rows), rng.normal(size=rows)
    p = 1 / (1 + np.exp(1.5 - x))
    delay = -MEAN * np.log(1 - rng.random(rows) * (1 - np.exp(-WINDOW / MEAN)))
    truth = rng.random(rows) < p
    age = DAYS - day
    seen = truth & (delay <= age)
    pending = ~seen & (age < WINDOW)
    value = np.where(seen, 1.0, np.where(pending, np.nan, 0.0))
    share = np.minimum(1, (1 - np.exp(-age / MEAN)) / (1 - np.exp(-WINDOW / MEAN)))
    return {"day": day, "x": x, "p": p, "truth": truth, "seen": seen, "pending": pending, "value": value, "share": share}


def cells_of(w: dict[str, Any]) -> Cells:
    return weighed(w["value"], w["pending"], w["day"], None, "task 'buy'")


def kept_of(w: dict[str, Any]) -> Any:
    """Rows in bins that tell something."""
    bins, share, _ = seen_share(w["seen"], w["pending"], w["day"], np.ones(len(w["day"])), "")
    return (share >= 1 / CLIP)[bins]


@pytest.mark.parametrize("seed", range(3))
def test_the_share_seen_is_found(seed: int) -> None:
    """G of every bin is the mean probability that a positive of the bin has been seen, within four standard errors."""
    w = world(seed)
    bins, share, rate = seen_share(w["seen"], w["pending"], w["day"], np.ones(len(w["day"])), "")
    assert rate == pytest.approx(w["truth"].mean(), rel=0.05)
    for b in range(len(share)):
        here = bins == b
        true = np.average(w["share"][here], weights=w["p"][here])
        assert share[b] == pytest.approx(true, abs=4 * np.sqrt(1 / (rate * here.sum())) + 0.02), b


def test_rates_are_unbiased() -> None:
    """Over 30 draws the weighed rate of recent rows meets the true one; leaving pending rows out is far above it, calling them
    negative far below."""
    found: dict[str, list[float]] = {"weighed": [], "left out": [], "negative": []}
    for seed in range(30):
        w = world(seed, 20_000)
        recent = (w["day"] > DAYS - 15) & kept_of(w)
        cells = cells_of(w)
        inside = recent[cells.rows]
        assert cells.weight is not None
        rate = w["p"][recent].mean()
        found["weighed"].append(np.average(cells.values[inside], weights=cells.weight[inside]) - rate)
        found["left out"].append(np.nanmean(w["value"][recent]) - rate)
        found["negative"].append(w["seen"][recent].mean() - rate)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    assert abs(means["weighed"]) < 0.01
    assert means["left out"] > 0.2
    assert means["negative"] < -0.05


def test_losses_and_metrics_are_those_of_the_truth() -> None:
    """On recent rows a weighed fit finds the coefficients of the fit on the truth, and weighed AUC and log loss of a score are
    the true ones; leaving pending rows out or calling them negative finds others."""
    w = world(0)
    cells, kept = cells_of(w), kept_of(w) & (w["day"] > DAYS - 1.2 * WINDOW)
    assert cells.weight is not None
    recent = kept[cells.rows]
    cells = Cells(cells.rows[recent], cells.values[recent], cells.weight[recent])
    x = w["x"][:, None]

    def fit(rows: Any, y: Any, weight: Any = None) -> Any:
        made = LogisticRegression(C=1e6).fit(x[rows], y, sample_weight=weight)
        return np.array([made.intercept_[0], made.coef_[0, 0]])

    true = fit(kept, w["truth"][kept])
    assert fit(cells.rows, cells.values, cells.weight) == pytest.approx(true, abs=0.1)
    out = ~np.isnan(w["value"]) & kept
    assert abs(fit(out, w["value"][out])[0] - true[0]) > 0.2
    assert abs(fit(kept, w["seen"][kept])[0] - true[0]) > 0.2
    score = w["p"]
    auc = metrics.compute("auc", score[cells.rows], cells.values, cells.weight)
    assert float(auc) == pytest.approx(roc_auc_score(w["truth"][kept], score[kept]), abs=0.01)
    loss = metrics.compute("logloss", score[cells.rows], cells.values, cells.weight)
    assert float(loss) == pytest.approx(log_loss(w["truth"][kept], score[kept]), abs=0.01)


def frame(seed: int = 0, rows: int = 6000) -> tuple[pd.DataFrame, dict[str, Any]]:
    w = world(seed, rows)
    click = np.random.default_rng(9).random(rows) < 0.7
    buy = np.where(click, np.where(w["pending"], 0, w["value"]), np.nan)
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(w["day"], "D")
    found = pd.DataFrame({"x": w["x"], "day": day, "wait": (w["pending"] & click) * 1, "click": click * 1, "buy": buy})
    return found, {**w, "click": click}


TASKS = [Task("click", "binary"), Task("buy", "binary", after=("click",))]


def test_a_table_weighs_late_labels() -> None:
    """Final labels keep their weight, pending cells become negatives of less, seen positives of recent days weigh more; holes say
    what they are all the same, and tables without late labels, or that leave them out, have none of it."""
    data, w = frame()
    table = Table(data, TASKS, time="day", split="random", delayed={"buy": "wait"}, late="weighed", ignore=["day"])
    cells = table.cells["buy"]
    assert cells.weight is not None
    assert table.holes["buy"]["delayed"] == int((w["pending"] & w["click"]).sum())
    mature = w["day"][cells.rows] < DAYS - WINDOW - 5
    assert (cells.weight[mature] == 1).all()
    waits = w["pending"][cells.rows]
    assert waits.any()
    assert (cells.values[waits] == 0).all()
    assert (cells.weight[waits] < 1).all()
    recent = (cells.values == 1) & (w["day"][cells.rows] > DAYS - 10)
    assert (cells.weight[recent] > 1).all()
    assert cells.weight.max() <= CLIP
    plain = Table(data, TASKS, time="day", split="random", delayed={"buy": "wait"}, ignore=["day"])
    assert plain.cells["buy"].weight is None
    assert not w["pending"][plain.cells["buy"].rows].any()
    assert table.cells["click"].weight is None


def test_weights_of_rows_multiply() -> None:
    data, _ = frame()
    data["w"] = np.random.default_rng(1).integers(1, 4, len(data)).astype(float)
    roles: dict[str, Any] = {"time": "day", "split": "random", "delayed": {"buy": "wait"}, "late": "weighed", "ignore": ["day"]}
    twice = data.assign(w=data["w"] * 2)
    one, two = (Table(each, TASKS, weight="w", **roles).cells["buy"] for each in (data, twice))
    assert one.weight is not None
    assert two.weight is not None
    np.testing.assert_allclose(two.weight, 2 * one.weight)
    mature = data["day"].to_numpy()[one.rows] < np.datetime64("2020-01-01") + np.timedelta64(int(DAYS - WINDOW - 5), "D")
    np.testing.assert_array_equal(one.weight[mature], data["w"].to_numpy()[one.rows][mature])


def test_batches_samplers_and_funnels_carry_the_weights() -> None:
    """In the entire space a row weighs what the step that decided it weighs: 1 without a click, the late label's with one."""
    data, w = frame()
    table = Table(data, TASKS, time="day", split="random", delayed={"buy": "wait"}, late="weighed", ignore=["day"])
    found = prepare(table, split(table, 0))
    cells = found.cells["buy"]
    assert cells.weight is not None
    by_row = dict(zip(cells.rows.tolist(), cells.weight.tolist()))
    rows = torch.from_numpy(found.parts["train"][:500])
    whole = entire_space(("click", "buy"), found.batch(rows))
    assert whole is not None
    assert whole.weight is not None
    for place, weight in zip(whole.rows.tolist(), whole.weight.tolist()):
        row = int(rows[place])
        assert weight == pytest.approx(by_row[row] if w["click"][row] else 1.0, rel=1e-6)
    drawn = TaskSampler(found, "train", 64, UniformMix(), tasks=["buy"]).draw().labels["buy"]
    assert drawn.weight is not None
    assert float(drawn.weight.min()) < 1


def test_what_nobody_has_seen_yet_is_left_out() -> None:
    """A day of which next to nothing has been seen is no evidence: its cells are no cells, its few positives are not blown up."""
    w = world(0)
    fresh = w["day"] > DAYS - 3
    w["value"][fresh & (w["value"] == 1)] = np.nan
    pending = w["pending"] | fresh
    cells = weighed(w["value"], pending, w["day"], None, "")
    assert cells.weight is not None
    assert cells.weight.max() <= CLIP
    assert (w["day"][cells.rows] > DAYS - 1).sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": None, "ignore": ["day"]}, "delayed labels are weighed by the rows' time, which is not known; name the column"),
        ({"late": "weighted"}, "unknown way with delayed labels 'weighted'; did you mean 'weighed'"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    data, _ = frame(rows=600)
    roles: dict[str, Any] = {"time": "day", "split": "random", "delayed": {"buy": "wait"}, "late": "weighed", "ignore": ["day"]}
    with pytest.raises(BadInput, match=message):
        Table(data, TASKS, **{**roles, **change})


def test_a_young_table_is_refused() -> None:
    """Where everything is pending nothing says how many positives there will be."""
    w = world(0, 2000)
    with pytest.raises(BadInput, match=r"task 'buy': has \d+ positives in times when nothing is pending any more"):
        weighed(w["value"], ~w["seen"], w["day"], None, "task 'buy'")
