"""A funnel from a table to a trained model: the entire space removes the bias of training on the clicked alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pluribus import catalog
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.modeling import MultiTaskModel
from pluribus.modeling.funnels import ESCM2, ESMM, Calibrated
from pluribus.tasks import Task
from pluribus.training import Stage, Trainer


@pytest.fixture(scope="module")
def shop() -> Prepared:
    """3,000 exposures; who clicks also buys more often, beyond what the inputs tell of the clicked rows' mix."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 4))
    click = rng.random(3000) < 1 / (1 + np.exp(-1.5 * x[:, 0]))
    buy = click & (rng.random(3000) < 1 / (1 + np.exp(1 - x[:, 0] - x[:, 1])))
    frame = pd.DataFrame(x, columns=list("pqrs")).assign(click=click.astype(int), buy=buy.astype(int))
    table = Table(frame, [Task("click", "binary"), Task("buy", "binary", after=("click",))], split="random")
    return prepare(table, split(table, 0))


@pytest.mark.parametrize("name", ["esmm", "ips", "dr", "aitm"])
def test_trains_on_a_table(shop: Prepared, name: str) -> None:
    """Every objective trains with a balancer's door, lowers its losses and predicts better than chance over all exposures."""
    torch.manual_seed(0)
    objective: Any = {
        "esmm": lambda: ESMM(shop.tasks),
        "ips": lambda: ESCM2(shop.tasks),
        "dr": lambda: ESCM2(shop.tasks, risk="dr"),
        "aitm": lambda: Calibrated(shop.tasks),
    }[name]()
    kind = {"dr": "imputed", "aitm": "aitm"}.get(name, "mmoe")
    encoder = catalog.get("encoder", "tabular_mlp").resolve().of(shop.columns, width=16, depth=1)
    model = MultiTaskModel(shop.tasks, encoder, catalog.get("sharing", kind).resolve()(shop.tasks, 16))
    history = Trainer(model, [Stage(objective=objective, epochs=5, batch_size=128, lr=5e-3)], seed=0).fit(shop)
    assert all(values[-1] < values[0] for values in history.losses.values())
    assert all(values[-1] > 0.6 for values in history.scores.values())
    p = model.predict(shop.batch(torch.from_numpy(shop.parts["test"]), tasks=()).inputs)
    bought = p["buy"] if name == "aitm" else p["click"] * p["buy"]
    assert float(bought.mean()) == pytest.approx(float(shop_rate(shop)), rel=0.35)
    if name == "aitm":
        assert float((p["buy"] <= p["click"] + 0.02).float().mean()) > 0.95


def shop_rate(shop: Prepared) -> float:
    """Share of the test part's exposures that were bought."""
    return float(shop.labelled("buy", "test").values.sum() / len(shop.parts["test"]))
