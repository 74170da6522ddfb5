"""Our methods against TorchJD's, in float64, over random Jacobians; where they differ, the optimality conditions decide.

Exceptions, each in its test: MGDA (its Frank–Wolfe stops early), UPGrad and DualProj (its ridge, compared under the same ridge),
CAGrad (conic solver, 1e-4), Nash-MTL (its solver stops where it likes: decided by G α = 1/α), IMTL-G (sign where Σv < 0).
"""

import random

import pytest
import torch

from pluribus.balancing import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradDrop,
    GradVac,
    MoDo,
    NashMTL,
    PCGrad,
    SDMGrad,
    UPGrad,
)

torchjd = pytest.importorskip("torchjd.aggregation")
pytestmark = pytest.mark.peer

CASES = [(size, columns, seed) for size, columns in ((2, 3), (3, 8), (6, 20), (12, 40)) for seed in range(5)]
each = pytest.mark.parametrize("case", CASES, ids=str)


def sample(case):
    size, columns, seed = case
    source = torch.Generator().manual_seed(97 * seed + size)
    j = torch.randn(size, columns, generator=source, dtype=torch.float64)
    return j * 10 ** (torch.rand(size, 1, generator=source, dtype=torch.float64) - 0.5)


def close(ours, theirs, tolerance=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@each
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl(case, scale):
    j = sample(case)
    close(AlignedMTL(scale).direction(j), torchjd.AlignedMTL(scale_mode=scale)(j))


@each
def test_config_with_and_without_preference(case):
    j = sample(case)
    close(ConFIG().direction(j), torchjd.ConFIG()(j))
    p = torch.arange(1, len(j) + 1, dtype=torch.float64)
    close(ConFIG(preference=p.tolist()).direction(j), torchjd.ConFIG(pref_vector=p)(j))


@each
def test_imtl_g(case):
    """Equal, but where TorchJD's Σv is negative or nearly zero: there it climbs, and ours must not."""
    j = sample(case)
    theirs = torchjd.IMTLG()(j)
    if bool((j @ theirs > 0).all()):
        close(IMTLG().direction(j), theirs)
    else:
        assert bool((j @ IMTLG().direction(j) > 0).all())


@each
def test_upgrad_and_dualproj_under_the_same_ridge(case):
    """TorchJD divides G by its trace and adds 1e-4 I; with that ridge the weights agree, without it ours has no conflict."""
    j = sample(case)
    p = torch.arange(1, len(j) + 1, dtype=torch.float64)
    for ours, theirs in ((UPGrad, torchjd.UPGrad), (DualProj, torchjd.DualProj)):
        close(ours(regularisation=1e-4).direction(j), theirs()(j))
        close(ours(preference=p.tolist(), regularisation=1e-4).direction(j), theirs(pref_vector=p)(j))
        assert bool((j @ ours().direction(j) >= -1e-8 * j.norm(dim=1) * j.norm(dim=1).max()).all())


@each
def test_mgda_is_never_longer(case):
    """Its approximate min-norm point is never shorter than ours, and equal when it is given time."""
    j = sample(case)
    ours = MGDA().direction(j).norm()
    assert float(ours) <= float(torchjd.MGDA()(j).norm()) * (1 + 1e-9)
    assert float(torchjd.MGDA(epsilon=1e-9, max_iters=50_000 // len(j))(j).norm()) == pytest.approx(float(ours), rel=0.02)


@each
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad(case, c):
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    j = sample(case)
    ours, theirs = CAGrad(c, rescale=0).direction(j), torchjd.CAGrad(c=c)(j)
    close(ours, theirs, 2e-3)  # the directions; what is optimised is the worst-off task's gain:
    scale = float(j.norm(dim=1).max() * theirs.norm())
    assert float((j @ ours).min()) >= float((j @ theirs).min()) - 1e-4 * scale


@each
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_fairgrad(case, alpha):
    j = sample(case)
    close(FairGrad(alpha).direction(j), torchjd.FairGrad(alpha=alpha)(j), 1e-4)


@pytest.mark.parametrize("case", [c for c in CASES if c[0] <= 3 and c[2] < 3], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_nash(case):
    """Near TorchJD's answer; and by the bargaining equation G α = 1/α ours is the nearer of the two to the solution."""
    pytest.importorskip("cvxpy")
    pytest.importorskip("ecos")
    j = sample(case)
    theirs = torchjd.NashMTL(n_tasks=len(j))(j)
    ours = NashMTL().direction(j)
    close(ours, theirs, 0.05)
    gain = j @ NashMTL(max_norm=None).direction(j)
    alpha = NashMTL(max_norm=None).weights(j @ j.T)
    torch.testing.assert_close(gain * alpha, torch.ones_like(alpha), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_pcgrad_and_gradvac(size):
    """One walk for one walk where orders cannot matter (two tasks); on average where they do."""
    j = sample((size, 10, 1))
    torch.manual_seed(0)
    random.seed(0)
    count = 1 if size == 2 else 600
    ours = [PCGrad(seed=3), GradVac(beta=0.0, seed=3)]
    theirs = [torchjd.PCGrad(), torchjd.GradVac(beta=0.0)]
    for a, b in zip(ours, theirs):
        mean_a = torch.stack([a.direction(j) for _ in range(count)]).mean(0)
        mean_b = torch.stack([b(j) for _ in range(count)]).mean(0)
        close(mean_a, mean_b, 1e-6 if count == 1 else 0.05)


def test_gradvac_history():
    """The moving averages of three steps, two tasks, β = ½."""
    ours, theirs = GradVac(beta=0.5), torchjd.GradVac(beta=0.5)
    for seed in range(4):
        j = sample((2, 10, seed))
        close(ours.direction(j), theirs(j), 1e-6)


def test_modo_and_sdmgrad():
    """Five steps of the weights with changing cross-Grams, its defaults being ours.

    (SDMGrad at a rate of 1: at the default of 10 the projected steps jump between corners and magnify its 1e-8 guard.)
    """
    modo, sdmgrad = MoDo(), SDMGrad(lr=1.0)
    peer_modo, peer_sdmgrad = torchjd.MoDoWeighting(), torchjd.SDMGradWeighting(lr=1.0)
    for seed in range(5):
        a = sample((3, 10, seed))
        b = a + 0.3 * sample((3, 10, seed + 50))
        close(modo.weights(a @ b.T), peer_modo(a @ b.T))
        close(sdmgrad.weights(a @ b.T), peer_sdmgrad(a @ b.T))


def test_graddrop_on_average():
    j = sample((3, 6, 0))
    torch.manual_seed(0)
    peer, mine = torchjd.GradDrop(), GradDrop()
    ours = torch.stack([mine.direction(j) for _ in range(5000)]).mean(0)
    theirs = torch.stack([peer(j) for _ in range(5000)]).mean(0)
    close(ours, theirs, 0.06)
