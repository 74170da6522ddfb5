"""The bank of low-rank updates: if these fail, a row gets another row's update, or a plan means another function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.linalg.low_rank import PLANS, Pick, choose, frozen_per_row, mix_outputs, mix_parameters, mixed_parameters, per_row


def bank(size: int, rank: int, d_in: int, d_out: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(size, rank, d_in, generator=g, dtype=dtype), torch.randn(size, d_out, rank, generator=g, dtype=dtype))


def pick(ids: list[int]) -> Pick:
    experts = list(dict.fromkeys(ids))
    return Pick(experts, torch.tensor([experts.index(i) for i in ids]))


def by_hand(x: Tensor, A: Tensor, B: Tensor, ids: list[int], y: Tensor | None, scale: Any) -> Tensor:
    """Oracle: row after row, token after token."""
    rows = []
    for b, e in enumerate(ids):
        s = scale[e] if isinstance(scale, Tensor) else scale
        rows.append(torch.stack([s * (B[e] @ (A[e] @ token)) for token in x[b]]))
    return torch.stack(rows) + (0 if y is None else y)


@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    tokens=st.integers(1, 4),
    rank=st.sampled_from([4, 8]),
    with_y=st.booleans(),
    each=st.booleans(),
    plan=st.sampled_from([None, *PLANS]),
)
def test_every_plan_is_the_formula(ids: list[int], tokens: int, rank: int, with_y: bool, each: bool, plan: str | None) -> None:
    """Oracle: y + s_e B_e A_e x by hand, with experts that no row uses, one row, one expert, a scale per expert."""
    torch.manual_seed(0)
    A, B = bank(5, rank, 8, 12)
    x = torch.randn(len(ids), tokens, 8)
    y = torch.randn(len(ids), tokens, 12) if with_y else None
    before = None if y is None else y.clone()
    scale: Any = torch.rand(5) + 0.5 if each else 0.7
    got = per_row(x, A, B, pick(ids), y, scale=scale, plan=plan)
    torch.testing.assert_close(got, by_hand(x, A, B, ids, y, scale), rtol=1e-4, atol=1e-4)
    assert y is None or torch.equal(y, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", PLANS)
def test_one_expert_for_rows_that_are_not_counted(plan: str) -> None:
    A, B = bank(3, 4, 8, 4)
    x = torch.randn(5, 2, 8)
    torch.testing.assert_close(
        per_row(x, A, B, Pick([2], None), plan=plan), by_hand(x, A, B, [2] * 5, None, 1.0), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("plan", ["gather", "dense", "loop"])
def test_gradients_are_the_loops(plan: str) -> None:
    """Oracle: plan `loop` in float64; experts that no row uses get exactly zero, not nothing."""
    ids, grads = [3, 0, 3, 1], {}
    for each in (plan, "loop"):
        A, B = (t.requires_grad_() for t in bank(5, 3, 6, 7, dtype=torch.float64))
        x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        out = per_row(x, A, B, pick(ids), scale=torch.arange(1.0, 6).double(), plan=each)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        grads[each] = (x.grad, A.grad, B.grad)
    for mine, theirs in zip(grads[plan], grads["loop"]):
        assert mine is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    for g in grads[plan][1:]:
        assert g is not None
        assert (g[[2, 4]] == 0).all()


def test_gradients_of_the_grouped_plan() -> None:
    """It has no float64; and a gradient that is an expanded scalar (the loss is a sum) must not stop it."""
    found = []
    for plan in ("grouped", "loop"):
        A, B = (t.requires_grad_() for t in bank(5, 4, 8, 8))
        x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        per_row(x, A, B, pick([3, 0, 3, 1]), plan=plan).sum().backward()
        found.append((x.grad, A.grad, B.grad))
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert (found[0][1][[2, 4]] == 0).all()  # type: ignore[index]
    with pytest.raises(BadInput, match="use the plan gather"):
        per_row(torch.randn(2, 3, 8).double(), *bank(2, 4, 8, 8, dtype=torch.float64), pick([0, 1]), plan="grouped")


@pytest.mark.parametrize("ids", [[3, 0, 3, 1], [1, 2, 3, 4], [0, 1, 2, 3, 4], [2, 2, 2]])
@pytest.mark.parametrize("each", [False, True])
def test_training_on_a_frozen_map_has_the_gradients_of_the_plain_formula(ids: list[int], each: bool) -> None:
    """Oracle: autograd through x Wᵀ + b and plan `loop`, in float64; once more differentiated, and many gradients at once."""
    A, B = (t.requires_grad_() for t in bank(5, 3, 6, 7, dtype=torch.float64))
    g = torch.Generator().manual_seed(1)
    W, b = torch.randn(7, 6, generator=g, dtype=torch.float64), torch.randn(7, generator=g, dtype=torch.float64)
    x = torch.randn(len(ids), 3, 6, generator=g, dtype=torch.float64).requires_grad_()
    scale: Any = torch.arange(1.0, 6).double() if each else 0.7
    here = pick(ids)

    def fused(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return frozen_per_row(x, A, B, here, x @ W.T + b, W, scale=scale)

    wanted = per_row(x, A, B, here, x @ W.T + b, scale=scale, plan="loop")
    got = fused(x, A, B)
    torch.testing.assert_close(got, wanted)
    seeds = torch.randn(3, *got.shape, generator=g, dtype=torch.float64)
    many = torch.autograd.grad(got, (x, A, B), seeds, is_grads_batched=True, retain_graph=True)
    for i, seed in enumerate(seeds):
        theirs = torch.autograd.grad(wanted, (x, A, B), seed, retain_graph=True)
        for mine, other, batched in zip(torch.autograd.grad(got, (x, A, B), seed, retain_graph=True), theirs, many):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(batched[i], other, rtol=1e-10, atol=1e-10)
    absent = sorted(set(range(5)) - set(ids))
    assert all((t[:, absent] == 0).all() for t in many[1:])
    assert torch.autograd.gradgradcheck(fused, (x, A, B))


@given(seed=st.integers(0, 20), plan=st.sampled_from(PLANS))
def test_rows_may_come_in_any_order(seed: int, plan: str) -> None:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (6,), generator=g).tolist()
    order = torch.randperm(6, generator=g)
    A, B = bank(4, 4, 8, 8)
    x = torch.randn(6, 2, 8, generator=g)
    whole = per_row(x, A, B, pick(ids), plan=plan)
    moved = per_row(x[order], A, B, pick([ids[i] for i in order]), plan=plan)
    torch.testing.assert_close(moved, whole[order], rtol=1e-4, atol=1e-4)


def test_smaller_ranks_are_padded_with_zeros() -> None:
    """Rows of A and columns of B that are zero change nothing."""
    A, B = bank(2, 4, 8, 8)
    A[1, 2:], B[1, :, 2:] = 0, 0
    x = torch.randn(3, 2, 8)
    small = per_row(x, A[1:, :2], B[1:, :, :2], pick([0, 0, 0]))
    torch.testing.assert_close(per_row(x, A, B, pick([1, 1, 1])), small)


def test_between_acts_on_the_latent_numbers() -> None:
    A, B = bank(3, 4, 8, 8)
    x, ids = torch.randn(4, 2, 8), [2, 0, 2, 1]
    wanted = torch.stack([(torch.relu(x[b] @ A[e].T)) @ B[e].T for b, e in enumerate(ids)])
    for plan in PLANS:
        torch.testing.assert_close(per_row(x, A, B, pick(ids), between=torch.relu, plan=plan), wanted, rtol=1e-4, atol=1e-4)


def test_mixing_outputs_is_not_mixing_parameters() -> None:
    """Both equal one expert for a one-hot gate; for a uniform gate of two they differ by the cross terms B_i A_j, exactly."""
    A, B = bank(2, 4, 8, 8)
    x = torch.randn(3, 5, 8)
    one = torch.tensor([[0.0, 1.0]])
    row = Pick([0], None)
    expected = x @ A[1].T @ B[1].T
    torch.testing.assert_close(mix_outputs(x, A, B, one.expand(3, 2)), expected)
    torch.testing.assert_close(mix_parameters(x, A, B, one, row), expected)
    half = torch.tensor([[0.5, 0.5]])
    outputs, parameters = mix_outputs(x, A, B, half.expand(3, 2)), mix_parameters(x, A, B, half, row)
    assert not torch.allclose(outputs, parameters, atol=1e-2)
    torch.testing.assert_close(parameters, x @ A.mean(0).T @ B.mean(0).T, rtol=1e-4, atol=1e-5)
    cross = 0.25 * (x @ A[0].T @ B[1].T + x @ A[1].T @ B[0].T - x @ A[0].T @ B[0].T - x @ A[1].T @ B[1].T)
    torch.testing.assert_close(parameters - outputs, cross, rtol=1e-4, atol=1e-4)


def test_mixing_by_token() -> None:
    A, B = bank(3, 2, 8, 8)
    x, gate, y = torch.randn(2, 4, 8), torch.rand(2, 4, 3), torch.randn(2, 4, 8)
    wanted = y + sum(gate[..., e, None] * (x @ A[e].T @ B[e].T) for e in range(3))
    torch.testing.assert_close(mix_outputs(x, A, B, gate, y), wanted, rtol=1e-4, atol=1e-4)


def test_heads_own_stretches_of_inputs_and_outputs() -> None:
    """Oracle: block q of the mixed A and B uses gate q alone."""
    A, B = bank(3, 2, 8, 12)
    gate = torch.rand(2, 4, 3)
    left, right = mixed_parameters(A, B, gate)
    for u in range(2):
        for q in range(4):
            mine, theirs = slice(2 * q, 2 * q + 2), slice(3 * q, 3 * q + 3)
            torch.testing.assert_close(left[u, :, mine], torch.einsum("e,erd->rd", gate[u, q], A[..., mine]))
            torch.testing.assert_close(right[u, theirs], torch.einsum("e,edr->dr", gate[u, q], B[:, theirs]))
    with pytest.raises(BadInput, match="5 heads do not divide"):
        mixed_parameters(A, B, torch.rand(1, 5, 3))


def test_bad_plans_and_rows() -> None:
    A, B = bank(2, 4, 8, 8)
    with pytest.raises(BadInput, match="did you mean 'gather'"):
        per_row(torch.randn(1, 2, 8), A, B, pick([0]), plan="gathr")
    with pytest.raises(BadInput, match="2 rows, the input 3"):
        per_row(torch.randn(3, 2, 8), A, B, pick([0, 1]))


def test_the_plan_follows_the_shape() -> None:
    """One expert loops; long inputs of few experts are grouped; else gather; never dense, whatever is asked for."""
    A, B = bank(32, 8, 256, 256)
    assert choose(torch.randn(4, 2, 256), A, B, pick([3] * 4)) == "loop"
    assert choose(torch.randn(4, 2, 256), A, B, pick([3, 1, 0, 2])) == "gather"
    assert choose(torch.randn(64, 64, 256), A, B, pick([3, 1] * 32)) == "grouped"
    assert choose(torch.randn(4, 8, 256), A[:2], B[:2], pick([0, 1, 0, 1])) == "gather"


@pytest.mark.parametrize("shape", [(4, 3), (16, 64)])
def test_a_broken_expert_stays_among_its_own_rows(shape: tuple[int, int]) -> None:
    """NaN in one expert, used or not: rows of the others are what they were."""
    A, B = bank(3, 4, 8, 8)
    A[0], B[0] = torch.nan, torch.nan
    x, ids = torch.randn(*shape, 8), [1, 0, 2, 1] * (shape[0] // 4)
    got = per_row(x, A, B, pick(ids))
    sound = [b for b, e in enumerate(ids) if e]
    torch.testing.assert_close(got[sound], by_hand(x, A, B, ids, None, 1.0)[sound], rtol=1e-4, atol=1e-4)
    assert got[1].isnan().all()
    assert per_row(x, A, B, pick([1, 2] * (shape[0] // 2))).isfinite().all()
