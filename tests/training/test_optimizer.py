"""SliceAdamW: AdamW where everything takes part, nothing at all where something does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pluribus.training import SliceAdamW


def _grads(shape: tuple[int, ...], steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("stacked", [False, True])
def test_equals_torch_adamw_when_all_slices_are_active(stacked: bool) -> None:
    """If this fails, a study's networks are trained by another optimiser than the one the docs name."""
    start = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = SliceAdamW([ours], stacked=[ours] if stacked else [], lr=0.01, weight_decay=0.1)
    b = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for gradient in _grads((4, 3, 2), 20):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@given(st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=6))
def test_absent_slices_and_moments_are_bit_identical(steps: list[set[int]]) -> None:
    """If this fails, an absent task's head drifts by weight decay and stale momentum."""
    p = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = SliceAdamW([p], stacked=[p], lr=0.1, weight_decay=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    for active in steps:
        before = {name: value.clone() for name, value in optimizer.state[p].items()} | {"p": p.detach().clone()}
        p.grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(len(active)))
        optimizer.step(active={p: torch.tensor(sorted(active), dtype=torch.int64)})
        after = {**optimizer.state[p], "p": p.detach()}
        for name in before:
            for i in range(5):
                same = torch.equal(before[name][i], after[name][i])
                assert same != (i in active), (name, i)


def test_each_slice_counts_its_own_steps() -> None:
    """A slice that joins late must be corrected for bias as if it had just begun: equal to training it alone."""
    start = torch.randn(2, 3)
    both, alone = nn.Parameter(start.clone()), nn.Parameter(start[1:].clone())
    a = SliceAdamW([both], stacked=[both], lr=0.1)
    b = SliceAdamW([alone], stacked=[alone], lr=0.1)
    for step, gradient in enumerate(_grads((2, 3), 6)):
        both.grad = gradient.clone()
        late = step >= 3
        a.step(active={both: torch.tensor([0, 1] if late else [0])})
        if late:
            alone.grad = gradient[1:].clone()
            b.step()
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-5)  # one kernel for all, or slice by slice: rounding adds up


def test_parameter_without_gradient_is_untouched() -> None:
    p = nn.Parameter(torch.ones(3))
    SliceAdamW([p], weight_decay=0.5).step()
    assert torch.equal(p.detach(), torch.ones(3))
