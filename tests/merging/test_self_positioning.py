"""Self Positioning: a direction on the simplex and a length, learned on a probe set."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import functional_call

from pluribus.merging.coefficients import TaskVectors, accumulate, workspace
from pluribus.merging.self_positioning import Position, self_positioning

State = dict[str, Tensor]


def quadratic(targets: dict[str, State]):  # type: ignore[no-untyped-def]
    """A task's loss is the squared distance of the weights to its own optimum."""

    def loss(model: nn.Module, task: str, batch: object) -> Tensor:
        return sum(((p - targets[task][n]) ** 2).sum() for n, p in model.named_parameters())  # type: ignore[return-value]

    return loss


@pytest.fixture
def bed() -> tuple[nn.Linear, State, dict[str, State]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    base = {n: t.clone() for n, t in model.state_dict().items()}
    return model, base, {t: {n: v + torch.randn_like(v) for n, v in base.items()} for t in "ab"}


def test_one_expert_learns_its_length_only(bed) -> None:  # type: ignore[no-untyped-def]
    """N = 1: a = 1 and μ is learned; with the expert as optimum it stays 1, elsewhere it is the projection."""
    model, base, experts = bed
    one = {"a": experts["a"]}
    learned = self_positioning(base, one, model, {"a": [0]}, quadratic(one), steps=20)
    torch.testing.assert_close(learned.coefficients.flatten(), torch.ones(1, dtype=torch.float64))
    assert all(torch.equal(learned.state()[n], experts["a"][n]) for n in base)
    learned = self_positioning(base, one, model, {"b": [0]}, quadratic(experts), steps=800)
    tau, aim = (torch.cat([(experts[t][n] - base[n]).flatten() for n in base]) for t in "ab")
    torch.testing.assert_close(learned.coefficients.flatten(), (tau @ aim / (tau @ tau))[None], atol=1e-4, rtol=1e-4)


def test_gradient_of_position_is_autograd(bed) -> None:  # type: ignore[no-untyped-def]
    """The contraction, carried through softmax and length, equals autograd's gradient."""
    model, base, experts = bed
    vectors = TaskVectors(base, experts)
    position = Position(vectors)
    with torch.no_grad():
        position.alpha.copy_(torch.tensor([0.3, -0.5]))
        position.mu.fill_(0.7)
    alpha, mu = position.alpha.detach().clone().requires_grad_(), position.mu.detach().clone().requires_grad_()
    a = alpha.softmax(0)
    merged = {n: base[n] + mu * sum(a[i] * (experts[t][n] - base[n]) for i, t in enumerate("ab")) for n in base}
    x = torch.randn(4, 3, dtype=torch.float64)
    functional_call(model, merged, (x,)).square().mean().backward()
    position.write(model)
    with workspace(model, vectors) as parameters:
        accumulate(model, parameters, lambda m, t, b: m(b).square().mean(), {"a": x})
        (position() * position.contract({n: p.grad for n, p in parameters.items()})).sum().backward()
    torch.testing.assert_close(position.alpha.grad, alpha.grad, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(position.mu.grad, mu.grad, rtol=1e-6, atol=1e-12)


def test_the_optimum_is_that_of_the_quadratic_programme(bed) -> None:  # type: ignore[no-untyped-def]
    """Quadratic losses: α, μ reach the minimum over non-negative coefficients that an independent solver finds."""
    model, base, experts = bed
    aims = {t: {n: v + 0.3 * torch.randn_like(v) for n, v in e.items()} for t, e in experts.items()}
    learned = self_positioning(base, experts, model, {"a": [0], "b": [0]}, quadratic(aims), steps=700, lr=3e-2)
    tau = torch.stack([torch.cat([(experts[t][n] - base[n]).flatten() for n in base]) for t in "ab"]).numpy()
    aim = torch.stack([torch.cat([(aims[t][n] - base[n]).flatten() for n in base]) for t in "ab"]).numpy()
    found = minimize(lambda c: ((c @ tau - aim) ** 2).sum(), [0.5, 0.5], bounds=[(0, None)] * 2)
    torch.testing.assert_close(learned.coefficients.flatten(), torch.tensor(found.x), atol=2e-3, rtol=2e-3)


def test_the_simplex_is_kept_after_every_step(bed) -> None:  # type: ignore[no-untyped-def]
    """Without a learned scale the shares stay non-negative and sum to 1; a free direction may leave."""
    model, base, experts = bed
    aims = {t: {n: 3 * v for n, v in e.items()} for t, e in experts.items()}
    for steps in (1, 7, 60):
        c = self_positioning(base, experts, model, {"a": [0]}, quadratic(aims), learn_scale=False, steps=steps, lr=0.1)
        assert float(c.coefficients.sum()) == pytest.approx(1)
        assert float(c.coefficients.min()) >= 0
    free = self_positioning(
        base, experts, model, {"a": [0]}, quadratic(aims), simplex=False, learn_scale=False, steps=300, lr=0.05
    )
    assert abs(float(free.coefficients.sum()) - 1) > 0.05


def test_starts_at_the_average(bed) -> None:  # type: ignore[no-untyped-def]
    model, base, experts = bed
    for simplex in (True, False):
        state = self_positioning(base, experts, model, {"a": [0]}, quadratic(experts), simplex=simplex, steps=0).state()
        for n in base:
            torch.testing.assert_close(state[n], (experts["a"][n] + experts["b"][n]) / 2)
