"""Adapters inside a frozen text backbone: one forward and one backward for rows of different tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.modeling import Budget, Supervised
from pluribus.text.adapted import TRAINED, AdaptedText, TextLoRAPerTask, TextLoRAShared, TextMHR
from pluribus.text.candidates import Ready
from pluribus.training import SliceAdamW

SMALL = {"backbone": "small", "layers": 1, "width": 32, "heads": 2, "vocabulary": 300, "max_length": 24}
NAMES = ["good", "size", "kind"]


@pytest.fixture(scope="module")
def data() -> Prepared:
    """400 made-up lines, three tasks with holes: every row has two labels at most."""
    r = np.random.default_rng(0)
    nouns, words = np.array(["cat", "dog", "fox"]), np.array(["good", "bad", "grand", "poor"])
    noun, word, count = r.integers(0, 3, 400), r.integers(0, 4, 400), r.integers(1, 6, 400)
    body = [f"a {words[w]} {nouns[n]} " + "very " * c for n, w, c in zip(noun, word, count)]
    frame = pd.DataFrame({"body": body, "good": (word % 2 == 0) * 1.0, "size": 1.0 * count, "kind": nouns[noun]})
    for column in NAMES:
        frame.loc[r.random(400) < 0.4, column] = None
    frame = frame[frame[NAMES].notna().any(axis=1)]
    table = Table(frame, ["good:binary", "size:regression", "kind:multiclass"], split="random", text=["body"])
    whole = prepare(table, split(table, 0))
    return whole.with_parts(train=whole.parts["train"], valid=whole.parts["valid"])


def _model(data: Prepared, routed: bool = True, **adapter: Any) -> tuple[AdaptedText, Prepared]:
    torch.manual_seed(0)
    made = Ready.of(data, {**TextLoRAShared.defaults, **SMALL, "dropout": 0.0})
    model = made.model(name="adapted_text", adapter={"name": "lora", "settings": adapter}, routed=routed)
    assert isinstance(model, AdaptedText)
    for p in model.adapters.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model.eval(), made.data


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("count", [5, 0])
def test_a_share_without_labels_or_rows(data: Prepared, routed: bool, count: int) -> None:
    """Of the last batch a process may get texts without a label, or no text at all: it answers nothing, and goes on."""
    model, ready = _model(data, routed)
    inputs = ready.batch(torch.arange(count), ()).inputs
    assert not model.train()(inputs, {})
    found = model(inputs, {"kind": torch.arange(0), "good": torch.arange(0)})
    assert [len(value) for value in found.values()] == [0, 0]


def test_many_tasks_in_one_forward_equal_each_alone(data: Prepared) -> None:
    """Rows expanded to (row, task) pairs: what each task would have answered by itself, whichever rows ask."""
    model, ready = _model(data)
    inputs = ready.batch(torch.arange(20), ()).inputs
    rows = {"kind": torch.tensor([3, 1, 19]), "good": None, "size": torch.tensor([3, 5])}
    together = model(inputs, rows)
    for name, where in rows.items():
        torch.testing.assert_close(together[name], model(inputs, {name: where})[name], rtol=1e-4, atol=1e-5)
    model.adapters.merge("kind")  # its own update in the weights: no route, no hook
    features = model.encoder(inputs, {}).main[rows["kind"]]
    linear = torch.nn.functional.linear(features, model.heads.weight, model.heads.bias)[:, model.heads.place["kind"]]
    torch.testing.assert_close(together["kind"], linear, rtol=1e-4, atol=1e-5)


def test_an_absent_task_stays_bit_identical(data: Prepared) -> None:
    model, ready = _model(data)
    model.train()
    stacked = {p for name in NAMES for p, _ in model.parameters_of(name)}
    optimizer = SliceAdamW([p for n, p in model.named_parameters() if n.startswith(TRAINED)], stacked=stacked, lr=0.05)

    def step(tasks: list[str]) -> None:
        losses = Supervised().losses(model, ready.batch(torch.arange(64), tasks))
        optimizer.zero_grad()
        torch.stack(list(losses.means().values())).sum().backward()
        active: dict[Any, Any] = {p: torch.zeros(0, dtype=torch.int64) for p in stacked}
        for name in tasks:
            for p, where in model.parameters_of(name):
                active[p] = torch.cat((active[p], torch.arange(len(p))[where]))
        optimizer.step(active=active)

    step(NAMES)
    own = [(p, where, p.detach()[where].clone()) for p, where in model.parameters_of("size")]
    assert len(own) > 2
    step(["good", "kind"])
    assert all(torch.equal(p.detach()[where], value) for p, where, value in own)
    step(["size"])
    assert not all(torch.equal(p.detach()[where], value) for p, where, value in own)


@pytest.mark.parametrize("kind", [TextLoRAShared, TextLoRAPerTask])
def test_the_backbone_keeps_its_weights(data: Prepared, kind: type[TextLoRAShared], tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": 4}
    fitted = kind(**settings).fit(data, Budget(60.0), 3)
    torch.manual_seed(3)
    model = fitted.models[0]
    fresh = Ready.of(data, {**kind.defaults, **settings}).model(
        name="adapted_text", adapter={"name": "lora", "settings": {}}, routed=kind.routed
    )
    held = {n: v for n, v in model.state_dict().items() if n.startswith("encoder.backbone")}
    assert held
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in held.items())
    assert fitted.record["trained"] == sum(p.numel() for n, p in model.named_parameters() if "backbone" not in n)


def test_each_specialist_keeps_its_own_best_epoch(data: Prepared) -> None:
    """The artefact scores on the valid part what the best epoch of each task's own curve says, not the last or a common one."""
    fitted = TextLoRAPerTask(**{**SMALL, "epochs": 5, "lr": 2e-2}).fit(data, Budget(60.0), 0)
    cells = data.labelled("size", "valid")
    found = fitted.scores(data, cells.rows, ["size"])["size"]
    rmse = float(np.sqrt(((found - cells.values) ** 2).mean()))
    assert rmse == pytest.approx(min(fitted.record["curves"]["size"]), rel=1e-4)
    right = data.labelled("kind", "valid")
    p = fitted.scores(data, right.rows, ["kind"])["kind"]
    logloss = -np.log(p[np.arange(len(right)), right.values.astype(int)].clip(1e-7)).mean()
    assert logloss == pytest.approx(min(fitted.record["curves"]["kind"]), rel=1e-3)


def test_the_routing_of_mhr_has_a_rate_of_its_own(data: Prepared) -> None:
    """At the skills' rate the routing hardly leaves uniform in so few steps."""
    spread = []
    for rate in (0.1, 2e-3):
        settings = {**SMALL, "epochs": 2, "lr": 2e-3, "routing_lr": rate, "blocks": 2, "rank": 2}
        model = TextMHR(**settings).fit(data, Budget(60.0), 0).models[0]
        spread.append(max(float(site.Z.detach().std()) for site in model.adapters.sites.values()))  # type: ignore[union-attr]
    assert spread[0] > 10 * spread[1]


def test_scalearn_keeps_its_sources(data: Prepared, tmp_path: Path) -> None:
    """Stage 2 moves no bit of the tasks' adapters, and they travel with the model."""
    from pluribus.modeling import load
    from pluribus.text.adapted import TextScaLearn

    fitted = TextScaLearn(**SMALL, epochs=3).fit(data, Budget(60.0), 0)
    adapters = fitted.models[0].adapters
    held = {name: value.clone() for name, value in adapters.sources.state_dict().items()}
    assert any(float(value.abs().sum()) > 0 for name, value in held.items() if name.endswith("U"))
    assert fitted.record["trained"] == sum(p.numel() for p in adapters.sites.parameters()) + sum(
        p.numel() for p in fitted.models[0].heads.parameters()
    )
    torch.manual_seed(0)
    again = TextScaLearn(**SMALL, epochs=3, dropout_omega=0.0).fit(data, Budget(60.0), 0)  # another stage 2
    for name, value in again.models[0].adapters.sources.state_dict().items():
        assert torch.equal(value, held[name]), name
    fitted.save(tmp_path / "model")
    rows = data.parts["valid"]
    a, b = (each.scores(data, rows, ["kind"])["kind"] for each in (fitted, load(tmp_path / "model")))
    np.testing.assert_array_equal(a, b)
