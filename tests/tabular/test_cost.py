"""The cost model of plans: what it must say whatever the machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pluribus.boosting.baselines import LightGBMPerTask
from pluribus.data import Table
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.modeling import Candidate
from pluribus.tabular.cost import EPOCHS, SPEED, STEP, TENSOR, training_seconds
from pluribus.tabular.encoder_candidates import FTTransformerNetwork, SingleFTTransformers
from pluribus.tabular.joint_networks import SharedBottomEqual
from pluribus.tabular.sharing_candidates import HoMENetwork
from pluribus.tabular.single_networks import SingleNetworks


def table(rows: int = 600) -> Prepared:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4))
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["up"], frame["size"] = (x[:, 0] > 0).astype(int), x @ rng.normal(size=4)
    read = Table(frame, ["up", "size"])
    return prepare(read, split(read, seed=0))


def test_seconds_are_those_of_steps_tensors_and_flops() -> None:
    """1,000 rows by 100 are ten steps; three forward passes a row."""
    one = 10 * (STEP + 7 * TENSOR) + 3 * 1000 * 2e6 / SPEED
    assert training_seconds(1000, 100, 2e6, 7) == pytest.approx(EPOCHS * one)
    assert training_seconds(1000, 100, 2e6, 7, epochs=2) == pytest.approx(2 * one)
    assert training_seconds(1000, 999, 0, 0) == pytest.approx(EPOCHS * 2 * STEP), "a last step of one row is a step"


@pytest.mark.parametrize("kind", [SharedBottomEqual, HoMENetwork, FTTransformerNetwork])
def test_a_small_batch_makes_a_network_dearer(kind: type[Candidate]) -> None:
    """Without the cost of a step, plans of small tables promise a tenth of what is spent."""
    data = table()
    small, large = kind(batch_size=16).estimate(data), kind(batch_size=256).estimate(data)
    steps = -(-360 // 16) - -(-360 // 256)
    assert small - large >= 0.99 * EPOCHS * steps * STEP
    assert kind(batch_size=16, epochs=1).estimate(data) == pytest.approx(small / EPOCHS)


def test_many_small_parts_cost_more_than_one() -> None:
    data = table()
    assert HoMENetwork().estimate(data) > 2 * SharedBottomEqual().estimate(data)
    assert SingleFTTransformers().estimate(data) > 2 * SingleNetworks().estimate(data)


@pytest.mark.parametrize(("less", "more"), [({"num_leaves": 7}, {"num_leaves": 63}), ({"rounds": 20}, {"rounds": 200})])
def test_trees_cost_by_leaves_and_rounds(less: dict[str, Any], more: dict[str, Any]) -> None:
    data = table()
    settings = {"min_data_in_leaf": 5}
    assert LightGBMPerTask(**settings, **less).estimate(data) < LightGBMPerTask(**settings, **more).estimate(data)
    own = LightGBMPerTask(**settings, params={"num_leaves": less.get("num_leaves", 31)}).estimate(data)
    assert own <= LightGBMPerTask(**settings).estimate(data), "LightGBM's own parameters win"
