"""Networks on which the engine is checked: each a shared part and T heads, in float64, with holes in the labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

TASKS = ("a", "b", "c")


class Multi(nn.Module):
    """shared(x) -> [B, d], one linear head a task; each task's loss is a mean over its own rows."""

    def __init__(self, shared: nn.Module, make: Callable[[int], Tensor], width: int, tied: bool = False) -> None:
        super().__init__()
        self.shared, self.make = shared, make
        self.heads = nn.ModuleDict({t: nn.Linear(width, 2) for t in TASKS})

    def losses(self, x: Tensor, cells: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        z = self.shared(x)
        scale = dict(zip(TASKS, (1.0, 20.0, 0.3)))
        return {t: scale[t] * (self.heads[t](z[r]) - 1).square().mean() for t, r in cells.items()}, z


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.scale = nn.Linear(6, 8), nn.LayerNorm(8), nn.Parameter(torch.rand(8) + 0.5)
        self.inner, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.into(x))
        return torch.tanh(self.out(h + self.scale * torch.relu(self.inner(self.norm(h)))))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.tanh(self.norm(self.first(x))))).mean((2, 3))


class Tokens(nn.Module):
    """Embedding with padding, learned positions, two transformer layers (whose attention runs tokens first)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.position = nn.Parameter(0.1 * torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.embed(x) + self.position).mean(1)


class Columns(nn.Module):
    """An embedding a categorical column, joined and mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 3) for n in (4, 7))
        self.mix = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([table(x[:, i]) for i, table in enumerate(self.tables)], 1))


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.loop = nn.Linear(6, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.into(x))
        return torch.tanh(self.loop(torch.tanh(self.loop(h))))


def _batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 4))


def _recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    return Last()


def numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


# name -> (shared part, inputs, width of the features, whether the grouped Gram serves it)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], int, bool]] = {
    "mlp": (Residual, numbers(6), 4, True),
    "cnn": (Images, numbers(2, 7, 7), 6, True),
    "transformer": (Tokens, lambda n: torch.randint(11, (n, 5)), 8, True),
    "embedding": (Columns, lambda n: torch.stack([torch.randint(4, (n,)), torch.randint(7, (n,))], 1), 5, True),
    "tied": (Tied, numbers(6), 5, False),
    "batchnorm": (_batch_norm, numbers(6), 4, False),
    "recurrent": (_recurrent, numbers(4, 3), 4, False),
}


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[Multi, bool]:
    """A network, and whether the grouped Gram serves it."""
    torch.manual_seed(7)
    shared, make, width, grouped = NETWORKS[request.param]
    return Multi(shared(), make, width).double(), grouped


@pytest.fixture
def build() -> Callable[[str], Multi]:
    """A network by name."""

    def make(name: str) -> Multi:
        torch.manual_seed(7)
        shared, inputs, width, _ = NETWORKS[name]
        return Multi(shared(), inputs, width).double()

    return make


@pytest.fixture
def jacobian() -> Callable[..., Tensor]:
    """J [T, P] by plain autograd, a task after the other."""

    def rows(losses: dict[str, Tensor], parameters: list[Tensor]) -> Tensor:
        return torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(l, parameters, retain_graph=True)]) for l in losses.values()]
        )

    return rows
