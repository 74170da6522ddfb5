"""Judging: what is predicted does not depend on how the rows are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pluribus.data.prepared import Prepared
from pluribus.modeling import MultiTaskModel
from pluribus.modeling.pieces import LIMIT
from pluribus.training import predict


def test_wide_rows_are_predicted_in_pieces(data: Prepared, model: MultiTaskModel, monkeypatch: Any) -> None:
    """If this fails, judging a model on pictures needs the memory of thousands of them at once, or mixes their order up."""
    rows = {"loss": torch.arange(300), "grade": torch.tensor([5, 3, 599])}
    whole, sizes, batch = predict(model, data, rows), [], Prepared.batch

    def counted(self: Prepared, rows: torch.Tensor, tasks: Any = None) -> Any:
        sizes.append(len(rows))
        return batch(self, rows, tasks)

    monkeypatch.setattr(Prepared, "batch", counted)
    cut = predict(model, data, rows, bytes_each=LIMIT // 100)
    assert sizes == [100, 100, 100, 1]
    for name in rows:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-5)
    sizes.clear()
    predict(model, data, rows)
    assert sizes == [16, 301]
