"""AdaMerging: entropy without labels, TIES-resolved vectors for ++, other vectors handed over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.merging import coefficients as C
from pluribus.merging.adamerging import TiesResolved, adamerging

State = dict[str, Tensor]


@pytest.fixture
def bed() -> tuple[nn.Sequential, State, dict[str, State], dict[str, list[Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 10), nn.Tanh(), nn.Linear(10, 4))
    base = {n: t.clone() for n, t in model.state_dict().items()}
    experts = {t: {n: v + 0.4 * torch.randn_like(v) for n, v in base.items()} for t in "abc"}
    return model, base, experts, {t: [torch.randn(12, 5), torch.randn(12, 5)] for t in "abc"}


@pytest.mark.parametrize("granularity", ["task", "tensor", "block"])
@pytest.mark.parametrize("plus_plus", [False, True])
def test_entropy_falls_and_coefficients_stay_in_the_interval(bed, granularity: str, plus_plus: bool) -> None:  # type: ignore[no-untyped-def]
    """Learning lowers the summed entropy; λ acts within [0, 1]; the model holds what `state` says."""
    model, base, experts, x = bed
    learned = adamerging(base, experts, model, x, granularity=granularity, plus_plus=plus_plus, steps=40, lr=1e-2)
    assert sum(learned.losses[-1].values()) < sum(learned.losses[0].values())
    assert float(learned.coefficients.min()) >= 0
    assert float(learned.coefficients.max()) <= 1
    for name, value in learned.state().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert len(learned.table()) == learned.coefficients.numel()


def test_starts_as_task_arithmetic(bed) -> None:  # type: ignore[no-untyped-def]
    """Without a step: θ0 + 0.3 Σ τ_t."""
    model, base, experts, x = bed
    state = adamerging(base, experts, model, x, steps=0).state()
    for n, origin in base.items():
        torch.testing.assert_close(state[n], origin + 0.3 * sum(experts[t][n] - origin for t in "abc"))


def test_labels_are_not_read(bed) -> None:  # type: ignore[no-untyped-def]
    """Pairs with any labels give the result of bare inputs, bit for bit."""
    model, base, experts, x = bed
    plain = adamerging(base, experts, model, x, steps=5).coefficients
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        pairs = {t: [(b, torch.randint(4, (len(b),), generator=generator)) for b in bs] for t, bs in x.items()}
        assert torch.equal(adamerging(base, experts, model, pairs, steps=5).coefficients, plain)


def test_first_step_is_adams_sign_of_the_gradient(bed) -> None:  # type: ignore[no-untyped-def]
    """Adam's first step moves every λ by lr against its gradient, which autograd gives independently."""
    from torch.func import functional_call

    model, base, experts, x = bed
    lam = torch.full((3, 4), 0.3, requires_grad=True)
    names = list(base)
    merged = {n: base[n] + sum(lam[t, i] * (experts[k][n] - base[n]) for t, k in enumerate("abc")) for i, n in enumerate(names)}
    sum(C.entropy(functional_call(model, merged, (x[t][0],))) for t in "abc").backward()
    found = adamerging(base, experts, model, x, steps=1, lr=1e-3).coefficients[:, :, 0]
    assert lam.grad is not None
    torch.testing.assert_close(found.float(), 0.3 - 1e-3 * lam.grad.sign(), atol=1e-6, rtol=0)


def test_ties_resolved_by_hand() -> None:
    """density ½ over both tensors: τ_a keeps (3, −2), τ_b keeps (−4, 5); the elected signs drop what disagrees."""
    base = {"u": torch.zeros(2), "w": torch.zeros(2)}
    experts = {
        "a": {"u": torch.tensor([3.0, 0.5]), "w": torch.tensor([-2.0, 1.0])},
        "b": {"u": torch.tensor([-4.0, 0.1]), "w": torch.tensor([0.2, 5.0])},
    }
    v = TiesResolved(base, experts, density=0.5)
    assert v.chunk("u", 0, 2).tolist() == [[0, 0], [-4, 0]]
    assert v.chunk("w", 0, 2).tolist() == [[-2, 0], [0, 5]]


@pytest.mark.parametrize("density", [0.0, 0.1, 0.37, 1.0])
def test_trim_keeps_exactly_its_count(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """round(ρ n) entries over all tensors stay, also with equal magnitudes and in small chunks, lower index first."""
    monkeypatch.setattr(C, "CHUNK", 16)
    generator = torch.Generator().manual_seed(0)
    base = {"u": torch.zeros(4, 5), "w": torch.zeros(17)}
    expert = {n: torch.randint(-2, 3, t.shape, generator=generator).float() for n, t in base.items()}
    v = TiesResolved(base, {"a": expert}, density=density, resident_bytes=0)
    kept = torch.cat([v.chunk(n, s, e)[0] for n in base for s, e in v.spans(n)])
    full = torch.cat([expert["u"].flatten(), expert["w"]])
    order = sorted(range(37), key=lambda i: (-abs(float(full[i])), i))[: round(density * 37)]
    wanted = torch.zeros(37)
    wanted[order] = full[order]
    assert torch.equal(kept, wanted)


def test_plus_plus_with_one_expert_and_full_density_is_adamerging(bed) -> None:  # type: ignore[no-untyped-def]
    model, base, experts, x = bed
    one, only = {"a": experts["a"]}, {"a": x["a"]}
    plain = adamerging(base, one, model, only, steps=10)
    plus = adamerging(base, one, model, only, steps=10, plus_plus=True, density=1.0)
    assert torch.equal(plain.coefficients, plus.coefficients)
    assert all(torch.equal(plain.state()[n], plus.state()[n]) for n in base)


def test_heads_and_other_forwards(bed) -> None:  # type: ignore[no-untyped-def]
    """Frozen heads by task, and a forward of one's own, give the same coefficients; heads are not touched."""
    model, base, experts, x = bed
    heads = {t: nn.Linear(4, i + 2) for i, t in enumerate("abc")}
    before = {t: h.weight.detach().clone() for t, h in heads.items()}
    first = adamerging(base, experts, model, x, heads=heads, steps=4)
    second = adamerging(base, experts, model, x, forward=lambda m, t, i: heads[t](m(i)), steps=4)
    assert torch.equal(first.coefficients, second.coefficients)
    assert all(torch.equal(h.weight, before[t]) and h.weight.grad is None for t, h in heads.items())
    with pytest.raises(BadInput, match="unknown task 'c'"):
        adamerging(base, experts, model, x, heads={t: heads[t] for t in "ab"}, steps=1)


def test_tensors_can_be_left_out(bed) -> None:  # type: ignore[no-untyped-def]
    """`keep` leaves tensors at the base and without a coefficient."""
    model, base, experts, x = bed
    learned = adamerging(base, experts, model, x, keep=["2.*"], steps=3)
    assert learned.blocks == ("0.weight", "0.bias")
    assert torch.equal(learned.state()["2.weight"], base["2.weight"])


def test_no_clamp_leaves_the_interval(bed) -> None:  # type: ignore[no-untyped-def]
    model, base, experts, x = bed
    free = adamerging(base, experts, model, x, clamp=None, steps=60, lr=5e-2).coefficients
    assert float(free.max()) > 1 or float(free.min()) < 0


def test_bad_settings(bed) -> None:  # type: ignore[no-untyped-def]
    model, base, experts, x = bed
    with pytest.raises(BadInput, match="density"):
        adamerging(base, experts, model, x, plus_plus=True, density=1.5)
    with pytest.raises(BadInput, match="both plus_plus and vectors"):
        adamerging(base, experts, model, x, plus_plus=True, vectors=C.TaskVectors(base, experts))
    with pytest.raises(BadInput, match="did you mean 'entropy'"):
        adamerging(base, experts, model, x, objective="entrop")


def test_doge_hands_over_its_merge() -> None:
    """Before a step of learning, DOGE → AdaMerging is DOGE: Σ λ_t (τ_t + Δ) ⊙ mask_t on matrices, the base elsewhere."""
    from pluribus.merging.adamerging import doge_adamerging
    from pluribus.merging.run import merge

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))
    base = {n: t.clone() for n, t in model.state_dict().items()}
    experts = {t: {n: v + 0.4 * torch.randn_like(v) for n, v in base.items()} for t in "ab"}
    x = {t: [torch.randn(8, 12)] for t in "ab"}
    wanted = merge(base, experts, "doge", steps=30)
    state = doge_adamerging(base, experts, model, x, correction_steps=30, steps=0).state()
    for n in base:
        torch.testing.assert_close(state[n], wanted[n], atol=1e-6, rtol=1e-5)
    learned = doge_adamerging(base, experts, model, x, correction_steps=30, steps=20, lr=1e-2)
    assert sum(learned.losses[-1].values()) < sum(learned.losses[0].values())
    assert torch.equal(learned.state()["0.bias"], base["0.bias"])


def test_the_common_door_leads_here(bed) -> None:  # type: ignore[no-untyped-def]
    """`merge(method=…)` passes the settings on and returns what the learned merger returns."""
    from pluribus.merging import MergeContainer, merge

    model, base, experts, x = bed
    direct = adamerging(base, experts, model, x, steps=2)
    found = merge(base, experts, "adamerging", model=model, batches=x, steps=2)
    assert torch.equal(found.coefficients, direct.coefficients)
    assert isinstance(merge(base, experts, "twin", rank=2), MergeContainer)
