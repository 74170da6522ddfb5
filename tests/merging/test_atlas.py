"""aTLAS: one coefficient a vector and block, supervised, negated, few-shot, adapted, and in K parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.merging.atlas import adaptation, adaptation_batches, atlas, negation, trusted
from pluribus.merging.coefficients import cross_entropy_objective, forward_with

State = dict[str, Tensor]


@pytest.fixture
def bed():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 10), nn.Tanh(), nn.Linear(10, 3))
    base = {n: t.clone() for n, t in model.state_dict().items()}
    experts = {t: {n: v + 0.4 * torch.randn_like(v) for n, v in base.items()} for t in "abc"}
    data = {t: [(torch.randn(12, 5), torch.randint(3, (12,))) for _ in range(2)] for t in "abc"}
    return model, base, experts, data


def test_starts_at_the_base_bit_for_bit(bed) -> None:  # type: ignore[no-untyped-def]
    model, base, experts, data = bed
    learned = atlas(base, experts, model, data, steps=0)
    assert all(torch.equal(learned.state()[n], base[n]) for n in base)
    assert learned.coefficients.shape == (3, 4, 1)
    assert atlas(base, experts, model, data, steps=0, isotropic=True).coefficients.shape == (3, 1, 1)
    assert atlas(base, experts, model, data, steps=0, partitions=5).coefficients.shape == (3, 4, 5)


@pytest.mark.parametrize("settings", [{}, {"isotropic": True}, {"partitions": 4}])
def test_addition_lowers_the_loss(bed, settings) -> None:  # type: ignore[no-untyped-def]
    """Also biases move in the partitioned form, which the public code leaves still."""
    model, base, experts, data = bed
    learned = atlas(base, experts, model, data, steps=60, **settings)
    assert sum(learned.losses[-1].values()) < sum(learned.losses[0].values())
    assert all(not torch.equal(learned.state()[n], base[n]) for n in base)


def test_one_partition_is_the_block_form(bed) -> None:  # type: ignore[no-untyped-def]
    model, base, experts, data = bed
    plain = atlas(base, experts, model, data, steps=5)
    parts = atlas(base, experts, model, data, steps=5, partitions=2)
    assert not torch.equal(plain.coefficients, parts.coefficients[..., :1])
    again = atlas(base, experts, model, data, steps=5, partitions=1)
    assert torch.equal(plain.coefficients, again.coefficients)


def test_few_shot_linear_oracle() -> None:
    """A linear model and squared loss on foreign vectors: c solves the normal equations."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = nn.Linear(6, 2).double()
    base = {n: t.clone() for n, t in model.state_dict().items()}
    pool = {str(i): {n: t + draw(*t.shape) for n, t in base.items()} for i in range(2)}
    x, y = draw(40, 6), draw(40, 2)
    learned = atlas(
        base,
        pool,
        model,
        {"target": [(x, y)]},
        lambda m, t, b: ((m(b[0]) - b[1]) ** 2).mean(),
        steps=800,
        lr=3e-2,
        weight_decay=0.0,
        max_norm=None,
    )
    columns = []
    for name, act in (("weight", lambda w: x @ w.T), ("bias", lambda b: b.expand(40, 2))):
        columns += [act(p[name] - base[name]).flatten() for p in pool.values()]
    residual = (y - x @ base["weight"].T - base["bias"]).flatten()
    wanted = torch.linalg.lstsq(torch.stack(columns, 1), residual[:, None]).solution[:, 0].view(2, 2).T
    torch.testing.assert_close(learned.coefficients[..., 0], wanted, atol=1e-4, rtol=1e-3)


def test_weight_decay_pulls_to_the_base(bed) -> None:  # type: ignore[no-untyped-def]
    """With a loss that says nothing, AdamW's decay shrinks c by (1 − lr·wd) a step, exactly."""
    model, base, experts, data = bed
    learned = atlas(base, experts, model, data, lambda m, t, b: 0 * m(b[0]).sum(), init=0.5, steps=10, lr=0.1, weight_decay=0.2)
    torch.testing.assert_close(learned.coefficients, torch.full_like(learned.coefficients, 0.5 * (1 - 0.02) ** 10))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_penalty_is_the_mean_norm_over_blocks(bed, p: float) -> None:  # type: ignore[no-untyped-def]
    """γ · mean_b ‖c_b‖_p alone: its descent direction is that of autograd."""
    model, base, experts, data = bed
    c = torch.full((3, 4), 0.5, dtype=torch.float64, requires_grad=True)
    (2.0 * sum(c[:, b].norm(p=p) for b in range(4)) / 4).backward()
    learned = atlas(
        base, experts, model, data, lambda m, t, b: 0 * m(b[0]).sum(), init=0.5, gamma=2.0, p=p, steps=1, lr=0.1, weight_decay=0.0
    )
    assert c.grad is not None
    torch.testing.assert_close(learned.coefficients[..., 0], 0.5 - 0.1 * c.grad.sign(), atol=1e-6, rtol=1e-6)


def test_negation_unlearns_the_target_and_keeps_the_control(bed) -> None:  # type: ignore[no-untyped-def]
    """−CE_target + CE_control: the target's loss rises, the control's does not; other tasks are refused."""
    model, base, experts, data = bed
    forward = forward_with()
    goal = negation(forward, target="a", control="b")
    loss = cross_entropy_objective(forward)

    def losses() -> tuple[float, float]:
        return tuple(sum(loss(model, t, b).item() for b in data[t]) for t in "ab")  # type: ignore[return-value]

    model.load_state_dict(base)
    target, control = losses()
    atlas(base, {"a": experts["a"], "b": experts["b"]}, model, {t: data[t] for t in "ab"}, goal, steps=80)
    after_target, after_control = losses()
    assert after_target > target + 0.1
    assert after_control < control + 0.02
    with pytest.raises(BadInput, match="unknown task 'c'"):
        atlas(base, experts, model, data, goal, steps=1)


def test_trusted_samples_are_the_most_confident_of_each_class() -> None:
    """k = min(n / (10 C), 100) of every predicted class, never the whole set."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(120, 4, generator=generator)
    index, label = trusted(logits)
    confidence, predicted = logits.softmax(-1).max(-1)
    for c in range(4):
        mine = (predicted == c).nonzero()[:, 0]
        wanted = sorted(mine.tolist(), key=lambda i: -float(confidence[i]))[:3]
        assert sorted(index[label == c].tolist()) == sorted(wanted)
    assert len(trusted(logits, most=1)[0]) == 4


def test_adaptation_uses_trusted_labels_and_the_threshold(bed) -> None:  # type: ignore[no-untyped-def]
    """Trusted samples count whatever their confidence; the others only beyond the threshold; no label is needed."""
    model, base, experts, _data = bed
    forward = forward_with()
    model.load_state_dict(base)
    x = torch.randn(90, 5)
    batches = adaptation_batches(model, forward, "t", x, size=30)
    assert sum(len(b[0]) for b in batches) == 90
    first = torch.cat([b[1] for b in batches])
    assert 0 < int((first >= 0).sum()) <= 9
    none = adaptation(forward, strong=lambda i: i, threshold=1.0)
    some = adaptation(forward, strong=lambda i: i, threshold=0.0)
    batch = (x, torch.full((90,), -1))
    assert none(model, "t", batch).item() == 0
    logits = model(x)
    wanted = nn.functional.cross_entropy(logits, logits.argmax(-1))
    torch.testing.assert_close(some(model, "t", batch), wanted)
    known = torch.full((90,), -1)
    known[:3] = torch.tensor([0, 1, 2])
    wanted = nn.functional.cross_entropy(logits[:3], known[:3], reduction="sum") / 90
    torch.testing.assert_close(none(model, "t", (x, known)), wanted)
    goal = adaptation(forward, strong=lambda i: i + 0.1, threshold=1.0)  # the trusted alone
    learned = atlas(base, experts, model, {"t": batches}, goal, steps=21)
    assert sum(row["t"] for row in learned.losses[-3:]) < sum(row["t"] for row in learned.losses[:3])


def test_bad_settings(bed) -> None:  # type: ignore[no-untyped-def]
    model, base, experts, data = bed
    with pytest.raises(BadInput, match="isotropic"):
        atlas(base, experts, model, data, isotropic=True, partitions=2)
    with pytest.raises(BadInput, match="no labels"):
        atlas(base, experts, model, {"a": [torch.randn(3, 5)]}, steps=1)
