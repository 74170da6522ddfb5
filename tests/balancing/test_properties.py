"""What each method guarantees, over random Jacobians of all ranks and row lengths, and at the corners.

Samplers × assertions: non-conflict, permutation, scale of one loss, scale of all, one task, nothing at all.
"""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.balancing import (
    DBMTL,
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    EqualWeighting,
    FairGrad,
    GradVac,
    NashMTL,
    PCGrad,
    UPGrad,
)

GRAM = [
    MGDA(),
    PCGrad(shuffle=False),
    GradVac(shuffle=False),
    CAGrad(),
    IMTLG(),
    ConFIG(),
    NashMTL(max_norm=None),
    NashMTL(),
    FairGrad(),
    AlignedMTL(),
    AlignedMTL("median"),
    AlignedMTL("rmse"),
    UPGrad(),
    DualProj(),
    DBMTL(beta=0),
]


def sample(size, rank, seed, spread=0.0, dtype=torch.float64, columns=50):
    """J [T, 50] of a given rank whose row lengths spread over 10^±spread."""
    source = torch.Generator().manual_seed(seed)
    j = torch.randn(size, rank, generator=source, dtype=torch.float64) @ torch.randn(
        rank, columns, generator=source, dtype=torch.float64
    )
    return (j * 10 ** (spread * (2 * torch.rand(size, 1, generator=source, dtype=torch.float64) - 1))).to(dtype)


def cosines(j, d):
    """J d over the lengths of the rows and of the combination's parts."""
    return (j @ d) / (j.norm(dim=1) * d.norm()).clamp_min(1e-300)


def fresh(balancer):
    balancer.reset()
    return balancer


def call(balancer, j, **extra):
    return fresh(balancer).direction(j, losses=torch.ones(len(j), dtype=j.dtype), **extra)


def full_rank(j):
    return bool(torch.linalg.svdvals(j / j.norm(dim=1, keepdim=True))[-1] > 1e-3)


seeds = st.integers(0, 10**6)
sizes = st.sampled_from([2, 3, 6, 10])


@settings(max_examples=60)
@pytest.mark.parametrize("balancer", [MGDA(), UPGrad(), DualProj(), NashMTL(), FairGrad(), ConFIG()], ids=repr)
@given(sizes, seeds, st.sampled_from([0.0, 1.0, 3.0]))
def test_no_task_is_hurt(balancer, size, seed, spread):
    """J d ≥ 0 where the method promises it: else some task's loss rises to first order."""
    j = sample(size, size, seed, spread)
    if full_rank(j):
        assert (cosines(j, call(balancer, j)) >= -1e-6).all()


@settings(max_examples=60)
@pytest.mark.parametrize("balancer", [UPGrad(), DualProj(), MGDA()], ids=repr)
@given(st.sampled_from([2, 3, 10, 40]), seeds)
def test_no_task_is_hurt_at_low_rank(balancer, size, seed):
    """Also with more tasks than dimensions, relative to the gradients (d itself may vanish)."""
    j = sample(size, max(1, size // 2), seed)
    d = call(balancer, j)
    assert (j @ d >= -1e-6 * j.norm(dim=1) * j.norm(dim=1).max()).all()


def test_imtl_g_never_climbs_every_task():
    """When Σv < 0 the textbook normalisation flips the sign and ascends all tasks at once; here the projections stay positive."""
    flipped = 0
    for seed in range(300):
        j = sample(4, 4, seed, 1.0)
        v = torch.linalg.pinv(j @ j.T) @ j.norm(dim=1)
        flipped += bool(v.sum() < 0)
        if full_rank(j):
            assert (cosines(j, IMTLG().direction(j)) > 0).all()
    assert flipped > 0  # the sample contains the pitfall


@settings(max_examples=30)
@pytest.mark.parametrize("balancer", GRAM, ids=repr)
@given(sizes, seeds)
def test_order_of_the_tasks_does_not_matter(balancer, size, seed):
    """d is the same for permuted rows (methods of random or fixed walks apart, whose walk follows the rows)."""
    if isinstance(balancer, (PCGrad, GradVac)) and size > 2:
        return
    j = sample(size, size, seed)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(call(balancer, j[order]), call(balancer, j), rtol=1e-5, atol=1e-6)


def test_random_walks_do_not_favour_a_row():
    """PCGrad's mean weights follow a permutation of the tasks."""
    j = sample(4, 3, 5)
    order = torch.tensor([2, 0, 3, 1])
    first, second = PCGrad(seed=1), PCGrad(seed=2)
    a = torch.stack([first.weights(j @ j.T) for _ in range(3000)]).mean(0)
    b = torch.stack([second.weights((j @ j.T)[order][:, order]) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(b, a[order], atol=0.05, rtol=0.02)


@settings(max_examples=30)
@given(sizes, seeds, st.floats(-3, 3))
def test_scale_of_one_loss(size, seed, exponent):
    """Nash and FairGrad(1): w_t → w_t/c; ConFIG and IMTL-G keep their direction; DB-MTL its d when the loss scales too."""
    j, c = sample(size, size, seed), 10**exponent
    if not full_rank(j):
        return
    scaled = j.clone()
    scaled[0] *= c
    for balancer in (NashMTL(max_norm=None), FairGrad(1.0)):
        w, ws = (balancer.weights(x @ x.T) for x in (j, scaled))
        torch.testing.assert_close(ws[0] * c, w[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(ws[1:], w[1:], rtol=1e-5, atol=0)
    for balancer in (ConFIG(), IMTLG()):
        d, ds = balancer.direction(j), balancer.direction(scaled)
        torch.testing.assert_close(ds / ds.norm(), d / d.norm(), rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@pytest.mark.parametrize("balancer", GRAM, ids=repr)
@given(sizes, seeds, st.floats(-3, 3))
def test_scale_of_all(balancer, size, seed, exponent):
    """J → cJ: d → c d; d for Nash; c^{(1−α)/(1+α)} d for FairGrad."""
    j, c = sample(size, size, seed), 10**exponent
    if isinstance(balancer, NashMTL):
        factor = 1.0
    elif isinstance(balancer, FairGrad):
        factor = c ** ((1 - balancer.alpha) / (1 + balancer.alpha))
    else:
        factor = c
    d, scaled = call(balancer, j), call(balancer, c * j)
    torch.testing.assert_close(scaled / factor, d, rtol=1e-4, atol=1e-5 * float(d.norm() + 1e-12))


@settings(max_examples=30)
@given(sizes, seeds, st.sampled_from([0.0, 2.0]))
def test_config_is_parallel_to_imtl_g(size, seed, spread):
    j = sample(size, size, seed, spread)
    if full_rank(j):
        a, b = ConFIG().direction(j), IMTLG().direction(j)
        assert float(a @ b / (a.norm() * b.norm())) == pytest.approx(1, abs=1e-8)
        equal = cosines(j, a)
        assert float(equal.max() - equal.min()) < 1e-6


@settings(max_examples=40)
@given(sizes, seeds, st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from([0.1, 0.4, 0.9]))
def test_cagrad_is_the_optimum_of_its_ball(size, seed, spread, c):
    """No point of the ball around g₀ that we can find gives the worst-off task more; d lies on the ball's rim."""
    j = sample(size, size, seed, spread)
    if not full_rank(j):
        return
    g0 = j.mean(0)
    d = CAGrad(c, 0).direction(j)
    assert float((d - g0).norm()) == pytest.approx(c * float(g0.norm()), rel=1e-5)
    # dual bound: min over the simplex of w·(J g₀) + κ‖Jᵀw‖, attained by the weights themselves
    w = CAGrad(c, 0).weights(j @ j.T) - 1 / size
    assert (w >= -1e-9).all()
    w = w / w.sum()
    bound = w @ (j @ g0) + c * g0.norm() * (j.T @ w).norm()
    reached = (j @ d).min()
    scale = float(j.norm(dim=1).max() * g0.norm())
    assert float(bound - reached) <= 1e-6 * scale
    assert float(bound - reached) >= -1e-9 * scale


@pytest.mark.parametrize("balancer", [CAGrad(), MGDA(), UPGrad(), DualProj(), NashMTL(), FairGrad()], ids=repr)
def test_the_accelerators_way_gives_the_same_weights(balancer, monkeypatch):
    """Where no iteration may ask the host whether it has arrived, and quadratic programmes go through the interior point."""
    shapes = [(2, 0.0), (3, 1.0), (6, 0.5), (10, 0.0)]
    grams = [(j := sample(size, size, seed, spread)) @ j.T for seed, (size, spread) in enumerate(shapes)]
    looking = [fresh(balancer).weights(gram) for gram in grams]
    for module in ("balancing.cagrad", "linalg.alpha_fair", "linalg.nonnegative_qp"):
        monkeypatch.setattr(sys.modules[f"pluribus.{module}"], "settled", lambda open_: False)
    solved_none = lambda matrix, linear, inside: (torch.zeros_like(linear), torch.arange(len(linear)))  # noqa: E731
    monkeypatch.setattr(sys.modules["pluribus.linalg.nonnegative_qp"], "_pivoting", solved_none)
    for gram, w in zip(grams, looking):
        torch.testing.assert_close(fresh(balancer).weights(gram), w, rtol=1e-5, atol=1e-7)


@settings(max_examples=40)
@given(sizes, seeds, st.integers(1, 6))
def test_dual_cone_projection_kkt(size, seed, rank):
    """v ≥ p, G v ≥ 0, (v − p)·(G v) = 0, also for singular G."""
    j = sample(size, rank, seed)
    gram = j @ j.T
    v = DualProj().weights(gram)
    scale = gram.diagonal().max() * float(v.abs().max())
    assert (v >= 1 / size - 1e-9).all()
    assert (gram @ v >= -1e-7 * scale).all()
    assert ((v - 1 / size) * (gram @ v)).abs().max() <= 1e-6 * scale * float(v.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("balancer", GRAM, ids=repr)
def test_never_a_nan(balancer, dtype):
    """Zero rows, duplicates, opposites, single tasks, nothing, and lengths from 1e-6 to 1e6: numbers come out."""
    g = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cases = [
        [g],
        [g * 0],
        [g, g * 0],
        [g * 0, h * 0, g * 0],
        [g, g],
        [g, -g],
        [g, h, g],
        [g, -g, h],
        [g, h, -g - h],
        [1e-6 * g, 1e6 * h],
        [1e-6 * g, h, 1e6 * g],
        [1e-6 * g, 1e-6 * h],
        [g, 2 * g, -1e-3 * g, 1e3 * g],
    ]
    for rows in cases:
        j = torch.stack(rows).to(dtype)
        d = call(balancer, j)
        assert d.dtype == dtype
        assert torch.isfinite(d).all(), (len(rows), j[:, 0])
        wide = torch.finfo(torch.float32 if dtype == torch.bfloat16 else dtype)
        w = fresh(balancer).weights(j.to(torch.float64) @ j.to(torch.float64).T, losses=torch.ones(len(j)))
        assert torch.isfinite(w).all()
        assert w.abs().max() < wide.max
        if not j.any():
            assert not d.any()


@pytest.mark.parametrize("balancer", GRAM, ids=repr)
def test_one_task_is_its_own_gradient(balancer):
    """T = 1: d = c g with c = 1 for most, 1 + c (rescaled) for CAGrad, 1/‖g‖ for Nash, ‖g‖^{…} for FairGrad."""
    g = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    d = call(balancer, g)
    factor = 1.0
    if isinstance(balancer, CAGrad):
        factor = 1.4 / 1.16
    elif isinstance(balancer, NashMTL):
        factor = 1 / 5
    elif isinstance(balancer, FairGrad):
        factor = 25.0 ** (-balancer.alpha / (1 + balancer.alpha))
    torch.testing.assert_close(d, factor * g[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "balancer", [MGDA(), UPGrad(), DualProj(), PCGrad(), CAGrad(), ConFIG(), IMTLG(), AlignedMTL()], ids=repr
)
def test_an_antiparallel_pair_cancels(balancer):
    g = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert float(call(balancer, torch.stack((g, -g))).norm()) < 1e-6


def test_preference_tilts():
    """More preference, more gain: the first task's share of the step grows with its preference."""
    j = sample(3, 3, 4)
    for make in (UPGrad, DualProj, AlignedMTL, NashMTL, FairGrad, ConFIG, IMTLG, EqualWeighting):
        gains = []
        for p in (0.5, 1.0, 2.0):
            d = make(preference=[p, 1.0, 1.0]).direction(j, losses=torch.ones(3, dtype=torch.float64))
            gains.append(float(cosines(j, d)[0]))
        assert gains[0] < gains[1] < gains[2], (make, gains)


@pytest.mark.parametrize("balancer", [MGDA(), UPGrad(), NashMTL(), CAGrad(), FairGrad(), PCGrad()], ids=repr)
def test_descent_stops_at_the_pareto_set(balancer):
    """Losses ‖θ − a_t‖²: the Pareto set is the hull of the a_t. From far away steps along d must end in it.

    (IMTL-G does not: near the plane of the anchors equal projections are nearly orthogonal to it.)
    """
    anchors = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 1, 0]], dtype=torch.float64)
    theta = torch.tensor([3.0, 2.0, 4.0], dtype=torch.float64)
    fresh(balancer)
    for k in range(800):
        j = 2 * (theta - anchors)
        d = balancer.direction(j)
        theta = theta - 0.3 / math.sqrt(1 + k) * d / (d.norm() + 1e-3)
    hull = MGDA().weights((theta - anchors) @ (theta - anchors).T)
    assert float((hull @ anchors - theta).norm()) < 0.05
