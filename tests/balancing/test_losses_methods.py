"""Balancers that see losses only: closed forms and numbers of the papers' equations."""

import math

import pytest
import torch

from pluribus.balancing import (
    FAMO,
    IMTLL,
    STCH,
    DynamicWeightAverage,
    EqualWeighting,
    GeometricLoss,
    LogLoss,
    RandomLossWeighting,
    UncertaintyWeighting,
)

LOSSES = torch.tensor([0.5, 2.0], dtype=torch.float64)


def near(w, values, tolerance=1e-6):
    torch.testing.assert_close(w, torch.tensor(values, dtype=w.dtype), atol=tolerance, rtol=0)


def test_equal_weighting():
    near(EqualWeighting().weights(LOSSES), [1, 1])
    near(EqualWeighting("mean").weights(LOSSES), [0.5, 0.5])
    near(EqualWeighting("mean", {"a": 3.0, "b": 1.0}).weights(LOSSES, tasks=["b", "a"]), [0.25, 0.75])


def test_geometric_loss():
    """L = 1 here, weights L/(Tℓ): not the other way round, and no under- or overflow over many tasks."""
    near(GeometricLoss().weights(LOSSES), [1.0, 0.25])
    losses = LOSSES.clone().requires_grad_()
    losses.prod().sqrt().backward()
    near(GeometricLoss().weights(LOSSES), losses.grad.tolist())
    many = torch.full((400,), 1e-3)
    torch.testing.assert_close(GeometricLoss().weights(many), torch.full((400,), 1 / 400))


def test_log_loss():
    near(LogLoss().weights(LOSSES), [2.0, 0.5])
    assert torch.isfinite(LogLoss().weights(torch.zeros(2))).all()


@pytest.mark.parametrize("start", [0.0, -0.5])
def test_uncertainty_weighting_numbers_and_optimum(start):
    """Weights ½e^{−s}; at fixed losses s goes to log ℓ, the weights to ½/ℓ."""
    balancer = UncertaintyWeighting(start=start, lr=0.05)
    near(balancer.weights(LOSSES), [0.5 * math.exp(-start)] * 2)
    for _ in range(2000):
        w = balancer.weights(LOSSES)
    near(w, [1.0, 0.25], 1e-4)


def test_uncertainty_weighting_gradient():
    """∂L/∂s at s = −.5 is (.0878, −1.1487): read off the first Adam moment, (1 − β₁) times the gradient."""
    balancer = UncertaintyWeighting(start=-0.5)
    balancer.weights(LOSSES)
    near(balancer.s.first.values / 0.1, [0.0878, -1.1487], 1e-4)


def test_uncertainty_weighting_classification_form():
    balancer = UncertaintyWeighting(classification=["b"], lr=0.05)
    near(balancer.weights(LOSSES, tasks=["a", "b"]), [0.5, 1.0])
    for _ in range(2000):
        w = balancer.weights(LOSSES, tasks=["a", "b"])
    near(w, [1.0, 0.25], 1e-4)  # ½/ℓ for both: e^{−s}ℓ + ½s has its optimum at e^{−s} = ½/ℓ


def test_dynamic_weight_average():
    """Two epochs of weight 1, then T softmax(r/τ)."""
    balancer = DynamicWeightAverage()
    for losses in ([0.5, 2.0], [1.5, 3.0]):  # epoch of mean (1, 2.5)
        near(balancer.weights(torch.tensor(losses)), [1, 1])
    balancer.epoch_end()
    near(balancer.weights(LOSSES), [1, 1])
    balancer.epoch_end()
    near(balancer.weights(LOSSES), [0.925140, 1.074860])


def test_dynamic_weight_average_leaves_absent_tasks():
    balancer = DynamicWeightAverage()
    for value in (1.0, 0.5):
        balancer.weights(torch.tensor([value, 1.0]), tasks=["a", "b"])
        balancer.epoch_end()
    before = balancer.state_dict()["newest"]
    balancer.weights(torch.tensor([1.0]), tasks=["b"])
    balancer.epoch_end()
    balancer.epoch_end()  # an epoch without any step changes nothing
    after = balancer.state_dict()["newest"]
    assert before["values"][before["names"].index("a")] == after["values"][after["names"].index("a")]


def test_imtl_l_reaches_scale_invariance():
    """At the optimum e^s ℓ = 1, whatever the scale of a loss."""
    for scale in (1.0, 100.0):
        balancer, losses = IMTLL(lr=0.05), LOSSES * torch.tensor([scale, 1.0])
        near(balancer.weights(losses), [1, 1])
        for _ in range(3000):
            w = balancer.weights(losses)
        near(w * losses, [1, 1], 1e-3)


def test_stch_numbers_and_limits():
    """Value 1.100707 has gradient (.091213, .408787) at μ = ½; μ → 0 hears the worst task only, μ → ∞ weighs by preference."""
    near(STCH(mu=0.5).weights(LOSSES), [0.091213, 0.408787])
    near(STCH(mu=1e-4).weights(LOSSES), [0.0, 0.5])
    near(STCH(mu=1e6, preference=[0.3, 0.7]).weights(LOSSES), [0.15, 0.35])
    losses = LOSSES.clone().requires_grad_()
    (0.5 * torch.logsumexp(0.5 * losses / 0.5, 0)).backward()
    near(STCH(mu=0.5).weights(LOSSES), losses.grad.tolist())
    near(STCH(mu=0.5, ideal={"1": 1.5}).weights(LOSSES), [0.25, 0.25])


def test_stch_after_a_warm_up():
    """Σ log ℓ first; then T/ℓ_t softmax(log(ℓ/nadir)/μ), the nadir being the warm-up's mean loss."""
    balancer = STCH(mu=0.5, warmup=1)
    for losses in ([0.4, 3.0], [0.6, 5.0]):
        near(balancer.weights(torch.tensor(losses, dtype=torch.float64)), [1 / losses[0], 1 / losses[1]])
    balancer.epoch_end()
    losses = LOSSES.clone().requires_grad_()
    (2 * 0.5 * torch.logsumexp((losses / torch.tensor([0.5, 4.0])).log() / 0.5, 0)).backward()
    near(balancer.weights(LOSSES), losses.grad.tolist())


def test_famo():
    """Weights (.8, .2); hearing (.4, 1.9) after the step, ξ = (−.025, .025) and softmax(ξ) = (.487503, .512497)."""
    balancer = FAMO()
    w = balancer.weights(LOSSES)
    near(w, [0.8, 0.2])
    j = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)
    near(j.T @ w, [-2, 1, 1], 1e-6)
    balancer.after_step({"0": torch.tensor(0.4), "1": torch.tensor(1.9)})
    near(balancer.xi.value.values, [-0.025, 0.025])
    near(balancer.xi.value.values.softmax(0), [0.487503, 0.512497])
    expected = torch.tensor([0.487503, 0.512497], dtype=torch.float64) / LOSSES
    near(balancer.weights(LOSSES), (expected / expected.sum()).tolist(), 1e-5)


def test_famo_hears_once_and_only_of_tasks_in_the_step():
    balancer = FAMO()
    balancer.weights(LOSSES, tasks=["a", "b"])
    balancer.after_step({"a": torch.tensor(0.4), "b": torch.tensor(1.9), "c": torch.tensor(7.0)})
    state = balancer.state_dict()
    balancer.after_step({"a": torch.tensor(0.1), "b": torch.tensor(1.9)})  # no step in between
    assert torch.equal(state["xi"]["value"]["values"], balancer.state_dict()["xi"]["value"]["values"])
    assert "c" not in state["xi"]["value"]["names"]


@pytest.mark.parametrize("law", ["normal", "uniform", "dirichlet", "bernoulli"])
def test_random_loss_weighting(law):
    """On the simplex, 1/T on average, and its own seed."""
    draws = torch.stack([b.weights(torch.ones(3)) for b in [RandomLossWeighting(law, seed=1)] for _ in range(4000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(4000))
    torch.testing.assert_close(draws.mean(0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    assert draws.std() > 0.1
    again, other = RandomLossWeighting(law, seed=1), RandomLossWeighting(law, seed=2)
    first, second = ([b.weights(torch.ones(3)) for _ in range(5)] for b in (again, other))
    assert torch.equal(torch.stack(first), draws[:5])
    assert not torch.equal(torch.stack(first), torch.stack(second))
