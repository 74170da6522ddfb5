"""Auto-λ: the finite difference against the exact hypergradient, momentum and decay, and who moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import AutoLambda, backward, combine
from pluribus.errors import BadInput

torch.manual_seed(0)
X, V = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
NAMES = ("a", "b", "c")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.shared = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.heads = nn.ModuleDict({t: nn.Linear(6, 1) for t in NAMES})
        self.double()

    def losses(self, x: Tensor, tasks: Any = NAMES) -> dict[str, Tensor]:
        target = {"a": x.sum(1, keepdim=True), "b": x[:, :1] - x[:, 1:2], "c": -x.sum(1, keepdim=True)}
        return {t: (self.heads[t](self.shared(x)) - target[t]).square().mean() for t in tasks}


def closures(net: Net, tasks: Any = NAMES) -> dict[str, Any]:
    return {"train": lambda: net.losses(X, tasks), "validation": lambda: net.losses(V)}


def hypergradient(net: Net, lam: Tensor, step: Any, primary: Any) -> Tensor:
    """∂/∂λ of the primary tasks' validation loss after the virtual step, differentiated through by autograd."""
    names, values = zip(*net.named_parameters())
    lam = lam.clone().requires_grad_()
    train = net.losses(X)
    g = torch.autograd.grad(sum(l * w for l, w in zip(train.values(), lam)), values, create_graph=True)
    moved = {n: step(p, q) for n, p, q in zip(names, values, g)}

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self) -> Tensor:
            return sum(v for t, v in self.net.losses(V).items() if t in primary)

    loss = torch.func.functional_call(Call(), {f"net.{n}": v for n, v in moved.items()}, ())
    return torch.autograd.grad(loss, lam)[0]


class Watch(AutoLambda):
    """Keeps the gradient that λ was given."""

    def reset(self) -> None:
        super().reset()
        descend = self.scalars.descend

        def watched(tasks: Any, gradient: Tensor) -> Tensor:
            self.gradient = gradient
            return descend(tasks, gradient)

        self.scalars.descend = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("primary", [("a",), ("a", "b", "c")])
def test_the_slope_is_the_hypergradient(primary: tuple[str, ...]) -> None:
    net, balancer = Net(), Watch(primary=primary, lr=0.05)
    backward(net.losses(X), balancer, closure=closures(net))
    exact = hypergradient(net, torch.full((3,), 0.1, dtype=torch.float64), lambda p, g: p - 0.05 * g, primary)
    torch.testing.assert_close(balancer.gradient, exact, rtol=1e-3, atol=1e-6)


def test_momentum_and_weight_decay_are_read_from_the_optimiser() -> None:
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    sum(net.losses(V).values()).backward()
    optimiser.step()
    balancer = Watch(primary=("b",), optimizer=optimiser)
    net.zero_grad()
    buffers = {p: optimiser.state[p]["momentum_buffer"] for p in net.parameters()}
    backward(net.losses(X), balancer, closure=closures(net))

    def step(p: Tensor, g: Tensor) -> Tensor:
        return p - 0.05 * (0.9 * buffers[p] + g + 0.1 * p)

    exact = hypergradient(net, torch.full((3,), 0.1, dtype=torch.float64), step, ("b",))
    torch.testing.assert_close(balancer.gradient, exact, rtol=1e-3, atol=1e-6)


def test_gradients_written_are_the_weighted_sum_s() -> None:
    net, balancer = Net(), AutoLambda(lr=0.05, rate=0.02)
    step = backward(net.losses(X), balancer, closure=closures(net))
    found = [p.grad.clone() for p in net.parameters()]
    assert (step.weights != 0.1).all()
    wanted = torch.autograd.grad(sum(w * l for w, l in zip(step.weights, net.losses(X).values())), list(net.parameters()))
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b)


def test_with_shared_the_heads_stay_plain() -> None:
    net = Net()
    backward(net.losses(X), AutoLambda(lr=0.05), shared=net.shared, closure=closures(net))
    wanted = torch.autograd.grad(net.losses(X)["a"], net.heads["a"].weight)[0]
    torch.testing.assert_close(net.heads["a"].weight.grad, wanted)


def test_a_helpful_task_rises_and_a_harmful_one_falls() -> None:
    """a is primary; b has a's labels, c has their negatives."""

    class Same(Net):
        def losses(self, x: Tensor, tasks: Any = NAMES) -> dict[str, Tensor]:
            y = x.sum(1, keepdim=True)
            out = self.heads["a"](self.shared(x))
            return {t: (out - s * y).square().mean() for t, s in zip(NAMES, (1, 1, -1)) if t in tasks}

    net = Same()
    balancer = AutoLambda(primary=("a",), lr=0.05, rate=0.01)
    for _ in range(5):
        step = backward(net.losses(X), balancer, closure=closures(net))
    w = dict(zip(step.tasks, step.weights.tolist()))
    assert w["b"] > 0.1 > w["c"] >= 0


def test_an_absent_task_does_not_move_and_the_state_resumes() -> None:
    net, balancer = Net(), AutoLambda(lr=0.05, rate=0.01)
    backward(net.losses(X, ("a", "c")), balancer, closure=closures(net, ("a", "c")))
    w = balancer.weights(torch.ones(3, dtype=torch.float64), tasks=NAMES)
    assert w[1].item() == pytest.approx(0.1)
    assert w[0].item() != pytest.approx(0.1)
    fresh = AutoLambda(lr=0.05, rate=0.01)
    fresh.load_state_dict(balancer.state_dict())
    steps = [backward(net.losses(X), b, closure=closures(net)) for b in (balancer, fresh)]
    assert torch.equal(steps[0].weights, steps[1].weights)


def test_bad_auto_lambda() -> None:
    net = Net()
    losses = net.losses(X)
    with pytest.raises(BadInput, match=r"lr or optimizer"):
        AutoLambda()
    with pytest.raises(BadInput, match=r"rate"):
        AutoLambda(lr=0.1, rate=-1)
    with pytest.raises(BadInput, match=r"backward\("):
        combine(losses, AutoLambda(lr=0.1))
    with pytest.raises(BadInput, match=r"two closures"):
        backward(losses, AutoLambda(lr=0.1), closure=lambda: losses)
    with pytest.raises(BadInput, match=r"closure"):
        backward(losses, AutoLambda(lr=0.1))
    with pytest.raises(BadInput, match=r"lack 'd'"):
        backward(losses, AutoLambda(lr=0.1, primary=("d",)), closure=closures(net))
