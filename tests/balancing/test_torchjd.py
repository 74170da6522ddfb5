"""TorchJD's objects at both doors: their own results, through our engine. Duck types stand in where TorchJD is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import TorchJD, backward, combine
from pluribus.balancing.torchjd import as_balancer
from pluribus.errors import BadInput

CELLS = {"a": torch.arange(0, 9), "b": torch.arange(5, 12), "c": torch.tensor([1, 3, 12])}


@pytest.fixture
def peer() -> Any:
    return pytest.importorskip("torchjd.aggregation")


@pytest.fixture
def scalars() -> Any:
    return pytest.importorskip("torchjd.scalarization")


def shared_gradients(net: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.shared.parameters()])


GRAM = ("MGDA", "AlignedMTL", "IMTLG", "PCGrad", "GradVac")
ROWS = ("GradDrop", "ConFIG", "TrimmedMean", "Krum")
PLAIN = ("Mean", "Sum")


def make(peer: Any, name: str) -> Any:
    settings: dict[str, Any] = {"TrimmedMean": {"trim_number": 1}, "Krum": {"n_byzantine": 0}}.get(name, {})
    return getattr(peer, name)(**settings)


@pytest.mark.peer
@pytest.mark.parametrize("name", GRAM + ROWS + PLAIN)
def test_an_aggregator_gives_its_own_direction(build: Any, jacobian: Any, peer: Any, name: str) -> None:
    net = build("mlp")
    losses, z = net.losses(net.make(15), CELLS)
    J = jacobian(losses, list(net.shared.parameters()))
    torch.manual_seed(0)
    wanted = make(peer, name)(J)
    torch.manual_seed(0)
    step = backward(losses, make(peer, name), features=z, shared=net.shared, gram="full")
    torch.testing.assert_close(shared_gradients(net), wanted, rtol=1e-7, atol=1e-9)
    assert (step.weights is None) == (name in ("GradDrop", "ConFIG", "TrimmedMean"))
    assert (step.source == "losses") == (name in PLAIN)


@pytest.mark.peer
@pytest.mark.parametrize("name", GRAM)
def test_a_gramian_weighting_serves_combine(build: Any, peer: Any, name: str) -> None:
    net = build("mlp")
    losses, z = net.losses(net.make(15), CELLS)
    rows = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0].flatten() for l in losses.values()])
    torch.manual_seed(0)
    wanted = getattr(peer, f"{name}Weighting")()(rows @ rows.T)
    torch.manual_seed(0)
    weighting = getattr(peer, f"{name}Weighting")()
    combine(losses, weighting, features=z).backward()
    torch.testing.assert_close(as_balancer(weighting).last.weights, wanted)


@pytest.mark.peer
def test_a_direction_serves_combine(build: Any, peer: Any) -> None:
    net = build("mlp")
    losses, z = net.losses(net.make(15), CELLS)
    rows = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0].flatten() for l in losses.values()])
    d = peer.ConFIG()(rows).view_as(z)
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(z, list(net.shared.parameters()), d, retain_graph=True)])
    combine(losses, peer.ConFIG(), features=z).backward()
    torch.testing.assert_close(shared_gradients(net), wanted)


@pytest.mark.peer
def test_cross_gram_weightings_take_three_batches(build: Any, jacobian: Any, peer: Any) -> None:
    net = build("mlp")
    batches = [net.losses(net.make(15), CELLS)[0] for _ in range(3)]
    J = [jacobian(losses, list(net.shared.parameters())) for losses in batches]
    w = peer.MoDoWeighting()(J[0] @ J[1].T)
    step = backward(batches, peer.MoDoWeighting(), shared=net.shared)
    torch.testing.assert_close(step.weights, w)
    torch.testing.assert_close(shared_gradients(net), J[2].T @ w)
    with pytest.raises(BadInput, match=r"backward\("):
        combine(batches[0], peer.MoDoWeighting())


@pytest.mark.peer
@pytest.mark.parametrize("name", ["GeometricMean", "STCH", "UW", "IMTLL", "Mean", "FAMO"])
def test_a_scalarizer_gives_its_gradient(build: Any, scalars: Any, name: str) -> None:
    net = build("mlp")
    x = net.make(15)
    settings = {"UW": {"shape": 3}, "IMTLL": {"shape": 3}, "FAMO": {"shape": 3}, "STCH": {"mu": 0.5}}.get(name, {})
    ours, theirs = (getattr(scalars, name)(**settings).double() for _ in range(2))
    losses, _ = net.losses(x, CELLS)
    combine(losses, ours).backward()
    found = [None if p.grad is None else p.grad.clone() for p in [*net.parameters(), *ours.parameters()]]
    net.zero_grad()
    losses, _ = net.losses(x, CELLS)
    theirs(torch.stack(list(losses.values()))).backward()
    for p, g in zip([*net.parameters(), *theirs.parameters()], found):
        assert (p.grad is None) == (g is None)
        if g is not None:
            torch.testing.assert_close(p.grad, g)


@pytest.mark.peer
def test_famo_s_hook_and_state(build: Any, scalars: Any) -> None:
    """after_step reaches `update`; the state goes to a fresh object, inner optimiser included."""
    net = build("mlp")
    losses = {t: l.detach() for t, l in net.losses(net.make(15), CELLS)[0].items()}
    grown = {t: l.requires_grad_() for t, l in losses.items()}
    one, two = (as_balancer(scalars.FAMO(3)) for _ in range(2))
    combine(grown, one)
    one.after_step({t: 0.5 * (i + 1) * l for i, (t, l) in enumerate(losses.items())})
    combine(grown, one)
    assert one.last.weights.std() > 0
    two.load_state_dict(one.state_dict())
    for balancer in (one, two):
        balancer.after_step({t: 0.7 * l for t, l in losses.items()})
        combine(grown, balancer)
    assert torch.equal(one.last.weights, two.last.weights)
    one.reset()
    assert one.seen is None


@pytest.mark.peer
def test_positional_state_refuses_other_tasks(build: Any, peer: Any) -> None:
    net = build("mlp")
    weighting = peer.GradVac()
    losses, z = net.losses(net.make(15), CELLS)
    combine(losses, weighting, features=z)
    with pytest.raises(BadInput, match=r"by position"):
        combine({t: losses[t] for t in ("b", "a", "c")}, weighting, features=z)
    combine({t: losses[t] for t in ("b", "a")}, peer.MGDA(), features=z)  # no state, no complaint


def test_duck_types_are_enough(build: Any) -> None:
    """No import of TorchJD: classes of these names will do."""

    class Weighting(nn.Module):
        pass

    class _GramianWeighting(Weighting):
        pass

    class Mine(_GramianWeighting):
        def forward(self, gram: Tensor) -> Tensor:
            return gram.diagonal().rsqrt()

    net = build("mlp")
    losses, z = net.losses(net.make(15), CELLS)
    mine = Mine()
    combine(losses, mine, features=z)
    wrapper = as_balancer(mine)
    assert isinstance(wrapper, TorchJD)
    assert as_balancer(mine) is wrapper
    torch.testing.assert_close(wrapper.last.weights, wrapper.last.gram.diagonal().rsqrt())
    assert "Mine" in repr(wrapper)


def test_the_family_itself_is_no_balancer() -> None:
    """Broken: `backward(losses, TorchJD(UPGrad()))` is told to use `backward`."""
    with pytest.raises(BadInput, match="pass TorchJD's object itself"):
        TorchJD(nn.Identity())


@pytest.mark.parametrize("thing", ["nash", 3, None, nn.Linear(2, 2)])
def test_anything_else_is_refused(build: Any, thing: Any) -> None:
    net = build("mlp")
    losses, z = net.losses(net.make(15), CELLS)
    with pytest.raises(BadInput, match=r"is not a balancer"):
        combine(losses, thing, features=z)
