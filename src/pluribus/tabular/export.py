"""A fitted network as ONNX, for runtimes without Python.

`model.onnx` takes encoded rows, "numeric" [n, F] float32 (NaN where missing) and "categorical" [n, C] int64, and gives one output
per task in the task's own units: P(positive) [n], P(class) [n, C] or the value [n]. `encoding.json` beside it says how a table's
columns become those inputs, and carries tasks, thresholds and calibration: ONNX holds the uncalibrated network.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput, require
from pluribus.files import atomic_folder
from pluribus.modeling import Fitted, MultiTaskModel
from pluribus.tabular.network import Network

OPSET = 18


class _Encoded(nn.Module):
    """The network as a function of two tensors, answering in the tasks' units."""

    def __init__(self, model: MultiTaskModel, tasks: Sequence[str]) -> None:
        super().__init__()
        self.model, self.tasks = model, tuple(tasks)

    def forward(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model({"numeric": numeric, "categorical": categorical}, dict.fromkeys(self.tasks))
        linked = self.model.heads.link(outputs)
        return tuple(linked[name] for name in self.tasks)


def export_onnx(fitted: Fitted, folder: str | Path, tasks: Sequence[str] | None = None) -> Path:
    """Write `model.onnx` and `encoding.json` into `folder` (created, or replaced whole) and return it.

    Only networks can be exported. Needs the extra `export`.
    """
    if not isinstance(fitted, Network):
        what = f"a model of kind {fitted.artefact!r} cannot be exported as ONNX"
        raise BadInput(what, remedy="export a network, or use the model folder as it is")
    if getattr(fitted.model, "reads_sequences", False):
        remedy = "use the model folder as it is"
        raise BadInput("a network that reads sequences cannot be exported as ONNX", where="export", remedy=remedy)
    for module in ("onnx", "onnxscript"):
        require(module, extra="export", purpose="exporting to ONNX")
    names = fitted.requested(tasks)
    columns = fitted.columns
    rows = torch.export.Dim("rows", min=1)
    example = (torch.zeros(3, len(columns.numeric_names)), torch.zeros(3, len(columns.categorical_names), dtype=torch.int64))
    encoding: dict[str, Any] = {
        "numeric": [{"name": name, "centre": n.centre, "scale": n.scale} for name, n in columns.numbers.items()],
        "categorical": [
            {"name": name, "missing": 0, "unseen": 1, "codes": {word: i for i, word in enumerate(c.categories, 2)}}
            for name, c in columns.categories.items()
        ],
        "tasks": [task.to_dict() for task in fitted.tasks if task.name in names],
        "thresholds": {name: value for name, value in fitted.thresholds.items() if name in names},
        "calibration": {name: value for name, value in fitted.calibration.items() if name in names},
    }
    with atomic_folder(folder) as aside, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                _Encoded(fitted.model, names).eval(),
                example,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=["numeric", "categorical"],
                output_names=names,
                dynamic_shapes=({0: rows}, {0: rows}),
            )
        finally:
            logger.setLevel(level)
        assert program is not None
        program.save(aside / "model.onnx", external_data=False)
        (aside / "encoding.json").write_text(json.dumps(encoding, indent=1, allow_nan=False), "utf-8")
    return Path(folder)
