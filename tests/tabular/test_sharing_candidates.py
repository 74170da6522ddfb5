"""Sharing architectures as candidates: what is kept is what was trained, and settings reach the architecture."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget, load
from pluribus.modeling.experts import StackedNorm
from pluribus.tabular import export_onnx
from pluribus.tabular.sharing_candidates import HoMENetwork, MMoENetwork, PLENetwork, STARNetwork, _Architecture, _ExaminedNetwork

CANDIDATES = [e for e in catalog.entries(family="candidate") if e.target.startswith("pluribus.tabular.sharing_candidates")]


def test_norms_are_folded_into_what_is_kept(mixed: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """HoME is saved without batch norms and answers what it answered with them."""
    from pluribus.sharing import HoME

    unfolded: list[HoME] = []
    fold = HoME.fold

    def watched(self: HoME) -> None:
        unfolded.append(copy.deepcopy(self))
        fold(self)

    monkeypatch.setattr(HoME, "fold", watched)
    fitted = HoMENetwork(width=16, epochs=2).fit(mixed, Budget(60.0), 0)
    assert not [part for part in fitted.model.modules() if isinstance(part, StackedNorm)]
    inputs = mixed.batch(torch.arange(40), tasks=()).inputs
    after = fitted.model.predict(inputs)
    fitted.model.sharing = unfolded[0]
    for name, value in fitted.model.predict(inputs).items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("entry", CANDIDATES, ids=lambda entry: entry.name)
def test_settings_are_those_of_the_architecture(entry: catalog.Entry, mixed: Prepared) -> None:
    """Every setting that a candidate hands on is one its architecture takes, with the same default, and none is default-on."""
    kind: type[_ExaminedNetwork] = entry.resolve()
    assert not entry.default
    if issubclass(kind, _Architecture):
        known = inspect.signature(catalog.get("architecture", kind.architecture).resolve().of).parameters
        handed: tuple[str, ...] = kind.own_settings
    else:
        known = inspect.signature(catalog.get("sharing", kind.sharing).resolve().__init__).parameters
        handed = kind.sharing_settings
    for name in handed:
        assert known[name].default == kind.defaults[name], name
    assert kind().estimate(mixed) > 0.5


def test_bad_settings_are_named(mixed: Prepared) -> None:
    with pytest.raises(BadInput, match="experts must be a whole number of at least 1, not 0"):
        MMoENetwork(experts=0, width=16).fit(mixed, Budget(60.0), 0)
    with pytest.raises(BadInput, match="unknown task 'lost'; did you mean 'loss'"):
        HoMENetwork(categories={"x": ["lost"]}, width=16).fit(mixed, Budget(60.0), 0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mmoe", {"top_k": 1.5}, "top_k must be a whole number of at least 1, not 1.5"),
        ("mmoe", {"gate_dropout": 1.5}, "gate_dropout must be a share from 0 to below 1, not 1.5"),
        ("mmoe", {"dropout": -0.1}, "dropout must be a share from 0 to below 1, not -0.1"),
        ("mmoe", {"bins": "x"}, "bins must be a whole number of at least 1, not 'x'"),
        ("mmoe", {"lr": float("nan")}, "lr must be a positive number, not nan"),
        ("mmoe", {"category_size": 0}, "category_size must be a whole number of at least 1, not 0"),
        ("shared_bottom_equal", {"tower": -1}, "tower must be a whole number of at least 0, not -1"),
        ("dselect_k", {"entropy": -1}, "entropy must be a number of at least 0, not -1"),
        ("home", {"categories": {"x": "loss"}}, "must be words, each with its list of tasks"),
        ("home", {"categories": ["loss"]}, "must be words, each with its list of tasks"),
        ("single_tabm", {"sigma": -1.0}, "sigma must be a positive number, not -1.0"),
        ("multitab_net", {"rows": True, "context": 0}, "context must be a whole number of at least 1, not 0"),
        ("two_tower", {"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
    ],
)
def test_values_of_the_wrong_sort_are_named(name: str, settings: dict[str, Any], message: str, mixed: Prepared) -> None:
    """One line that says which setting it is, not a failure of torch's deep below."""
    with pytest.raises(BadInput, match=message):
        catalog.get("candidate", name).resolve()(**settings).fit(mixed, Budget(60.0), 0)


@pytest.mark.parametrize("name", ["single_networks", "shared_bottom_equal", "mmoe", "stem", "star", "pepnet"])
def test_the_spread_of_frequencies_reaches_the_network(name: str, mixed: Prepared) -> None:
    """Setting `sigma`: what matters most about plr is not left at one value."""
    fitted = catalog.get("candidate", name).resolve()(embedding="plr", sigma=30.0, width=16, epochs=1).fit(mixed, Budget(60.0), 0)
    found = [value for key, value in fitted.model.state_dict().items() if key.endswith(".c") and value.numel()]
    assert found
    assert all(float(value.std()) > 10 for value in found)


def test_the_health_of_experts_is_recorded(mixed: Prepared) -> None:
    """What the report draws: by expert group and by task, in plain JSON; where there are no experts, nothing."""
    record = MMoENetwork(width=16, epochs=2).fit(mixed, Budget(60.0), 0).record
    found = record["expert_health"]
    assert set(found) == {"zero_share", "dead_units", "scale_spread", "gate_entropy", "occupancy"}
    assert set(found["dead_units"]) == {"experts"}
    assert set(found["gate_entropy"]) == {task.name for task in mixed.tasks}
    assert len(found["occupancy"]) == 8
    assert all(1 / len(mixed.tasks) <= share <= 1 for share in found["occupancy"])
    json.dumps(found, allow_nan=False)
    assert "expert_health" not in STARNetwork(width=16, epochs=1).fit(mixed, Budget(60.0), 0).record


def test_norms_of_any_mixture_are_folded(mixed: Prepared, tmp_path: Path) -> None:
    """Setting `norm`: what is kept and loaded has none, and answers the same bits."""
    fitted = PLENetwork(width=16, epochs=2, norm=True, expert=[8, 8]).fit(mixed, Budget(60.0), 0)
    assert not [part for part in fitted.model.modules() if isinstance(part, StackedNorm)]
    assert fitted.config["sharing"]["settings"]["norm"] is False
    fitted.save(tmp_path / "model")
    rows, names = np.arange(100), [task.name for task in mixed.tasks]
    before, after = (one.scores(mixed, rows, names) for one in (fitted, load(tmp_path / "model")))
    assert all(np.array_equal(before[name], after[name]) for name in names)


def test_a_packed_network_exports(mixed: Prepared, tmp_path: Path) -> None:
    """Packed for prediction, the exported graph still answers any number of rows, as the network does."""
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module)
    runtime = pytest.importorskip("onnxruntime")
    fitted = MMoENetwork(width=8, epochs=1).fit(mixed, Budget(60.0), 0)
    assert fitted.model.sharing.kept is not None
    session = runtime.InferenceSession(str(export_onnx(fitted, tmp_path / "onnx") / "model.onnx"))
    for rows in (1, 7):
        inputs = mixed.batch(torch.arange(rows), tasks=()).inputs
        found = session.run(None, {"numeric": inputs["numeric"].numpy(), "categorical": inputs["categorical"].long().numpy()})
        expected = fitted.scores(mixed, np.arange(rows), [task.name for task in mixed.tasks])
        for value, wanted in zip(found, expected.values()):
            np.testing.assert_allclose(value.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)
