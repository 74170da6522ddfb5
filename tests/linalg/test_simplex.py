"""The projection on the simplex: if it is off, MoDo, MoCo and SDMGrad leave the simplex or drift."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus.linalg.simplex import project_simplex

vectors = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)


@given(vectors, st.floats(0.1, 10))
def test_kkt(x, total):
    """w ≥ 0, Σ w = total, and x − w is one constant where w > 0 and below it elsewhere."""
    x = torch.tensor(x, dtype=torch.float64)
    w = project_simplex(x, total)
    assert (w >= 0).all()
    assert abs(w.sum() - total) < 1e-9 * max(1, x.abs().max().item())
    tau = (x - w)[w > 0]
    assert tau.max() - tau.min() < 1e-9 * max(1, x.abs().max().item())
    assert (x[w == 0] <= tau.max() + 1e-9 * max(1, x.abs().max().item())).all()


def test_points_of_the_simplex_stay_and_rows_are_independent():
    x = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [5.0, 5.0, -1.0]], dtype=torch.float64)
    w = project_simplex(x)
    torch.testing.assert_close(w, torch.tensor([[0.2, 0.3, 0.5], [1, 0, 0], [0.5, 0.5, 0]], dtype=torch.float64))
    for row in range(3):
        torch.testing.assert_close(project_simplex(x[row]), w[row])


def test_equal_huge_entries_share():
    assert torch.equal(project_simplex(torch.full((4,), 1e8)), torch.full((4,), 0.25))
