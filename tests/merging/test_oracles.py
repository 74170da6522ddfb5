"""Each static merger against an independent source: by hand, by its optimality condition, or by a public formula in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.merging import doge as doge_module
from pluribus.merging import merge
from pluribus.merging.fisher import diagonal_fisher
from pluribus.merging.karcher import coefficients
from pluribus.merging.regmean import input_grams, progressive_grams
from pluribus.merging.wudi import objective


def one(method: str, *vectors: Tensor, base: Tensor | None = None, **settings: Any) -> Tensor:
    """Merge a single tensor `x`; experts are base + vector."""
    origin = torch.zeros_like(vectors[0]) if base is None else base
    experts = {f"t{i}": {"x": origin + v} for i, v in enumerate(vectors)}
    return merge({"x": origin}, experts, method, **settings)["x"]


def draw(*shape: int, n: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(n)]


def test_average_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    assert torch.equal(merge(None, [{"x": a}, {"x": b}], "average")["x"], torch.tensor([2.0, 0.0]))
    assert torch.allclose(merge(None, [{"x": a}, {"x": b}], "average", weights=[3, 1])["x"], torch.tensor([1.5, 1.0]))


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5))
def test_average_stays_in_the_hull(seed: int, n: int) -> None:
    x = draw(20, n=n, seed=seed, dtype=torch.float32)
    stack = torch.stack(x)
    found = merge(None, [{"x": v} for v in x], "average", weights=[1.0 + i for i in range(n)])["x"]
    assert (found >= stack.amin(0) - 1e-6).all()
    assert (found <= stack.amax(0) + 1e-6).all()


def test_task_arithmetic_by_hand() -> None:
    """λ Σ w τ; negation undoes; weights (1, 1, −1) are an analogy; 1/T is the average."""
    a, b, c = draw(5, 4)
    base = draw(5, 4, n=1, seed=9)[0]
    found = one("task_arithmetic", a, b, c, base=base, scale=0.5, weights=[1, 1, -1])
    assert torch.allclose(found, base + 0.5 * (a + b - c), atol=1e-12)
    third = one("task_arithmetic", a, b, c, base=base, scale=1 / 3)
    assert torch.allclose(third, base + (a + b + c) / 3, atol=1e-12)


def test_ties_by_hand() -> None:
    """τ1 = (3, −1, 0), τ2 = (1, 2, −5), density 1: γ = (+, +, −), τ_M = (2, 2, −5)."""
    a, b = torch.tensor([3.0, -1.0, 0.0]), torch.tensor([1.0, 2.0, -5.0])
    assert torch.equal(one("ties", a, b, density=1.0), torch.tensor([2.0, 2.0, -5.0]))
    assert torch.equal(one("ties", a, b, density=1.0, reduce="sum"), torch.tensor([4.0, 2.0, -5.0]))
    # one entry of each: 3 and −5
    assert torch.equal(one("ties", a, b, density=0.34), torch.tensor([3.0, 0.0, -5.0]))
    # a sum of 0 elects nobody
    assert torch.equal(one("ties", torch.tensor([1.0]), torch.tensor([-1.0]), density=1.0), torch.tensor([0.0]))


def test_ties_agrees_with_mergekit() -> None:
    """mergekit's generalised task arithmetic: magnitude sparsify, sum consensus, masked mean, λ = 1; float64."""
    taus, w, density = draw(40, 25), [1.0, 2.0, 0.5], 0.2
    k = int(density * 1000)
    sparse = []
    for tau in taus:
        mask = torch.zeros(1000, dtype=torch.bool)
        mask[tau.abs().view(-1).argsort(descending=True)[:k]] = True
        sparse.append(tau * mask.view(40, 25))
    deltas = torch.stack([x * y for x, y in zip(sparse, w)])
    majority = (deltas.sum(0) >= 0).double() * 2 - 1
    agree = deltas.sign() == majority
    weights = torch.tensor(w).double().view(-1, 1, 1).expand_as(deltas)
    divisor = (weights * agree).sum(0)
    divisor[divisor == 0] = 1
    wanted = (deltas * agree).sum(0) / divisor
    assert torch.allclose(one("ties", *taus, density=density, weights=w), wanted, atol=1e-6)


def test_dare_is_unbiased() -> None:
    """E τ̂ = τ with variance τ² p/(1 − p); the kept share is 1 − p; other seeds, tasks and tensors draw other bits."""
    tau = torch.linspace(0.5, 2, 64)
    seeds, p = 400, 0.75
    found = torch.stack([one("dare", tau, density=1 - p, seed=s) for s in range(seeds)]).double()
    error = (found.mean(0) - tau).abs() / (tau * math.sqrt(p / (1 - p) / seeds))
    assert float(error.max()) < 4.5
    assert abs(float((found != 0).double().mean()) - (1 - p)) < 0.01
    assert torch.allclose(found[found != 0], (tau.expand_as(found) / (1 - p))[found != 0].double(), rtol=1e-6)
    masks = merge(
        {"x": torch.zeros(500), "y": torch.zeros(500)},
        {t: {"x": torch.ones(500), "y": torch.ones(500)} for t in "ab"},
        "dare",
        density=0.5,
        rescale="none",
        weights={"a": 1, "b": 10},
    )
    a, b = masks["x"] % 10, masks["x"] // 10
    for one_, other in ((a, b), (a, masks["y"] % 10)):
        assert 0.35 < float((one_ == other).float().mean()) < 0.65


def test_dare_l1_agrees_with_mergekit() -> None:
    """mergekit rescales what is kept to the L1 norm of the whole."""
    tau = draw(10, 100, n=1)[0]
    plain = one("dare", tau, density=0.1, rescale="none", seed=4)
    wanted = plain * tau.abs().sum() / plain.abs().sum()
    assert torch.allclose(one("dare", tau, density=0.1, rescale="l1", seed=4), wanted, atol=1e-9)


def test_dare_without_dropping_is_task_arithmetic() -> None:
    taus = draw(6, 6)
    assert torch.equal(one("dare", *taus, density=1.0, scale=0.3), one("task_arithmetic", *taus, scale=0.3))
    assert torch.equal(one("dare", *taus, density=0.0), torch.zeros(6, 6, dtype=torch.float64))


def test_della_keeps_its_density_by_rank() -> None:
    """ε = 0 is DARE; the mean keep-probability of a row is ρ; larger entries stay more often; a row of one entry works."""
    taus = draw(8, 16)
    assert torch.equal(one("della", *taus, density=0.5, epsilon=0.0, combine="linear"), one("dare", *taus, density=0.5))
    from pluribus.merging.della import MagPrune

    q = MagPrune(0.5, 0.15, "expectation").probability(taus[0])
    assert torch.allclose(q.mean(1), torch.full((8,), 0.5, dtype=torch.float64))
    climb = torch.linspace(0.35, 0.65, 16, dtype=torch.float64).expand(8, 16)
    assert torch.allclose(q.gather(1, taus[0].abs().argsort(1)), climb)
    tau = torch.arange(1.0, 11)
    kept = torch.stack([one("della", tau, density=0.5, epsilon=0.4, combine="linear", seed=s) for s in range(300)])
    share = (kept != 0).double().mean(0)
    assert share[0] < 0.2
    assert share[-1] > 0.8
    assert float((kept.double().mean(0) / tau).sub(1).abs().max()) < 0.75
    assert one("della", torch.ones(5, 1), density=0.5, epsilon=0.3).shape == (5, 1)


def test_breadcrumbs_by_hand() -> None:
    """Ten entries, γ = 0.1, ρ = 0.5: the largest goes, the next five stay."""
    tau = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10])
    wanted = torch.tensor([0.0, 0, 0, 0, 5, -6, 7, -8, 9, 0])
    assert torch.equal(one("breadcrumbs", tau, density=0.5, gamma=0.1, scale=1.0), wanted)
    assert torch.equal(one("breadcrumbs", tau, density=0.5, gamma=0.0, scale=1.0).count_nonzero(), torch.tensor(5))
    # the nearest whole number of outliers goes: 1.6 are two
    assert one("breadcrumbs", tau, density=0.5, gamma=0.16, scale=1.0).nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7]
    # density has the last word where both do not fit
    assert torch.equal(one("breadcrumbs", tau, density=1.0, gamma=0.3, scale=1.0), tau)


def test_slerp_agrees_with_mergekit() -> None:
    """The formula, with its straight line above |cos| = 0.9995."""
    a, b = draw(30, 7, n=2)
    for t in (0.0, 0.3, 1.0):
        omega = torch.acos((a * b).sum() / a.norm() / b.norm())
        wanted = torch.sin((1 - t) * omega) / torch.sin(omega) * a + torch.sin(t * omega) / torch.sin(omega) * b
        assert torch.allclose(merge(None, [{"x": a}, {"x": b}], "slerp", t=t)["x"], wanted, atol=1e-6)
    near = a + 1e-4 * b
    found = merge(None, [{"x": a}, {"x": near}], "slerp", t=0.25)["x"]
    assert torch.allclose(found, 0.75 * a + 0.25 * near, atol=1e-12)
    opposite = merge(None, [{"x": a}, {"x": -a}], "slerp", t=0.5)["x"]
    assert torch.allclose(opposite, torch.zeros_like(a), atol=1e-12)  # undefined on the arc: the straight line


def test_slerp_of_orthogonal_units() -> None:
    """(a + b)/√2, norm kept; on task vectors the base is subtracted first."""
    a, b = torch.eye(4, dtype=torch.float64)[:2]
    found = merge(None, [{"x": a}, {"x": b}], "slerp")["x"]
    assert torch.allclose(found, (a + b) / math.sqrt(2))
    base = draw(4, n=1)[0]
    assert torch.allclose(one("slerp", a, b, base=base, space="task_vectors"), base + (a + b) / math.sqrt(2))


def test_nuslerp_agrees_with_mergekit() -> None:
    """Normalised weights, whole tensors and rows."""
    a, b = draw(9, 5, n=2, seed=3)
    w, t = [1.0, 3.0], 0.75

    def arc(x: Tensor, y: Tensor) -> Tensor:
        cosine = (x / x.norm(dim=-1, keepdim=True) * (y / y.norm(dim=-1, keepdim=True))).sum(-1, keepdim=True)
        theta = torch.acos(cosine.clamp(-1, 1))
        return (torch.sin((1 - t) * theta) * x + torch.sin(t * theta) * y) / torch.sin(theta)

    rows = merge(None, [{"x": a}, {"x": b}], "nuslerp", weights=w, by_rows=True)["x"]
    whole = merge(None, [{"x": a}, {"x": b}], "nuslerp", weights=w)["x"]
    assert torch.allclose(rows, arc(a, b), atol=1e-6)
    assert torch.allclose(whole.view(-1), arc(a.view(-1), b.view(-1)), atol=1e-6)


def test_karcher_of_two_is_slerp() -> None:
    a, b = draw(11, n=2, seed=5)
    b = b * a.norm() / b.norm()
    found = merge(None, [{"x": a}, {"x": b}], "karcher", tolerance=1e-12, iterations=50)["x"]
    assert torch.allclose(found, merge(None, [{"x": a}, {"x": b}], "slerp", t=0.5)["x"], atol=1e-6)


def test_karcher_is_a_fixed_point() -> None:
    """At the mean the weighted logarithms add up to 0; its norm is the weighted mean of the norms."""
    xs, w = draw(30, n=4, seed=6), torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    found = merge(None, [{"x": x} for x in xs], "karcher", tolerance=1e-12, iterations=200, weights=w.tolist())["x"]
    mu, alpha = found / found.norm(), w / w.sum()
    tangent = torch.zeros_like(mu)
    for x, a in zip(xs, alpha):
        u = x / x.norm()
        angle = torch.acos(u @ mu)
        tangent += a * angle / torch.sin(angle) * (u - torch.cos(angle) * mu)
    assert float(tangent.norm()) < 1e-8
    assert abs(float(found.norm()) - float(sum(a * x.norm() for x, a in zip(xs, alpha)))) < 1e-8


def test_multislerp_is_one_step_of_karcher() -> None:
    xs = draw(12, n=3, seed=8)
    stack = torch.stack(xs)
    c = coefficients(stack @ stack.T, torch.ones(3), 1, 0.0)
    wanted = sum(ci * x for ci, x in zip(c, xs))
    assert torch.allclose(merge(None, [{"x": x} for x in xs], "multislerp")["x"], wanted, atol=1e-9)


def test_model_stock_agrees_with_mergekit() -> None:
    """t = N c/(1 + (N − 1) c) with the mean pairwise cosine; c = 1 is the mean, orthogonal is the base, c < 0 is clamped."""
    shared = draw(6, 5, n=1, seed=1)[0]
    taus = [shared + 0.5 * x for x in draw(6, 5, seed=2)]
    cosines = [float((a * b).sum() / a.norm() / b.norm()) for i, a in enumerate(taus) for b in taus[:i]]
    c = sum(cosines) / len(cosines)
    t = 3 * c / (1 + 2 * c)
    assert torch.allclose(one("model_stock", *taus), t * sum(taus) / 3, atol=1e-6)
    assert torch.allclose(one("model_stock", shared, 2 * shared), 1.5 * shared)
    unit = torch.eye(4)
    assert torch.equal(one("model_stock", unit[0], unit[1]), torch.zeros(4))
    assert torch.equal(one("model_stock", unit[0], -unit[0] + 0.1 * unit[1]), torch.zeros(4))
    rows = one("model_stock", *taus, by_rows=True)
    for i in range(6):
        assert torch.allclose(rows[i], one("model_stock", *[x[i].clone() for x in taus]), atol=1e-9)


def test_sce_agrees_with_mergekit() -> None:
    taus = torch.stack(draw(10, 10, seed=4))
    density = 0.3
    variance = taus.var(0, correction=0)
    k = int(torch.count_nonzero(variance) * density)
    mask = torch.zeros(100, dtype=torch.float64)
    mask[variance.view(-1).topk(k).indices] = 1
    kept = taus * mask.view(10, 10)
    weight = (kept**2).mean((1, 2))
    weight = (weight / weight.sum()).view(3, 1, 1)
    agree = kept.sign() == kept.sum(0).sign()
    wanted = (kept * weight * agree).sum(0) / (weight * agree).sum(0).clamp(min=1e-6)
    assert torch.allclose(one("sce", *taus, density=density), wanted, atol=1e-6)


def test_equal_fishers_give_the_average() -> None:
    """And unequal ones the precision-weighted mean."""
    a, b = draw(5, n=2)
    f = {"x": torch.rand(5).double() + 0.1}
    experts = {"a": {"x": a}, "b": {"x": b}}
    assert torch.allclose(merge(None, experts, "fisher", fishers={"a": f, "b": f})["x"], (a + b) / 2)
    g = {"x": torch.rand(5).double() + 0.1}
    wanted = (f["x"] * a + g["x"] * b) / (f["x"] + g["x"])
    assert torch.allclose(merge(None, experts, "fisher", fishers={"a": f, "b": g})["x"], wanted, atol=1e-12)
    with pytest.raises(BadInput, match="unknown task 'b'"):
        merge(None, experts, "fisher", fishers={"a": f})


def test_diagonal_fisher_of_logistic_regression() -> None:
    """F = mean over x of x² p (1 − p), squared example by example; not the square of the mean gradient, which is 0 here."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2, bias=False).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    p = torch.softmax(model(x), -1)
    wanted = (p * (1 - p)).T @ x.square() / 30
    found = diagonal_fisher(model, [x[:17], x[17:]])
    assert torch.allclose(found["weight"], wanted)
    labels = p.argmax(1)
    seen = diagonal_fisher(model, [(x, labels)], observed=True)["weight"]
    residual = torch.nn.functional.one_hot(labels, 2) - p
    assert torch.allclose(seen, residual.square().T.detach() @ x.square() / 30)


def test_regmean_minimises_its_objective() -> None:
    """At α = 1 the gradient of Σ ‖(W − W_t) X_t‖² is 0; other tensors are averaged."""
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(6, 4)).double() for _ in range(3)]
    inputs = [torch.randn(20, 6).double() * (1 + i) for i in range(3)]
    experts = {f"t{i}": m.state_dict() for i, m in enumerate(models)}
    grams = {f"t{i}": input_grams(m, [x]) for i, (m, x) in enumerate(zip(models, inputs))}
    assert torch.allclose(grams["t1"]["0.weight"], inputs[1].T @ inputs[1])
    found = merge(None, experts, "regmean", grams=grams, alpha=1.0)
    gradient = sum((found["0.weight"] - m[0].weight.detach()) @ x.T @ x for m, x in zip(models, inputs))
    assert float(gradient.norm()) < 1e-8
    assert torch.allclose(found["0.bias"], sum(m[0].bias for m in models) / 3)
    plain = merge(None, experts, "regmean", grams={t: {"0.weight": torch.eye(6)} for t in experts}, alpha=0.0)
    assert torch.allclose(plain["0.weight"], sum(m[0].weight for m in models) / 3)


def test_progressive_grams_are_those_of_the_merged_layers_below() -> None:
    """RegMean++: the first layer is RegMean's, the second's inputs have come through the merged first layer and its mean bias."""
    torch.manual_seed(3)
    make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))  # noqa: E731
    base, experts = make(), {"a": make(), "b": make()}
    x = {t: torch.randn(40, 4) for t in experts}
    states = {t: e.state_dict() for t, e in experts.items()}
    model = make()
    grams = progressive_grams(states, model, {t: [v[:15], v[15:]] for t, v in x.items()}, alpha=1.0)
    plain = {t: input_grams(e, [x[t]]) for t, e in experts.items()}
    merged = merge(base.state_dict(), states, "regmean", grams=grams, alpha=1.0)
    usual = merge(base.state_dict(), states, "regmean", grams=plain, alpha=1.0)
    torch.testing.assert_close(merged["0.weight"], usual["0.weight"])
    bias = (states["a"]["0.bias"] + states["b"]["0.bias"]) / 2
    for task in x:
        z = torch.tanh(x[task] @ merged["0.weight"].T + bias).double()
        torch.testing.assert_close(grams[task]["2.weight"], z.T @ z, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged["2.weight"], usual["2.weight"], atol=1e-4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, merged[name])
    with pytest.raises(BadInput, match="'b'"):
        progressive_grams(states, model, {"a": [x["a"]]})


def test_pcb_agrees_with_the_authors_formula() -> None:
    """The authors' formula on the flattened vectors, in float64."""
    taus = torch.stack([x.view(-1) for x in draw(50, 60, seed=11)]) * 0.01

    def clamp(x: Tensor, low: float, high: float) -> Tensor:
        d, ordered = x.size(1), x.sort(1).values
        return torch.clamp(x, ordered[:, int(d * low)][:, None], ordered[:, int(d * (1 - high) - 1)][:, None])

    def normalise(x: Tensor) -> Tensor:
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        return (x - low) / (high - low)

    magnitude = clamp(taus.abs(), 0.0001, 0.0001)
    clamped = taus.sign() * magnitude
    beta = torch.exp(3 * normalise(magnitude) ** 2) * torch.tanh(taus * taus.sum(0))
    ordered = beta.sort(1).values
    scale = normalise(torch.maximum(beta, ordered[:, -300][:, None]))
    wanted = (clamped * scale).sum(0) / scale.sum(0).clamp(min=1e-12)
    found = one("pcb", *[t.view(50, 60) for t in taus], ratio=0.1)
    assert torch.allclose(found.view(-1), wanted, atol=1e-6)


def test_emr_by_hand() -> None:
    a, b = torch.tensor([3.0, -1.0, 0.0]), torch.tensor([1.0, 2.0, -5.0])
    assert torch.equal(one("emr", a, b), torch.tensor([3.0, 2.0, -5.0]))
    # task 0: mask (1, 0, 0), scale 4/3
    assert torch.allclose(one("emr", a, b, task="t0"), torch.tensor([4.0, 0.0, 0.0]))


def test_emr_keeps_each_tasks_l1_norm() -> None:
    """Over all tensors together, not tensor by tensor."""
    g = torch.Generator().manual_seed(0)
    base = {"x": torch.zeros(40, 3), "y": torch.zeros(7)}
    experts = {t: {n: torch.randn(v.shape, generator=g) for n, v in base.items()} for t in "abc"}
    for t in "abc":
        found = merge(base, experts, "emr", task=t)
        assert math.isclose(
            sum(float(v.abs().sum()) for v in found.values()),
            sum(float(v.abs().sum()) for v in experts[t].values()),
            rel_tol=1e-5,
        )


def _orthogonal_updates() -> list[Tensor]:
    q = torch.linalg.qr(draw(12, 12, n=1)[0])[0]
    p = torch.linalg.qr(draw(12, 12, n=1, seed=1)[0])[0]
    s = torch.tensor([3.0, 2.0, 1.0, 0.5]).double()
    return [(q[:, 4 * i : 4 * i + 4] * s) @ p[4 * i : 4 * i + 4] for i in range(3)]


def test_tsv_m_adds_orthogonal_updates() -> None:
    """Updates in orthogonal spaces do not interfere: their sum comes out; otherwise singular values are those kept."""
    taus = _orthogonal_updates()
    assert torch.allclose(one("tsv_m", *taus), sum(taus), atol=1e-9)
    any_ = draw(9, 6, n=2, seed=3)
    us, ss, vs = zip(*(torch.linalg.svd(t, full_matrices=False) for t in any_))
    u, s, v = torch.cat([x[:, :3] for x in us], 1), torch.cat([x[:3] for x in ss]), torch.cat([x[:3] for x in vs])

    def whiten(x: Tensor) -> Tensor:  # the polar factor by another road: X (XᵀX)^(−1/2)
        w, e = torch.linalg.eigh(x.T @ x)
        return x @ e @ torch.diag(w.rsqrt()) @ e.T

    wanted = whiten(u) @ torch.diag(s) @ whiten(v.T).T
    assert torch.allclose(one("tsv_m", *any_), wanted, atol=1e-8)
    assert torch.allclose(one("tsv_m", *draw(7)), sum(draw(7)) / 3)  # vectors are averaged


def test_iso_c_flattens_and_keeps_the_trace_norm() -> None:
    taus = draw(9, 6, seed=2)
    found = torch.linalg.svdvals(one("iso_c", *taus, scale=1.0))
    before = torch.linalg.svdvals(sum(taus))
    assert torch.allclose(found, found.mean().expand(6), atol=1e-9)
    assert math.isclose(float(found.sum()), float(before.sum()), rel_tol=1e-9)


def test_iso_cts_is_isotropic() -> None:
    """All singular values equal their mean; with the whole rank common it is Iso-C."""
    taus = draw(10, 10, n=2, seed=3)
    found = torch.linalg.svdvals(one("iso_cts", *taus, scale=1.0))
    assert torch.allclose(found, found.mean().expand(10), atol=1e-9)
    common = torch.linalg.svd(sum(taus))[1][:8]
    own = []
    u = torch.linalg.svd(sum(taus))[0][:, :8]
    for t in taus:
        own.append(torch.linalg.svdvals(t - u @ u.T @ t)[:1])
    assert math.isclose(float(found[0]), float(torch.cat([common, *own]).mean()), rel_tol=1e-9)
    assert torch.allclose(one("iso_cts", *taus, common=1.0), one("iso_c", *taus), atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 40)])
def test_wudi_closed_form_is_the_minimum(shape: tuple[int, int]) -> None:
    """Its gradient by autograd is 0, and no other start does better."""
    taus = draw(*shape, n=2, seed=4)
    stack = torch.stack(taus)
    m = one("wudi", *taus).requires_grad_()
    value = objective(m, stack)
    (gradient,) = torch.autograd.grad(value, m)
    assert float(gradient.norm()) < 1e-7
    assert float(value) <= float(objective(sum(taus), stack))


@pytest.mark.parametrize("shape", [(6, 8), (3, 40)])
def test_wudi_adam_descends(shape: tuple[int, int]) -> None:
    """Both ways to form the gradient agree with autograd, and the published solver moves from Σ τ towards the minimum."""
    taus = draw(*shape, n=2, seed=4)
    stack = torch.stack(taus)
    m = torch.nn.Parameter(stack.sum(0))
    adam = torch.optim.Adam([m], lr=1e-3)
    for _ in range(20):
        adam.zero_grad()
        objective(m, stack).backward()
        adam.step()
    found = one("wudi", *taus, solver="adam", steps=20, lr=1e-3)
    assert torch.allclose(found, m.detach(), atol=1e-9)
    assert float(objective(found, stack)) < float(objective(stack.sum(0), stack))


def test_knots_with_the_mean_is_the_mean() -> None:
    taus = [a @ b for a, b in zip(draw(10, 2), draw(2, 8, seed=1))]
    assert torch.allclose(one("knots", *taus, combine="mean"), sum(taus) / 3, atol=1e-9)
    # TIES in the shared basis: the same by an explicit decomposition
    u, s, v = torch.linalg.svd(torch.cat(taus, 1), full_matrices=False)
    keep = s > 1e-4 * s[0]
    u, s, v = u[:, keep], s[keep], v[keep]
    parts = torch.stack([v[:, 8 * t : 8 * t + 8] for t in range(3)])
    merged = merge({"x": torch.zeros_like(parts[0])}, [{"x": p} for p in parts], "ties", density=1.0)["x"]
    assert torch.allclose(one("knots", *taus, density=1.0), (u * s) @ merged, atol=1e-9)


def test_consensus_ends() -> None:
    """k = 0 is task arithmetic, k > T the base; in between, the masks counted by hand."""
    taus = draw(6, 6, seed=5)
    whole = sum(taus)
    assert torch.allclose(one("consensus", *taus, k=0, scale=0.3), 0.3 * whole)
    assert torch.equal(one("consensus", *taus, k=4), torch.zeros(6, 6, dtype=torch.float64))
    votes = sum((t.abs() >= 0.4 * (whole - t).abs()).int() for t in taus)
    assert torch.allclose(one("consensus", *taus, k=2, scale=1.0), whole * (votes >= 2))


def test_tall_masks_rebuild_disjoint_experts() -> None:
    """Disjoint supports come back exactly for any λ; identical experts pass iff λ ≤ 1/(T − 1)."""
    a, b = torch.tensor([1.0, 0, 0, 2]), torch.tensor([0.0, 3, -1, 0])
    for threshold in (0.2, 1.0, 7.0):
        assert torch.equal(one("tall_masks", a, b, task="t0", threshold=threshold), a)
        assert torch.equal(one("tall_masks", a, b, task="t1", threshold=threshold), b)
    same = [a.clone() for _ in range(3)]
    assert torch.equal(one("tall_masks", *same, task="t0", threshold=0.5), 3 * a)
    assert torch.equal(one("tall_masks", *same, task="t0", threshold=0.51), torch.zeros(4))


def test_doge_gradient_and_projection() -> None:
    """The closed gradient is autograd's; P is a projection of the asked rank; with SGD the correction stays out of it."""
    tau = torch.stack(draw(12, 10, n=2, seed=6))
    lam = doge_module.coefficients(tau, 0.07)
    assert torch.allclose(lam * tau.flatten(1).norm(dim=1), torch.full((2,), 0.07).double())
    delta = draw(12, 10, n=1, seed=7)[0].requires_grad_()
    (wanted,) = torch.autograd.grad(doge_module.loss(delta, tau, lam), delta)
    assert torch.allclose(doge_module.gradient(delta.detach(), tau, lam), wanted, rtol=1e-6)
    u = doge_module.shared_subspace(tau, 3)
    assert u.shape == (12, 3)
    assert torch.allclose(u.T @ u, torch.eye(3).double())
    found = doge_module.correction(tau, lam, subspace=3, steps=30, lr=1e-3, optimiser="sgd")
    assert float((u.T @ found).abs().max()) < 1e-10
    losses = [
        float(doge_module.loss(doge_module.correction(tau, lam, steps=k, lr=1e-3, optimiser="sgd"), tau, lam))
        for k in (0, 10, 40)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_doge_of_one_task_solves_its_rows() -> None:
    """T = 1 without projection: <a, Δ> = ‖a‖² (1 − λ)/λ in every row makes the loss 0."""
    a = draw(4, 5, n=1)[0]
    lam = doge_module.coefficients(a[None], 0.5)
    delta = (1 - lam) / lam * a
    assert float(doge_module.loss(delta, a[None], lam)) < 1e-18
    assert float(doge_module.gradient(delta, a[None], lam).abs().max()) < 1e-9


def test_doge_puts_its_parts_together() -> None:
    """θ0 + Σ λ_t (τ_t + Δ) ⊙ mask_t with the mask over all matrices; vectors and embeddings stay the base's."""
    g = torch.Generator().manual_seed(0)
    shapes = {"a": (8, 6), "b": (5, 7), "bias": (8,), "embed.w": (9, 4)}
    base = {n: torch.randn(s, generator=g).double() for n, s in shapes.items()}
    experts = {t: {n: v + torch.randn(v.shape, generator=g).double() for n, v in base.items()} for t in "xy"}
    found = merge(base, experts, "doge", steps=25, lr=1e-2)
    assert torch.equal(found["bias"], base["bias"])
    assert torch.equal(found["embed.w"], base["embed.w"])
    borders = {}
    for t, e in experts.items():
        flat = torch.cat([(e[n] - base[n]).abs().view(-1) for n in ("a", "b")])
        borders[t] = flat.sort(descending=True).values[round(0.3 * len(flat)) - 1]
    for n in ("a", "b"):
        tau = torch.stack([e[n] - base[n] for e in experts.values()])
        lam = doge_module.coefficients(tau, 0.07)
        delta = doge_module.correction(tau, lam, steps=25, lr=1e-2)
        kept = torch.stack([t.abs() >= borders[k] for k, t in zip(experts, tau)])
        assert torch.allclose(found[n], base[n] + (lam[:, None, None] * (tau + delta) * kept).sum(0), atol=1e-9)


def test_codiemb_weights() -> None:
    """p = 0 is the mean, p = 1 weighs by the norm, a checkpoint that did not move weighs nothing."""
    a, b = draw(5, 4, n=2)
    assert torch.allclose(one("codiemb", a, b, power=0.0), (a + b) / 2)
    na, nb = a.norm(), b.norm()
    assert torch.allclose(one("codiemb", a, b), (na * a + nb * b) / (na + nb))
    assert torch.allclose(one("codiemb", torch.zeros_like(b), b), b)


def test_arcee_fusion_by_formula() -> None:
    a, b = draw(20, 15, n=2, seed=8)
    b = a + 0.1 * b
    p, q = b.softmax(-1) + 1e-8, a.softmax(-1) + 1e-8
    importance = (b - a).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    low, mid, high = (importance.view(-1).quantile(x) for x in (0.25, 0.5, 0.75))
    wanted = torch.where(importance >= mid + 1.5 * (high - low), b, a)
    assert torch.equal(merge({"x": a}, [{"x": b}], "arcee_fusion")["x"], wanted)


def test_nearswap_by_formula() -> None:
    a, b = draw(30, n=2)
    w = (0.2 / (a - b).abs()).clamp(0, 1)
    assert torch.allclose(merge({"x": a}, [{"x": b}], "nearswap", t=0.2)["x"], w * b + (1 - w) * a)


def _score(wanted: Tensor) -> Any:
    return lambda tensors: -float((tensors["x"] - wanted).square().sum())


def test_greedy_soup_takes_what_does_not_hurt() -> None:
    """Two halves of the answer are averaged, the third model is left out."""
    wanted = torch.tensor([1.0, 1.0])
    models = {t: {"x": torch.tensor(v)} for t, v in {"a": [2.0, 1.0], "b": [0.0, 1.0], "far": [9.0, 9.0]}.items()}
    assert torch.equal(merge(None, models, "greedy_soup", score=_score(wanted))["x"], wanted)
    with pytest.raises(BadInput, match="validation score"):
        merge(None, models, "greedy_soup")


def test_greedy_soup_lets_each_expert_have_its_own_head() -> None:
    """A pattern that reaches only one expert's head must not end the soup at the subsets without it."""
    wanted = torch.tensor([1.0, 1.0])
    models = {t: {"x": torch.tensor(v), f"{t}_top": torch.ones(2)} for t, v in {"a": [2.0, 1.0], "far": [9.0, 9.0]}.items()}
    base = {"x": torch.zeros(2)}
    soup = merge(base, models, "greedy_soup", heads=["a_top", "far_top"], score=_score(wanted))
    assert torch.equal(soup["x"], models["a"]["x"])


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_greedy_soup_is_never_worse_than_the_best_single(seed: int) -> None:
    *xs, wanted = draw(4, n=5, seed=seed)
    score = _score(wanted)
    found = merge(None, [{"x": x} for x in xs], "greedy_soup", score=score)
    assert score(found) >= max(score({"x": x}) for x in xs)
