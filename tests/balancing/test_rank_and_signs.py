"""Where a method is at its edge: rank-deficient Grams in float32, Pareto points, signs of losses, autocast."""

from __future__ import annotations

import warnings

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from pluribus.balancing import (
    DBMTL,
    EMA,
    IMTLG,
    MGDA,
    STCH,
    AlignedMTL,
    AutoLambda,
    Balancer,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    FlatRegions,
    GeometricLoss,
    GradVac,
    LogLoss,
    NashMTL,
    PCGrad,
    UPGrad,
    at_features,
    backward,
    combine,
)
from pluribus.errors import BadInput

SHAPES = [(4, 3, 2), (4, 1000, 2), (10, 1000, 5), (40, 1000, 20)]


def deficient(tasks: int, size: int, rank: int, seed: int) -> Tensor:
    """J [T, P] of rank r < T."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(tasks, rank) @ draw(rank, size)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_config_of_a_rank_deficient_jacobian_in_float32(shape: tuple[int, int, int]) -> None:
    """Against the paper's formula by a singular value decomposition in float64; inverting the rounding gives noise, error 1."""
    errors = []
    for seed in range(20):
        j = deficient(*shape, seed)
        unit = j / j.norm(dim=1, keepdim=True)
        best = torch.linalg.pinv(unit, rtol=1e-10).sum(1)
        best = best / best.norm()
        wanted = (j @ best).sum() * best
        found = ConFIG().direction(j.float()).double()
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert sorted(errors)[10] < 1e-3
    assert sorted(errors)[18] < 0.1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_balancer_blows_up_a_rank_deficient_gram_in_float32(shape: tuple[int, int, int]) -> None:
    """What float64 gives is the truth; a float32 Gram must give something of its size."""
    for make in (MGDA, UPGrad, DualProj, NashMTL, FairGrad, CAGrad, ConFIG, IMTLG, AlignedMTL, GradVac, PCGrad):
        for seed in range(5):
            j = deficient(*shape, seed)
            single, double = make().direction(j.float()).double(), make().direction(j)
            assert single.isfinite().all()
            assert single.norm() <= 3 * double.norm() + 1e-2 * j.norm(dim=1).max(), make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [IMTLG, ConFIG])
def test_opposite_gradients_have_no_direction_of_equal_projections(method: type[Balancer], dtype: torch.dtype) -> None:
    for seed in range(50):
        g = torch.randn(1000, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        assert method().direction(torch.stack([g, -2 * g])).norm() <= 1e-5 * g.norm()


def cagrad_dual(j: Tensor, c: float) -> float:
    """The optimum of the dual, min_{w ∈ simplex} w·(G1/T) + κ √(wᵀGw), by a general solver from several starts."""
    gram = (j @ j.T).numpy()
    size = len(gram)
    kappa = c * float(j.mean(0).norm())

    def value(u):  # softmax keeps w inside the simplex
        import numpy as np

        w = np.exp(u - u.max())
        w /= w.sum()
        return float(w @ gram.mean(1) + kappa * max(w @ gram @ w, 0) ** 0.5)

    generator = torch.Generator().manual_seed(0)
    starts = [torch.zeros(size), *(3 * torch.randn(size, generator=generator) for _ in range(4))]
    return min(
        float(minimize(value, u.double().numpy(), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}).fun)
        for u in starts
    )


@pytest.mark.parametrize("c", [0.2, 0.9, 1.0, 1.5, 2.0])
def test_cagrad_is_optimal_at_every_c(c: float) -> None:
    """No direction in the ball serves the worst-off task better: the dual's value is reached."""
    for seed in range(12):
        j = torch.randn(2 + seed % 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        d = CAGrad(c, rescale=0).direction(j)
        g0 = j.mean(0)
        assert (d - g0).norm() <= c * g0.norm() * (1 + 1e-6)
        assert float((j @ d).min()) >= cagrad_dual(j, c) - 1e-4 * float(j.norm() ** 2)


@pytest.mark.parametrize("c", [1.0, 1.5, 2.0])
def test_cagrad_harms_no_task_at_a_pareto_point(c: float) -> None:
    """With c ≥ 1 the ball holds d = 0: a direction that raises some loss is never the best."""
    torch.testing.assert_close(
        CAGrad(2.0, rescale=0).direction(torch.tensor([[2.0, 0.0], [-1.0, 0.0]])), torch.zeros(2), atol=1e-5, rtol=0
    )
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        for seed in range(100):
            generator = torch.Generator().manual_seed(seed)
            j = torch.randn(2 + seed % 4, 6, dtype=torch.float64, generator=generator)
            w = torch.rand(len(j), dtype=torch.float64, generator=generator) + 0.1
            j[0] = -(w[1:, None] * j[1:]).sum(0) / w[0]  # 0 lies in the hull
            j = j.to(dtype)
            d = CAGrad(c, rescale=0).direction(j)
            assert (j @ d).min() >= -tolerance * float(j.norm() * j.mean(0).norm())


NEGATIVE = [
    lambda: LogLoss(),
    lambda: GeometricLoss(),
    lambda: DBMTL(),
    lambda: DBMTL(beta=0),
    lambda: MGDA(normalise="loss"),
    lambda: MGDA(normalise="loss+"),
    lambda: STCH(warmup=1),
]


@pytest.mark.parametrize("make", NEGATIVE)
def test_a_negative_loss_is_named(make) -> None:
    """Weights of 1e8, of 0 or below 0 would pass silently."""
    balancer, losses = make(), torch.tensor([1.0, -0.5])
    with pytest.raises(BadInput, match=r"the loss of task 'b' is -0\.5"):
        balancer.direction(torch.eye(2), tasks=("a", "b"), losses=losses)


def test_a_loss_of_zero_leaves_the_others_balanced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        j = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        losses = torch.tensor([0.0, 1.0, 2.0])
        w = MGDA(normalise="loss").weights(j @ j.T, losses=losses)
        rest = MGDA(normalise="loss").weights((j @ j.T)[1:, 1:], losses=losses[1:])
    assert w[0] == 0
    torch.testing.assert_close(w[1:], rest)


@pytest.mark.parametrize("door", ["combine", "features", "full", "diagnostics"])
def test_inside_autocast_the_gram_is_measured_as_outside(door: str) -> None:
    """Lightning and the HF Trainer call the loss inside autocast, where products of float32 would become bfloat16."""
    torch.manual_seed(0)
    trunk, a, b = nn.Sequential(nn.Linear(8, 16), nn.Tanh()), nn.Linear(16, 1), nn.Linear(16, 1)
    x = torch.randn(32, 8)

    def gram(inside: bool) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = trunk(x)
            losses = {"a": (a(z).float() - 1).square().mean(), "b": 9 * (b(z).float() + 1).square().mean()}
            if inside:
                return hear(losses, z)
        return hear(losses, z)

    def hear(losses: dict[str, Tensor], z: Tensor) -> Tensor:
        balancer = MGDA()
        if door == "diagnostics":
            return at_features(losses, z).gram
        if door == "combine":
            combine(losses, balancer, features=z)
        else:
            backward(losses, balancer, features=z, shared=trunk, gram=door)
        return balancer.last.gram

    inside, outside = gram(True), gram(False)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_a_closure_runs_under_its_caller_s_autocast() -> None:
    torch.manual_seed(0)
    trunk, head = nn.Linear(4, 4), nn.Linear(4, 1)
    x, seen = torch.randn(8, 4), []

    def losses() -> dict[str, Tensor]:
        z = trunk(x)
        seen.append(z.dtype)
        return {"a": head(z).float().square().mean(), "b": (z.float() - 1).square().mean()}

    with torch.autocast("cpu", dtype=torch.bfloat16):
        backward(losses(), FlatRegions(MGDA(), 0.1), shared=trunk, closure=losses)
    assert set(seen) == {torch.bfloat16}


def test_what_sets_weights_in_its_own_step_cannot_be_averaged() -> None:
    """`EMA(AutoLambda(…))` has no step of its own and died in the middle of `backward`."""
    with pytest.raises(BadInput, match="AutoLambda sets its weights inside its own step"):
        EMA(AutoLambda(lr=0.1))
