"""The health report: if these fail, a sick bank of experts is called healthy, or a healthy one sick."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.modeling import MultiTaskModel
from pluribus.sharing import MMoE, health
from pluribus.sharing.health import dead_units, gate_entropy, occupancy, scale_spread, zero_share


def test_figures_by_hand() -> None:
    outputs = torch.tensor([[[0.0, 1.0], [0.0, 3.0]], [[0.0, 4.0], [2.0, 0.0]]])  # 2 experts, 2 rows, 2 units
    assert zero_share(outputs).tolist() == [0.5, 0.5]
    assert zero_share(torch.tensor([[[-0.2, 0.0], [-0.1, 3.0]]])).tolist() == [0.25]  # Swish goes below zero and lives
    assert dead_units(outputs).tolist() == [0.5, 0.0]
    a, b = (value.flatten().double().std(correction=0) for value in outputs)
    assert scale_spread(outputs) == pytest.approx(float(max(a, b) / min(a, b)))
    assert scale_spread(torch.stack((outputs[0], torch.ones(2, 2)))) == math.inf


def test_entropy_from_one_expert_to_all() -> None:
    assert gate_entropy(torch.eye(4)) == 0
    assert gate_entropy(torch.full((3, 4), 0.25)) == pytest.approx(1)
    assert gate_entropy(torch.tensor([[0.5, 0.5, 0, 0]])) == pytest.approx(0.5)
    assert gate_entropy(torch.full((3, 4), 0.2)) == pytest.approx(1)  # weights that do not sum to one, as DSelect-k's may
    assert math.isnan(gate_entropy(torch.ones(3, 1)))


def test_occupancy_names_the_captured_expert() -> None:
    """Expert 0 is task a's alone, expert 1 is shared alike, expert 2 has no friend."""
    gates = {"a": torch.tensor([[0.5, 0.5, 0.0]]), "b": torch.tensor([[0.0, 0.5, 0.0]])}
    found = occupancy(gates)
    assert found[:2].tolist() == [1.0, 0.5]
    assert found[2].isnan()


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe", "cgc", "ple", "dselect_k", "adatt", "home", "mtan"])
def test_every_architecture_has_a_report(name: str, mixed: Prepared) -> None:
    torch.manual_seed(0)
    encoder = catalog.get("encoder", "tabular_mlp").resolve().of(mixed.columns, width=16, depth=1)
    model = MultiTaskModel(mixed.tasks, encoder, catalog.get("sharing", name).resolve()(mixed.tasks, 16)).train()
    found = health(model, mixed.batch(torch.arange(60), tasks=()).inputs)
    assert model.training
    json.dumps(found.to_dict(), allow_nan=False)
    if name in ("shared_bottom", "mtan"):
        assert not found.zero_share
        assert not found.gate_entropy
        return
    assert all(0 <= share <= 1 for share in found.zero_share.values())
    assert set(found.gate_entropy) == set(model.tasks)
    assert all(0 < value <= 1 + 1e-6 for value in found.gate_entropy.values())
    assert len(found.occupancy) == {"mmoe": 8, "cgc": 2, "ple": 2, "dselect_k": 8, "adatt": 6, "home": 1}[name]
    assert all(1 / len(model.tasks) - 1e-6 <= value <= 1 for value in found.occupancy)


def test_a_dead_expert_is_seen(mixed: Prepared) -> None:
    torch.manual_seed(0)
    encoder = catalog.get("encoder", "tabular_mlp").resolve().of(mixed.columns, width=16, depth=1)
    sharing = MMoE(mixed.tasks, 16, experts=4)
    model, inputs = MultiTaskModel(mixed.tasks, encoder, sharing), mixed.batch(torch.arange(60), tasks=()).inputs
    before = health(model, inputs)
    with torch.no_grad():
        sharing.experts.layers[0].bias[2] = -1e3  # type: ignore[index, operator]
    after = health(model, inputs)
    assert after.dead_units["experts"] >= before.dead_units["experts"] + 0.2
    assert before.scale_spread["experts"] < 3
    assert after.scale_spread["experts"] == math.inf
    assert after.to_dict()["scale_spread"]["experts"] is None


def test_health_of_a_packed_model_is_the_same(mixed: Prepared) -> None:
    """Packed for prediction, experts do not run one by one; the report sees them all the same, and towers are no experts."""
    from pluribus.modeling.experts import pack
    from pluribus.tabular import TabularMLP

    torch.manual_seed(0)
    encoder = TabularMLP.of(mixed.columns, width=8)
    model = MultiTaskModel(mixed.tasks, encoder, MMoE(mixed.tasks, encoder.width)).eval()
    inputs = mixed.batch(torch.arange(50), tasks=()).inputs
    before = health(model, inputs)
    assert set(before.dead_units) == {"experts"}
    pack(model)
    assert health(model, inputs) == before
    with torch.inference_mode():
        assert model.sharing.everything(dict.fromkeys(model.tasks))  # type: ignore[operator]
