"""Methods that track gradients, norms or cross-Grams: the first steps of their recursions, by the papers' equations."""

import pytest
import torch

from pluribus.balancing import DBMTL, EMA, FAMO, ExcessMTL, GradDrop, GradNorm, MoCo, MoDo, SDMGrad, UPGrad
from pluribus.linalg.simplex import project_simplex

P = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)
R = torch.tensor([[1.0, 0], [0, 10]], dtype=torch.float64)
LOSSES = torch.tensor([0.5, 2.0], dtype=torch.float64)


def near(w, values, tolerance=1e-6):
    torch.testing.assert_close(w, torch.tensor(values, dtype=w.dtype), atol=tolerance, rtol=0)


def test_db_mtl_numbers():
    balancer = DBMTL()
    near(balancer.direction(P, losses=LOSSES), [0.025897, 0.337649, 0.337649])
    near(balancer.direction(P, losses=LOSSES), [0.110642, 1.442585, 1.442585])


def test_db_mtl_without_memory_needs_the_gram_only():
    """Log-loss gradients of the length of the longest, by Gram and by Jacobian alike."""
    balancer = DBMTL(beta=0)
    assert balancer.signal == "gram"
    assert "combine" in balancer.doors
    assert DBMTL().doors == ("backward",)
    rows = P / LOSSES.unsqueeze(1)
    norms = rows.norm(dim=1)
    expected = (rows * (norms.max() / norms).unsqueeze(1)).sum(0)
    torch.testing.assert_close(balancer.direction(P, losses=LOSSES), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(P.T @ balancer.weights(P @ P.T, losses=LOSSES), expected, rtol=1e-6, atol=1e-6)


def test_moco_numbers():
    """λ = (.511717, .488283) and d after one step, λ = (.520466, .479534) after two, in the softmax form."""
    balancer = MoCo(onto="softmax")
    near(balancer.direction(P, losses=LOSSES), [0.354647, 0.109363, 0.109363])
    near(balancer.shares.shares(("0", "1"), LOSSES), [0.511717, 0.488283])
    balancer.direction(P, losses=LOSSES)
    near(balancer.shares.shares(("0", "1"), LOSSES), [0.520466, 0.479534])


def test_moco_projects_as_in_the_paper():
    balancer = MoCo(gamma=0.5)
    d = balancer.direction(P, losses=LOSSES)
    y = 0.5 * P * (LOSSES / P.norm(dim=1)).unsqueeze(1)
    lam = project_simplex(0.5 - 0.5 * (y @ y.T @ torch.full((2,), 0.5, dtype=torch.float64)))
    torch.testing.assert_close(d, y.T @ lam)


def test_modo_recursion():
    balancer = MoDo(gamma=0.1, rho=0.1)
    first, second = P, P + 0.1
    lam = torch.full((2,), 0.5, dtype=torch.float64)
    for _ in range(3):
        lam = project_simplex(lam - 0.1 * (first @ second.T @ lam + 0.1 * lam))
        torch.testing.assert_close(balancer.weights(first @ second.T), lam)


def test_modo_finds_the_min_norm_point():
    """With exact gradients and no pull to the mean, λ settles where MGDA's weights are (.6, .4)."""
    balancer = MoDo(gamma=0.01, rho=0.0)
    for _ in range(2000):
        w = balancer.weights(P @ P.T)
    near(w, [0.6, 0.4], 1e-6)


def test_sdmgrad_solves_its_subproblem():
    """The weights minimise ½‖Jᵀw + λ g₀‖² over the simplex: KKT conditions with the Gram of one batch twice."""
    balancer = SDMGrad(lr=0.2, steps=20)
    gram = P @ P.T
    for _ in range(100):
        total = balancer.weights(gram)
    w = total * 1.3 - 0.3 / 2
    assert float(w.sum()) == pytest.approx(1)
    slope = gram @ w + 0.3 * gram.mean(1)
    assert float((slope - slope @ w).min()) > -1e-4
    assert float(total.sum()) == pytest.approx(1)


def test_sdmgrad_and_modo_ask_for_three_batches():
    for method in (SDMGrad, MoDo):
        assert (method.batches, method.doors, method().signal) == (3, ("backward",), "cross_gram")


def test_gradnorm_gradient():
    """∂/∂v = sign·norm; through v = T softmax(s) at equal s it is the published (5.2035, −5.2035)."""
    norms = P.norm(dim=1)
    relative = LOSSES / torch.tensor([1.0, 2.5], dtype=torch.float64)
    gradient = GradNorm(alpha=1.5).gradient(norms, torch.ones(2, dtype=torch.float64), relative)
    torch.testing.assert_close(gradient, norms * torch.tensor([1.0, -1.0], dtype=torch.float64))
    near(torch.stack((gradient[0] - gradient[1], gradient[1] - gradient[0])) / 2, [5.2035, -5.2035], 1e-4)


def test_gradnorm_equalises_norms():
    """With losses that fall alike, v·norm becomes the same for all tasks, and Σ v = T throughout."""
    balancer = GradNorm(lr=0.005)
    for _ in range(3000):
        w = balancer.weights(P.square().sum(1), losses=LOSSES)
        assert float(w.sum()) == pytest.approx(2)
    weighted = w * P.norm(dim=1)
    assert float(weighted[0] / weighted[1]) == pytest.approx(1, abs=0.02)


def test_gradnorm_favours_the_task_that_trains_slowly():
    balancer = GradNorm()
    balancer.weights(torch.ones(2), losses=torch.ones(2))
    for _ in range(50):
        w = balancer.weights(torch.ones(2), losses=torch.tensor([0.1, 1.0]))
    assert w[1] > 1.2


def test_excess_mtl_recursion():
    """Baseline from the warm-up at equal weights, then w ∝ w exp(η e/e⁰)."""
    balancer = ExcessMTL(eta=0.5, warmup=2)
    total, excess = torch.zeros_like(R), []
    for k in range(4):
        total += R.square()
        excess.append((R.square() / (total + 1e-7).sqrt()).sum(1))
        d = balancer.direction(R)
        if k < 2:
            torch.testing.assert_close(d, R.mean(0))
    base = (excess[0] + excess[1]) / 2
    w = torch.softmax(0.5 * (excess[2] + excess[3]) / base, 0)
    torch.testing.assert_close(d, R.T @ w)


def test_excess_mtl_moves_to_the_task_whose_excess_stays():
    balancer = ExcessMTL(eta=0.1, warmup=1)
    balancer.direction(R)
    for _ in range(30):
        d = balancer.direction(torch.tensor([[1.0, 0], [0, 0.01]], dtype=torch.float64))
    assert float(d[0]) > 0.6  # weight of task 0, whose gradient did not shrink


def test_graddrop_expectation():
    """E[d] = p Σ max(g, 0) + (1 − p) Σ min(g, 0); one sign passes whole, a column of zeros is zero."""
    j = torch.tensor([[1.0, 2, 0, -1], [-2, 1, 0, -3], [0.5, -1, 0, -1]], dtype=torch.float64)
    balancer = GradDrop()
    mean = torch.stack([balancer.direction(j) for _ in range(20000)]).mean(0)
    p = 0.5 * (1 + torch.nan_to_num(j.sum(0) / j.abs().sum(0)))
    expected = p * j.clamp_min(0).sum(0) + (1 - p) * j.clamp_max(0).sum(0)
    torch.testing.assert_close(mean, expected, atol=0.05, rtol=0)
    assert float(mean[2]) == 0
    torch.testing.assert_close(mean[3], torch.tensor(-5.0, dtype=torch.float64))


def test_graddrop_keeps_one_sign_an_entry():
    source = torch.Generator().manual_seed(0)
    j = torch.randn(5, 200, generator=source, dtype=torch.float64)
    d = GradDrop().direction(j)
    up, down = j.clamp_min(0).sum(0), j.clamp_max(0).sum(0)
    assert (torch.isclose(d, up) | torch.isclose(d, down)).all()


def test_graddrop_leak():
    """A task that leaks wholly passes as it is; one that leaks by ½ passes by ½ at least."""
    j = torch.tensor([[1.0, 1.0], [-3.0, 2.0]], dtype=torch.float64)
    d = GradDrop(leak={"0": 1.0, "1": 1.0}).direction(j)
    torch.testing.assert_close(d, j.sum(0))
    seen = {round(float(GradDrop(leak={"0": 1.0, "1": 0.5}, seed=s).direction(j)[0]), 6) for s in range(40)}
    assert seen == {-2.0, -0.5}


def test_graddrop_on_features():
    """One decision a task and feature, from the batch's sum of sign(Z)·g; all the task's samples of that feature follow it."""
    source = torch.Generator().manual_seed(0)
    g, z = torch.randn(3, 16, 7, generator=source), torch.randn(16, 7, generator=source)
    d = GradDrop(seed=5).on_features(g, z)
    votes = (g * z.sign()).sum(1)
    p = 0.5 * (1 + votes.sum(0) / votes.abs().sum(0))
    u = torch.rand(1, 7, generator=torch.Generator().manual_seed(5))[0]
    keep = ((votes > 0) & (p > u)) | ((votes < 0) & (p < u))
    torch.testing.assert_close(d, (keep.unsqueeze(1) * g).sum(0))
    torch.testing.assert_close(GradDrop().on_features(g[:1], z), g[0])  # one task agrees with itself


def test_ema_smooths_weights():
    balancer = EMA(UPGrad(), beta=0.75)
    first, second = balancer.inner.weights(P @ P.T), balancer.inner.weights(R @ R.T)
    torch.testing.assert_close(balancer.weights(P @ P.T), first)
    torch.testing.assert_close(balancer.weights(R @ R.T), 0.75 * first + 0.25 * second)
    assert EMA(SDMGrad()).batches == 3


def test_ema_resumes_with_what_it_wraps():
    """The wrapped method's state travels with the average."""
    through, first = EMA(FAMO()), EMA(FAMO())
    for balancer in (through, first):
        balancer.weights(LOSSES, tasks=["a", "b"])
        balancer.after_step({"a": torch.tensor(0.4), "b": torch.tensor(1.9)})
    second = EMA(FAMO())
    second.load_state_dict(first.state_dict())
    for scale in (0.9, 0.8):
        assert torch.equal(through.weights(scale * LOSSES, tasks=["b", "a"]), second.weights(scale * LOSSES, tasks=["b", "a"]))
