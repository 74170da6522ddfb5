"""Re-estimated statistics are those of the data, and nothing else of the model moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pluribus.errors import BadInput
from pluribus.merging import merge
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


def test_merge_takes_batches() -> None:
    """merge(statistics=…) gives the merged weights the statistics that the data have under them, and says where it cannot."""

    def net(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
        model[1].running_mean.normal_()
        return model

    base, experts = net(0), {"a": net(1), "b": net(2)}
    x = torch.randn(64, 4)
    before = {n: t.clone() for n, t in base.state_dict().items()}
    plain = merge(base, experts, "average")
    found = merge(base, experts, "average", statistics=[x])
    hidden = x @ found["0.weight"].T + found["0.bias"]
    assert torch.allclose(found["1.running_mean"], hidden.mean(0), atol=1e-6)
    assert torch.allclose(found["1.running_var"], hidden.var(0), atol=1e-5)
    assert torch.equal(found["0.weight"], plain["0.weight"])
    assert not torch.allclose(found["1.running_mean"], plain["1.running_mean"])
    assert all(torch.equal(t, before[n]) for n, t in base.state_dict().items())
    states = base.state_dict(), {t: e.state_dict() for t, e in experts.items()}
    again = merge(*states, "average", statistics=[x], module=base)
    assert torch.equal(again["1.running_var"], found["1.running_var"])
    with pytest.raises(BadInput, match="give module="):
        merge(*states, "average", statistics=[x])
    with pytest.raises(BadInput, match="has no batch norm"):
        merge(nn.Linear(2, 2), {"a": nn.Linear(2, 2)}, "average", statistics=[torch.randn(4, 2)])
    with pytest.raises(BadInput, match="in memory"):
        merge(base, experts, "average", statistics=[x], out="anywhere")
