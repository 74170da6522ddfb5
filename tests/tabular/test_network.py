"""The network artefact: saved, loaded, damaged, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.files import sha256
from pluribus.modeling import load
from pluribus.tabular.network import WEIGHTS, Network, build

SHARED = {
    "encoder": {"name": "tabular_mlp", "settings": {"width": 16, "depth": 1}},
    "sharing": {"name": "shared_bottom", "settings": {"tower": 8}},
}
APART = {"architecture": {"name": "specialists", "settings": {"width": 16, "depth": 1}}}


def _network(data: Prepared, config: dict[str, Any]) -> Network:
    torch.manual_seed(0)
    model = build(data.tasks, data.columns, config)
    model.heads.start(data.batch(torch.from_numpy(data.parts["train"])).labels)
    return Network(data.tasks, data.columns, config, model)


def _save_damaged(data: Prepared, folder: Path, change: Any) -> None:
    """Save, change the weights, and put the hash right again, so that only the content is wrong."""
    _network(data, SHARED).save(folder)
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    manifest = json.loads((folder / "pluribus.json").read_text())
    manifest["files"][WEIGHTS] = sha256(folder / WEIGHTS)
    (folder / "pluribus.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("config", [SHARED, APART], ids=["shared", "apart"])
def test_rebuilt_without_training_code(mixed: Prepared, config: dict[str, Any], tmp_path: Path) -> None:
    """A loaded network gives the same bits; reading it imports nothing that trains."""
    import subprocess
    import sys

    fitted = _network(mixed, config)
    fitted.record = {"seconds": 1.5}
    fitted.save(tmp_path / "m")
    again = load(tmp_path / "m")
    rows, names = np.arange(mixed.n_rows), [task.name for task in mixed.tasks]
    before, after = fitted.scores(mixed, rows, names), again.scores(mixed, rows, names)
    assert all(np.array_equal(before[name], after[name]) for name in names)
    assert again.costs().parameters == sum(p.numel() for p in fitted.model.parameters())
    code = (
        "import sys; from pluribus.data.columns import FittedColumns; from pluribus.tabular.network import Network; "
        "assert 'pluribus.training' not in sys.modules"
    )
    if config is SHARED:
        subprocess.run([sys.executable, "-c", code], check=True)


def test_shape_mismatch_names_the_tensor(mixed: Prepared, tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["encoder.first.weight"] = state["encoder.first.weight"][:, :-1].contiguous()

    _save_damaged(mixed, tmp_path / "m", change)
    with pytest.raises(BadInput, match=r"tensor 'encoder\.first\.weight': has shape .* but tasks and columns need"):
        load(tmp_path / "m")


def test_foreign_and_missing_tensors_are_named(mixed: Prepared, tmp_path: Path) -> None:
    _save_damaged(mixed, tmp_path / "a", lambda state: state.update({"stranger": torch.zeros(1)}))
    with pytest.raises(BadInput, match="tensor 'stranger': is not part of this network"):
        load(tmp_path / "a")
    _save_damaged(mixed, tmp_path / "b", lambda state: state.pop("heads.bias"))
    with pytest.raises(BadInput, match=r"tensor 'heads\.bias': is missing"):
        load(tmp_path / "b")
    _save_damaged(mixed, tmp_path / "c", lambda state: state["heads.bias"].fill_(torch.nan))
    with pytest.raises(BadInput, match=r"tensor 'heads\.bias': holds NaN"):
        load(tmp_path / "c")
    _save_damaged(mixed, tmp_path / "d", lambda state: state.update({"heads.bias": state["heads.bias"].double()}))
    with pytest.raises(BadInput, match=r"tensor 'heads\.bias': is torch\.float64"):
        load(tmp_path / "d")


def test_truncated_weights(mixed: Prepared, tmp_path: Path) -> None:
    _network(mixed, SHARED).save(tmp_path / "m")
    path = tmp_path / "m" / WEIGHTS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"network\.safetensors: is not what was saved"):
        load(tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "pluribus.json").read_text())
    manifest["files"][WEIGHTS] = sha256(path)
    (tmp_path / "m" / "pluribus.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"network\.safetensors: cannot be read as safetensors"):
        load(tmp_path / "m")


def test_costs_by_hand(mixed: Prepared) -> None:
    """FLOPs: two per weight of every matrix product that all tasks together run."""
    fitted = _network(mixed, SHARED)
    encoder: Any = fitted.model.encoder
    inputs = encoder.first.inputs
    expected = 2 * (inputs * 16 + 16 * 16 + len(mixed.tasks) * 16 * 8 + 8 * sum(task.width for task in mixed.tasks))
    costs = fitted.costs()
    assert costs.flops_per_row == pytest.approx(expected)
    assert costs.rows_per_second is not None
    assert costs.rows_per_second > 0
    assert costs.bytes >= 4 * costs.parameters


@pytest.mark.parametrize("config", [SHARED, APART], ids=["shared", "apart"])
def test_onnx_round_trip(mixed: Prepared, config: dict[str, Any], tmp_path: Path) -> None:
    """onnxruntime gives the network's predictions, at another number of rows than the export saw, missing values included."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    from pluribus.tabular.export import export_onnx

    fitted = _network(mixed, config)
    folder = export_onnx(fitted, tmp_path / "onnx", tasks=["loss", "rating"])
    session = runtime.InferenceSession(str(folder / "model.onnx"))
    rows = np.arange(41)
    found = session.run(None, {"numeric": mixed.numeric[rows], "categorical": mixed.categorical[rows].astype(np.int64)})
    expected = fitted.scores(mixed, rows, ["loss", "rating"])
    assert [o.name for o in session.get_outputs()] == ["loss", "rating"]
    for value, name in zip(found, expected):
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4 if name == "rating" else 1e-2)
    encoding = json.loads((folder / "encoding.json").read_text())
    assert [n["name"] for n in encoding["numeric"]] == list(mixed.columns.numeric_names)
    assert encoding["categorical"][0]["codes"]["a"] >= 2
