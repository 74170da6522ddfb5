"""Weights on three standing matrices, method by method. The figures were computed with independent implementations in float64.

If one fails, the method of that name is another method.
"""

import pytest
import torch

from pluribus.balancing import (
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

JACOBIANS = {"P": [[-4, 1, 1], [6, 1, 1]], "Q": [[1, 0, 2], [-1, 3, 0], [2, -1, -4]], "R": [[1, 0], [0, 10]]}

third, ninth = 1 / 3, 1 / 9
TABLE = [
    (lambda: MGDA(), [0.6, 0.4], [0.504188, 0.252931, 0.242881], [0.990099, 0.009901]),
    (lambda: PCGrad(shuffle=False), [20 / 9, 30 / 19], [2.4, 1.72, 1.604762], [1, 1]),
    (lambda: GradVac(shuffle=False), [20 / 9, 30 / 19], [2.4, 1.72, 1.604762], [1, 1]),
    (lambda: CAGrad(0.4, rescale=0), [0.663299, 0.5], [0.539892, third, third], [2.509975, 0.5]),
    (lambda: CAGrad(0.5, rescale=0), [0.704124, 0.5], [0.591532, third, third], [3.012469, 0.5]),
    (lambda: IMTLG(), [0.592330, 0.407670], [0.480881, 0.261315, 0.257803], [10 / 11, 1 / 11]),
    (lambda: NashMTL(max_norm=None), [0.591461, 0.407071], [0.903607, 0.522491, 0.481478], [1, 0.1]),
    (lambda: FairGrad(alpha=1.0), [0.591461, 0.407071], [0.903607, 0.522491, 0.481478], [1, 0.1]),
    (lambda: FairGrad(alpha=2.0), [0.471363, 0.319454], [0.798319, 0.434655, 0.406288], [1, 0.046416]),
    (lambda: AlignedMTL(), [0.559072, 0.408261], [0.403072, 0.256755, 0.238958], [0.5, 0.05]),
    (lambda: AlignedMTL("rmse"), [1.510866, 1.103306], [0.967432, 0.616250, 0.573534], [3.553168, 0.355317]),
    (lambda: UPGrad(), [10 / 9, 15 / 19], [1.021887, 0.636110, 0.600209], [0.5, 0.5]),
    (lambda: UPGrad(regularisation=1e-4), [1.110921, 0.789431], [1.021230, 0.635951, 0.600061], [0.5, 0.5]),
    (lambda: DualProj(), [0.611111, 0.5], [0.466667, third, third], [0.5, 0.5]),
    (lambda: EqualWeighting("mean"), [0.5, 0.5], [third] * 3, [0.5, 0.5]),
]


def jacobian(name, dtype=torch.float64):
    return torch.tensor(JACOBIANS[name], dtype=dtype)


@pytest.mark.parametrize(
    ("make", "name", "expected"),
    [pytest.param(make, name, values, id=f"{make()}-{name}") for make, *row in TABLE for name, values in zip("PQR", row)],
)
def test_table_of_values(make, name, expected):
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        j = jacobian(name, dtype)
        balancer = make()
        w = balancer.weights(j @ j.T if balancer.signal == "gram" else torch.ones(len(j), dtype=dtype))
        assert w.dtype == dtype
        torch.testing.assert_close(w, torch.tensor(expected, dtype=dtype), atol=tolerance, rtol=tolerance)
        if balancer.signal == "gram":
            d = make().direction(j)
            torch.testing.assert_close(d, j.T @ w, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("name", "d"), [("P", [0.158809, 2.070607, 2.070607]), ("Q", [2.380021, 1.703319, -0.224832]), ("R", [5.5, 5.5])]
)
def test_config_direction(name, d):
    torch.testing.assert_close(ConFIG().direction(jacobian(name)), torch.tensor(d, dtype=torch.float64), atol=1e-6, rtol=0)


def test_mgda_levels_the_tasks_on_q():
    j = jacobian("Q")
    torch.testing.assert_close(j @ MGDA().direction(j), torch.full((3,), 0.810720, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("c", "d"), [(0.4, [0.298968, 1.002844, 1.002844]), (0.5, [0.146803, 0.963299, 0.963299])])
def test_cagrad_rescaled_as_its_authors_do(c, d):
    torch.testing.assert_close(CAGrad(c).direction(jacobian("P")), torch.tensor(d, dtype=torch.float64), atol=1e-6, rtol=0)


def test_cagrad_rescales():
    j = jacobian("Q")
    plain = CAGrad(0.4, 0).direction(j)
    torch.testing.assert_close(CAGrad(0.4, 1).direction(j), plain / 1.16)
    torch.testing.assert_close(CAGrad(0.4, 2).direction(j), plain / 1.4)
    torch.testing.assert_close(CAGrad(0.0).direction(j), j.mean(0))


@pytest.mark.parametrize(
    ("normalise", "w"),
    [("none", [0.6, 0.4]), ("l2", [0.5, 0.5]), ("loss", [0.250996, 0.749004]), ("loss+", [0.183938, 0.816062])],
)
def test_mgda_normalised(normalise, w):
    """The simplex weights act on the raw gradients or, by default, on the normalised ones."""
    j, losses = jacobian("P"), torch.tensor([0.5, 2.0], dtype=torch.float64)
    gram = j @ j.T
    raw = MGDA(normalise, applied="raw").weights(gram, losses=losses)
    torch.testing.assert_close(raw, torch.tensor(w, dtype=torch.float64), atol=1e-6, rtol=0)
    length = {"none": 1, "l2": j.norm(dim=1), "loss": losses, "loss+": losses * j.norm(dim=1)}[normalise]
    torch.testing.assert_close(MGDA(normalise).weights(gram, losses=losses), raw / length)


def test_nash_clip_sets_the_length_of_the_step():
    """‖d‖ = √T at the bargaining solution: the authors' clip at 1 divides by √T, and a larger one does nothing."""
    j = jacobian("Q")
    free = NashMTL(max_norm=None).direction(j)
    assert float(free.norm()) == pytest.approx(3**0.5, abs=1e-8)
    torch.testing.assert_close(NashMTL().direction(j), free / 3**0.5)
    torch.testing.assert_close(NashMTL(max_norm=5.0).direction(j), free)


def test_gradvac_remembers():
    """Three calls with one Jacobian: the second and third aim at the cosines seen before."""
    balancer, j = GradVac(beta=0.5, shuffle=False), jacobian("P")
    for d in ([0.584795, 3.801170, 3.801170], [1.006540, 3.264403, 3.264403], [1.324535, 2.859683, 2.859683]):
        torch.testing.assert_close(balancer.direction(j), torch.tensor(d, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_ridge_of_the_peers_leaves_a_conflict():
    """The regularised dual cone projection hurts task 0 by .003421; the unregularised one does not."""
    j = jacobian("P")
    assert float((j @ DualProj(regularisation=1e-4).direction(j)).min()) == pytest.approx(-0.003421, abs=1e-6)
    assert float((j @ DualProj().direction(j)).min()) > -1e-9


def test_two_tasks_closed_forms():
    """PCGrad of a conflicting pair is (1 − G₁₂/G₁₁, 1 − G₁₂/G₂₂), UPGrad half of it."""
    source = torch.Generator().manual_seed(0)
    for _ in range(30):
        j = torch.randn(2, 4, generator=source, dtype=torch.float64)
        g = j @ j.T
        expected = 1 - g[0, 1].clamp_max(0) / g.diagonal()
        torch.testing.assert_close(PCGrad().weights(g), expected)
        torch.testing.assert_close(UPGrad().weights(g), expected / 2, atol=1e-7, rtol=1e-7)


def test_aligned_rows_are_orthogonal_and_of_one_length():
    """B J has Gram λ I at full rank: B's columns are the weights of unit preferences."""
    j = jacobian("Q")
    for scale in ("min", "median", "rmse"):
        b = torch.stack([AlignedMTL(scale, preference=e).weights(j @ j.T) for e in torch.eye(3).tolist()])
        aligned = b @ j @ j.T @ b.T
        torch.testing.assert_close(aligned, aligned[0, 0] * torch.eye(3, dtype=torch.float64), atol=1e-8, rtol=0)
    values = torch.linalg.eigvalsh(j @ j.T)
    for scale, lam in (("min", values[0]), ("median", values[1]), ("rmse", values.mean())):
        b = torch.stack([AlignedMTL(scale, preference=e).weights(j @ j.T) for e in torch.eye(3).tolist()])
        torch.testing.assert_close((b @ j @ j.T @ b.T)[0, 0], lam)
