"""F-MTL against its definition, its degenerate cases and its relatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import MGDA, CAGrad, EqualWeighting, FlatRegions, GradDrop, MoDo, NashMTL, PCGrad, backward, combine
from pluribus.errors import BadInput

CELLS = {"a": torch.arange(0, 9), "b": torch.arange(5, 12), "c": torch.tensor([1, 3, 12])}


def run(net: Any, x: Tensor, balancer: Any, features: bool = False, **more: Any) -> tuple[Tensor, Tensor]:
    """One step: the gradients of the shared part and of the heads, flat."""
    net.zero_grad()
    losses, z = net.losses(x, CELLS)
    backward(
        losses, balancer, shared=net.shared, features=z if features else None, closure=lambda: net.losses(x, CELLS)[0], **more
    )
    parts = (net.shared, net.heads)
    return tuple(torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None]) for part in parts)  # type: ignore[return-value]


@pytest.mark.parametrize("inner", [MGDA, CAGrad, PCGrad, NashMTL, EqualWeighting, GradDrop])
@pytest.mark.parametrize("features", [True, False])
def test_radius_zero_is_the_base_balancer(build: Any, inner: Any, features: bool) -> None:
    net = build("mlp")
    x = net.make(15)
    found, heads = run(net, x, FlatRegions(inner(), rho=0.0), features)
    net.zero_grad()
    losses, _ = net.losses(x, CELLS)
    backward(losses, inner(), shared=net.shared, gram="full")
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in net.shared.parameters()]))
    torch.testing.assert_close(heads, torch.cat([p.grad.flatten() for p in net.heads.parameters()]))


def test_the_definition_step_by_step(build: Any) -> None:
    """a, ε, δ, s, u, f by hand on copies of the network; MGDA on both parts."""
    net = build("mlp")
    x, rho, rho_heads = net.make(15), 0.3, 0.2
    found, heads = run(net, x, FlatRegions(MGDA(), rho, rho_heads), scale=2.0)
    shared = list(net.shared.parameters())
    a, s, u = [], [], []
    for t in CELLS:
        phi = list(net.heads[t].parameters())
        loss = net.losses(x, CELLS)[0][t]
        at, bt = torch.autograd.grad(loss, shared, retain_graph=True), torch.autograd.grad(loss, phi)
        ra = rho / torch.cat([g.flatten() for g in at]).norm()
        rb = rho_heads / torch.cat([g.flatten() for g in bt]).norm()
        with torch.no_grad():
            for p, g in [*zip(shared, [ra * g for g in at]), *zip(phi, [rb * g for g in bt])]:
                p += g
        loss = net.losses(x, CELLS)[0][t]
        st, ut = torch.autograd.grad(loss, shared, retain_graph=True), torch.autograd.grad(loss, phi)
        with torch.no_grad():
            for p, g in [*zip(shared, [ra * g for g in at]), *zip(phi, [rb * g for g in bt])]:
                p -= g
        a.append(torch.cat([g.flatten() for g in at]))
        s.append(torch.cat([g.flatten() for g in st]))
        u.append(torch.cat([g.flatten() for g in ut]))
    A, S = torch.stack(a), torch.stack(s)
    F = S - A
    d = MGDA().weights(A @ A.T) @ A + MGDA().weights(F @ F.T) @ F
    torch.testing.assert_close(found, 2 * d, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(heads, 2 * torch.cat(u), rtol=1e-8, atol=1e-10)


class Quadratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))


def test_quadratics_have_a_closed_form() -> None:
    """ℓ_t = ½ θᵀA_tθ: f_t = ρ A_t(A_tθ)/‖A_tθ‖; with the sum as aggregator d = Σ a_t + f_t."""
    model, rho = Quadratic(), 0.7
    M = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = M @ M.mT

    def losses() -> dict[str, Tensor]:
        return {str(t): 0.5 * model.theta @ A[t] @ model.theta for t in range(2)}

    backward(losses(), FlatRegions(EqualWeighting(), rho), shared=model, closure=losses)
    wanted = sum(a @ model.theta + rho * a @ (a @ model.theta) / (a @ model.theta).norm() for a in A)
    torch.testing.assert_close(model.theta.grad, wanted.detach())


def test_split_and_direct_aggregation_differ_for_mgda_only(build: Any) -> None:
    """With a linear aggregator splitting changes nothing; with MGDA it must."""
    net = build("mlp")
    x = net.make(15)
    for inner, same in ((EqualWeighting, True), (MGDA, False)):
        split, _ = run(net, x, FlatRegions(inner(), 0.3))
        direct, _ = run(net, x, FlatRegions(inner(), 0.3, how="samo", beta=0.0))  # β = 0: along the mean gradient
        common, _ = run(net, x, FlatRegions(inner(), 0.3, how="common"))
        assert not torch.allclose(split, common)
        if same:  # one point, SAM gradients summed directly or split: heads are perturbed alike
            torch.testing.assert_close(direct, common)
        else:
            assert not torch.allclose(direct, common)


def test_samo_mixes_in_an_estimate_of_the_task_s_own_direction(build: Any) -> None:
    """Repeats with its seed, changes with another, and needs two passes forward more than T."""
    net = build("mlp")
    x = net.make(15)
    runs = [run(net, x, FlatRegions(MGDA(), 0.3, how="samo", beta=0.5, seed=seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])
    calls = []
    losses, _ = net.losses(x, CELLS)

    def closure() -> dict[str, Tensor]:
        calls.append(1)
        return net.losses(x, CELLS)[0]

    backward(losses, FlatRegions(MGDA(), how="samo"), shared=net.shared, closure=closure)
    assert len(calls) == 2 + 3


def test_parameters_come_back_bit_for_bit(build: Any) -> None:
    net = build("mlp")
    before = [p.detach().clone() for p in net.parameters()]
    for how in ("per-task", "common", "samo"):
        run(net, net.make(15), FlatRegions(CAGrad(), 0.5, how=how))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before))


def test_parameters_come_back_when_the_closure_fails(build: Any) -> None:
    net = build("mlp")
    before = [p.detach().clone() for p in net.parameters()]
    losses, _ = net.losses(net.make(15), CELLS)

    def closure() -> dict[str, Tensor]:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match=r"no data"):
        backward(losses, FlatRegions(MGDA()), shared=net.shared, closure=closure)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before))


def test_batch_statistics_rest_in_perturbed_passes(build: Any) -> None:
    net = build("batchnorm")
    x = net.make(15)
    norm = net.shared[1]
    losses, _ = net.losses(x, CELLS)
    mean, count = norm.running_mean.clone(), norm.num_batches_tracked.clone()
    backward(losses, FlatRegions(MGDA()), shared=net.shared, closure=lambda: net.losses(x, CELLS)[0])
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.num_batches_tracked, count)
    assert norm.momentum == 0.1


def test_the_two_states_are_kept_apart_and_saved(build: Any) -> None:
    net = build("mlp")
    x = net.make(15)
    one = FlatRegions(PCGrad(), 0.2, how="samo")
    run(net, x, one)
    two = FlatRegions(PCGrad(), 0.2, how="samo")
    two.load_state_dict(one.state_dict())
    assert torch.equal(run(net, x, one)[0], run(net, x, two)[0])
    assert one.inner is not one.flat


def test_extra_is_written_once(build: Any) -> None:
    net = build("mlp")
    x = net.make(15)
    plain, _ = run(net, x, FlatRegions(MGDA(), 0.1))
    penalty = sum(p.square().sum() for p in net.shared.parameters())
    found, _ = run(net, x, FlatRegions(MGDA(), 0.1), extra=penalty)
    torch.testing.assert_close(found - plain, torch.cat([2 * p.detach().flatten() for p in net.shared.parameters()]))


def test_bad_flat_regions(build: Any) -> None:
    net = build("mlp")
    losses, z = net.losses(net.make(15), CELLS)
    with pytest.raises(BadInput, match=r"backward\("):
        combine(losses, FlatRegions(MGDA()), features=z)
    with pytest.raises(BadInput, match=r"closure"):
        backward(losses, FlatRegions(MGDA()), shared=net.shared)
    with pytest.raises(BadInput, match=r"closure does not return"):
        backward(losses, FlatRegions(MGDA()), shared=net.shared, closure=lambda: {"a": losses["a"]})
    with pytest.raises(BadInput, match=r"rho is -1"):
        FlatRegions(MGDA(), rho=-1)
    with pytest.raises(BadInput, match=r"unknown way"):
        FlatRegions(MGDA(), how="sam")
    with pytest.raises(BadInput, match=r"more than gradients"):
        FlatRegions(MoDo())
