"""Re-estimated statistics are those of the data, and nothing else of the model moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pluribus.errors import BadInput
from pluribus.merging.batch_norm import reestimate


def test_statistics_are_the_datas() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)).double()
    model[1].running_var.fill_(77)
    before = {n: v.clone() for n, v in model.named_parameters()}
    batches = [torch.randn(50, 4).double() for _ in range(3)]
    assert reestimate(model.train(), batches) == 1
    hidden = [model[0](x) for x in batches]
    assert torch.allclose(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    assert torch.allclose(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert all(torch.equal(v, before[n]) for n, v in model.named_parameters())
    assert (model[1].momentum, model.training, model[1].training) == (0.1, True, True)
    assert reestimate(nn.Linear(2, 2), []) == 0
    with pytest.raises(BadInput, match="no batches"):
        reestimate(model, [])
