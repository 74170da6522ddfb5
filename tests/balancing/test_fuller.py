"""FULLER: equal branch norms below the fusion, equal projections at the last shared layer, nothing else touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import FAMO, IMTLG, MGDA, Fuller, MoCo, backward, combine, equalise_gradients
from pluribus.errors import BadInput

torch.manual_seed(0)
BRANCHES = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)]).double()
FUSION, LAST = nn.Linear(8, 6).double(), nn.Linear(6, 5).double()
HEADS = nn.ModuleList([nn.Linear(5, 1), nn.Linear(5, 1)]).double()
X = torch.randn(10, 3, dtype=torch.float64)


def forward(level: str | None) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    raw = [branch(X) * scale for branch, scale in zip(BRANCHES, (10.0, 0.1))]
    for part in raw:
        part.retain_grad()
    used = raw if level is None else equalise_gradients(*raw, level=level)
    z = torch.tanh(LAST(torch.tanh(FUSION(torch.cat([used[0] * 3, used[1] * 0.2], 1)))))
    losses = {str(t): s * (head(z) - 1).square().mean() for t, (head, s) in enumerate(zip(HEADS, (1.0, 20.0)))}
    return losses, z, raw


@pytest.mark.parametrize("level", ["mean", "max", "geometric"])
def test_branch_norms_are_equal_and_directions_kept(level: str) -> None:
    losses, _, plain = forward(None)
    FUSION.zero_grad()
    sum(losses.values()).backward()
    fusion = FUSION.weight.grad.clone()
    losses, _, found = forward(level)
    FUSION.zero_grad()
    sum(losses.values()).backward()
    norms = torch.stack([p.grad.norm() for p in plain])
    wanted = {"mean": norms.mean(), "max": norms.max(), "geometric": norms.log().mean().exp()}[level]
    for p, q in zip(plain, found):
        assert q.grad.norm().item() == pytest.approx(wanted.item())
        assert torch.cosine_similarity(p.grad.flatten(), q.grad.flatten(), 0).item() == pytest.approx(1)
    torch.testing.assert_close(FUSION.weight.grad, fusion)


def test_one_branch_is_itself_and_values_are_untouched() -> None:
    z = torch.randn(3, requires_grad=True)
    assert equalise_gradients(z) is z
    a, b = equalise_gradients(z, 2 * z)
    assert torch.equal(a, z)
    assert torch.equal(b, 2 * z)


def test_a_branch_without_gradient_does_not_count() -> None:
    a, b = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    c, d = equalise_gradients(a, b)
    (2 * c.sum() + 0 * d.sum()).backward()
    assert torch.equal(a.grad, torch.full((4,), 2.0))
    assert torch.equal(b.grad, torch.zeros(4))
    a.grad = None
    c, _ = equalise_gradients(a, b)
    c.sum().backward()
    assert torch.equal(a.grad, torch.ones(4))


def test_equal_projections_at_the_last_shared_layer() -> None:
    losses, z, _ = forward("mean")
    layer = list(LAST.parameters())
    each = [torch.autograd.grad(loss, layer, retain_graph=True) for loss in losses.values()]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in each])
    balancer = Fuller()
    combine(losses, balancer, features=z).backward()
    assert balancer.last.source == "last"
    d = balancer.last.weights @ rows
    projections = rows @ d / rows.norm(dim=1)
    assert projections[0].item() == pytest.approx(projections[1].item())


def test_both_doors_listen_at_the_last_layer() -> None:
    for door in (lambda l, b, z: combine(l, b, features=z), lambda l, b, z: backward(l, b, features=z)):
        losses, z, _ = forward(None)
        balancer = Fuller(MGDA())
        door(losses, balancer, z)
        assert balancer.last.source == "last"


def test_one_task_is_plain() -> None:
    losses, z, _ = forward(None)
    FUSION.zero_grad()
    combine({"0": losses["0"]}, Fuller(IMTLG()), features=z).backward()
    found = FUSION.weight.grad.clone()
    losses, z, _ = forward(None)
    FUSION.zero_grad()
    losses["0"].backward()
    torch.testing.assert_close(FUSION.weight.grad, found)


def test_bad_fullers() -> None:
    for inner in (FAMO(), MoCo()):
        with pytest.raises(BadInput, match=r"hears"):
            Fuller(inner)
    with pytest.raises(BadInput, match=r"unknown level"):
        equalise_gradients(X, X, level="median")
    with pytest.raises(BadInput, match=r"no branch"):
        equalise_gradients()


def test_state_is_the_inner_s(build: Any) -> None:
    assert Fuller(IMTLG()).state_dict().keys() == {"inner"}
    fresh = Fuller(IMTLG())
    fresh.load_state_dict(Fuller(IMTLG()).state_dict())
