"""Concrete subspaces: the relaxed mask, its gradient, and both forms of the merge."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pluribus.errors import BadInput
from pluribus.merging.coefficients import TaskVectors, entropy_objective, forward_with
from pluribus.merging.concrete import _uniform, concrete, final_mask, learn_mask, relaxed, rescaled


@pytest.fixture
def bed():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    base = {n: t.clone() for n, t in model.state_dict().items()}
    experts = {t: {n: v + 0.4 * torch.randn_like(v) for n, v in base.items()} for t in "ab"}
    return model, base, experts, {t: [torch.randn(16, 5) for _ in range(2)] for t in "ab"}


def test_the_hard_mask_has_mean_sigmoid() -> None:
    """E over u of [m > ½] is sigmoid(x), within four standard errors; temperature → 0 gives {0, 1}."""
    x = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0])
    u = torch.rand(20000, 5, generator=torch.Generator().manual_seed(0))
    m = relaxed(x, u, temperature=1e-4)
    assert float(((m > 1e-3) & (m < 1 - 1e-3)).float().mean()) < 2e-3
    p = x.sigmoid()
    assert bool(((m > 0.5).float().mean(0) - p).abs().le(4 * (p * (1 - p) / 20000).sqrt()).all())


def test_gradient_of_the_rescaled_mask_is_that_of_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, generator=generator, dtype=torch.float64)
    u = torch.rand(6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: rescaled(relaxed(v, u)), x.requires_grad_())


def test_rescaled_masks_have_mean_one_and_survive_zero() -> None:
    m = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert float(rescaled(m).mean()) == pytest.approx(1, abs=1e-6)
    assert rescaled(torch.zeros(3)).tolist() == [0, 0, 0]


def test_open_masks_are_task_arithmetic_exactly() -> None:
    """x = +20 everywhere: every final mask divided by its mean is 1 to rounding, so plain task arithmetic."""
    for final in ("expected", "binary"):
        assert torch.equal(final_mask({"w": torch.full((7,), 20.0)}, final)["w"], torch.ones(7))
    torch.testing.assert_close(final_mask({"w": torch.full((7,), 20.0)}, "sample")["w"], torch.ones(7))


def test_no_step_is_task_arithmetic(bed) -> None:  # type: ignore[no-untyped-def]
    """x = 0 gives the mask ½ everywhere, which rescales to 1."""
    model, base, experts, x = bed
    state = concrete(base, experts, model, x, form="task_arithmetic", mask_steps=0).state()
    for n, origin in base.items():
        torch.testing.assert_close(state[n], origin + 0.3 * sum(experts[t][n] - origin for t in "ab"))


def test_first_step_follows_autograd(bed) -> None:  # type: ignore[no-untyped-def]
    """Adam's first step on x is −lr·sign of the gradient autograd takes through mask, merge and entropy."""
    from torch.func import functional_call

    from pluribus.merging.coefficients import entropy

    model, base, experts, x = bed
    vectors = TaskVectors(base, experts)
    found, _ = learn_mask(vectors, model, entropy_objective(forward_with()), x, adapt=False, steps=1, lr=1e-2, seed=3)
    generator = torch.Generator().manual_seed(3)
    logits = {n: torch.zeros_like(t).requires_grad_() for n, t in base.items()}
    masks = {n: rescaled(relaxed(v, _uniform(v.shape, generator))) for n, v in logits.items()}
    merged = {n: base[n] + 0.3 * masks[n] * sum(experts[t][n] - base[n] for t in "ab") for n in base}
    sum(entropy(functional_call(model, merged, (x[t][0],))) for t in "ab").backward()
    for n, v in logits.items():
        assert v.grad is not None
        clear = v.grad.abs() > 1e-6
        torch.testing.assert_close(found[n][clear], -1e-2 * v.grad.sign()[clear], atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["task_arithmetic", "adamerging"])
def test_entropy_falls_and_the_mask_moves(bed, form: str) -> None:  # type: ignore[no-untyped-def]
    model, base, experts, x = bed
    learned = concrete(base, experts, model, x, form=form, mask_steps=60, steps=40, lr=5e-2)
    assert all(float((m - 1).abs().max()) > 0.01 for m in learned.masks.values() if m.numel() > 1)
    assert all(float(m.mean()) == pytest.approx(1, abs=1e-4) for m in learned.masks.values())
    first = sum(sum(row.values()) for row in learned.losses[:4])
    model.eval()
    with torch.no_grad():
        last = sum(float(entropy_objective(forward_with())(model, t, b)) for t in "ab" for b in x[t])
    assert last < first / 2
    for n, value in learned.state().items():
        torch.testing.assert_close(model.state_dict()[n], value)


def test_seeded(bed) -> None:  # type: ignore[no-untyped-def]
    """The same seed gives the same bits, another one another mask."""
    model, base, experts, x = bed
    a, b, c = (
        concrete(base, experts, model, x, form="task_arithmetic", mask_steps=3, final="binary", seed=s).masks["0.weight"]
        for s in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_bad_settings(bed) -> None:  # type: ignore[no-untyped-def]
    model, base, experts, x = bed
    with pytest.raises(BadInput, match="unknown form 'adamergin'; did you mean 'adamerging'"):
        concrete(base, experts, model, x, form="adamergin")
    with pytest.raises(BadInput, match="temperature"):
        concrete(base, experts, model, x, temperature=0.0)
    with pytest.raises(BadInput, match="final mask"):
        concrete(base, experts, model, x, mask_steps=0, steps=0, final="mean")
