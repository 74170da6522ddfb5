"""The passes through the heads: one for all where they begin with linear layers, one each where not; both are autograd's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import Balancer, combine
from pluribus.balancing.heads import LinearPasses, Passes, through_heads

D = 6


class Inverse(Balancer):
    needs = frozenset({"gram"})

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        return signal.diagonal().rsqrt()


def linear(out: int, bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(D, out, bias=bias)


class Two(nn.Module):
    """Two linear layers on the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, 3), nn.Linear(D, 3, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.a(z)) * self.b(z)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(D), nn.Linear(D, 2)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.norm(z))


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, 2))


CASES: dict[str, tuple[list[Callable[[], nn.Module]], bool]] = {
    "scalar": ([linear(1)] * 3, True),
    "wide": ([linear(40), linear(1), linear(30, bias=False)], True),
    "deep": ([deep, linear(2), deep], True),
    "two entries": ([Two, linear(1), Two], True),
    "norm first": ([linear(1), Norm, linear(1)], False),
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Any:
    makers, at_once = CASES[request.param]
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, D), nn.Tanh()).double()
    heads = nn.ModuleList(make() for make in makers).double()
    x = torch.randn(9, 4, dtype=torch.float64)
    z = encoder(x)
    losses = {str(t): (3.0**t) * (head(z) - 1).square().mean() for t, head in enumerate(heads)}
    return encoder, heads, z, losses, at_once


def test_gram_rows_and_mixture_are_autograd_s(case: Any) -> None:
    _, heads, z, losses, at_once = case
    wanted = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0] for l in losses.values()])
    passes = through_heads(list(losses), list(losses.values()), (z,))
    assert isinstance(passes, LinearPasses if at_once else Passes)
    flat = wanted.flatten(1)
    torch.testing.assert_close(passes.gram(), flat @ flat.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(passes.rows[0], wanted, rtol=1e-10, atol=1e-12)
    w = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(passes.mix(w)[0], torch.tensordot(w, wanted, 1), rtol=1e-10, atol=1e-12)
    assert passes.heads is not None
    plain = torch.autograd.grad(sum(losses.values()), list(heads.parameters()), retain_graph=True)
    for p, g in zip(heads.parameters(), plain, strict=True):
        torch.testing.assert_close(passes.heads[p], g, rtol=1e-10, atol=1e-12)


def test_combine_is_the_same_either_way(case: Any) -> None:
    encoder, heads, z, losses, _ = case
    rows = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0].flatten() for l in losses.values()])
    w = (rows @ rows.T).diagonal().rsqrt()
    shared = torch.autograd.grad(sum(a * l for a, l in zip(w, losses.values())), list(encoder.parameters()), retain_graph=True)
    plain = torch.autograd.grad(sum(losses.values()), list(heads.parameters()), retain_graph=True)
    combine(losses, Inverse(), features=z).backward()
    for p, g in zip([*encoder.parameters(), *heads.parameters()], [*shared, *plain], strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-12)


def test_a_layer_that_two_tasks_share_goes_task_by_task() -> None:
    """Its δ in one pass would be the sum of both tasks'."""
    torch.manual_seed(0)
    z, neck = torch.randn(5, D, dtype=torch.float64, requires_grad=True) * 1, nn.Linear(D, 4).double()
    h = neck(z)
    losses = {"a": h.square().mean(), "b": h.sin().sum(), "c": nn.Linear(D, 1).double()(z).mean()}
    passes = through_heads(list(losses), list(losses.values()), (z,))
    assert isinstance(passes, Passes)
    wanted = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0] for l in losses.values()])
    torch.testing.assert_close(passes.rows[0], wanted)


def test_a_loss_of_two_heads_goes_task_by_task() -> None:
    """Task b's loss reads task a's head too: a's δ is not a's alone."""
    torch.manual_seed(0)
    z = torch.randn(5, D, dtype=torch.float64, requires_grad=True) * 1
    one, two = nn.Linear(D, 1).double()(z), nn.Linear(D, 1).double()(z)
    losses = {"a": one.square().mean(), "b": (two - one).square().mean()}
    passes = through_heads(list(losses), list(losses.values()), (z,))
    assert isinstance(passes, Passes)
    wanted = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0] for l in losses.values()])
    torch.testing.assert_close(passes.rows[0], wanted)


def test_bfloat16_heads_are_measured_in_float32() -> None:
    torch.manual_seed(0)
    z = torch.randn(64, D, requires_grad=True) * 1
    heads = nn.ModuleList(nn.Linear(D, 1) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = z.bfloat16()
        losses = {str(t): (head(low).float() - 1).square().mean() for t, head in enumerate(heads)}
    passes = through_heads(list(losses), list(losses.values()), (low,))
    assert isinstance(passes, LinearPasses)
    assert passes.gram().dtype == torch.float32
    exact = {str(t): (head(z) - 1).square().mean() for t, head in enumerate(heads)}
    reference = through_heads(list(exact), list(exact.values()), (z,))
    torch.testing.assert_close(passes.gram(), reference.gram(), rtol=0.1, atol=1e-3 * reference.gram().max().item())
