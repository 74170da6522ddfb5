"""The grouped Gram and gradient against plain autograd: exact, in one pass, and refused where it cannot be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pluribus.balancing import Balancer, backward
from pluribus.balancing.balancer import _SAID
from pluribus.errors import BadInput

APART = {"a": torch.tensor([0, 3, 4, 9, 10]), "b": torch.tensor([1, 7]), "c": torch.tensor([2, 5, 6, 12, 13, 14])}


class Inverse(Balancer):
    needs = frozenset({"gram"})

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        return signal.diagonal().rsqrt()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, b.abs().max().item()))


def compare(net: Any, cells: dict[str, Tensor], jacobian: Callable[..., Tensor], balancer: Balancer, n: int = 15) -> Any:
    """One step; its Gram and shared gradients must be autograd's."""
    net.zero_grad()
    losses, _z = net.losses(net.make(n), cells)
    shared = list(net.shared.parameters())
    J = jacobian(losses, shared)
    heads = {t: torch.autograd.grad(l, net.heads[t].bias, retain_graph=True)[0] for t, l in losses.items()}
    mask = {t: torch.zeros(n, dtype=torch.bool).index_fill(0, r, True) for t, r in cells.items()}
    step = backward(losses, balancer, shared=net.shared, gram="grouped", cells=mask, scale=2.0)
    close(step.gram, J @ J.T)
    close(torch.cat([p.grad.flatten() for p in shared]), 2.0 * J.T @ (J @ J.T).diagonal().rsqrt())
    for t, g in heads.items():
        close(net.heads[t].bias.grad, 2.0 * g)
    return step


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tasks", [("a", "b", "c"), ("c", "b"), ("a",)])
def test_grouped_is_exact(network: Any, jacobian: Callable[..., Tensor], tasks: tuple[str, ...]) -> None:
    """With unlabelled rows, few tasks and one task; where a layer does not allow it, T passes give the same."""
    net, grouped = network
    torch.manual_seed(3)
    step = compare(net, {t: APART[t] for t in tasks}, jacobian, Inverse())
    if len(tasks) > 1:
        assert (step.source == "grouped") == grouped, step.why


def test_other_cells_in_the_next_step(network: Any, jacobian: Callable[..., Tensor]) -> None:
    """What is remembered of the graph must not remember the rows or the tasks."""
    net, grouped = network
    if not grouped:
        pytest.skip("falls back")
    balancer, names = Inverse(), ("a", "b", "c")
    compare(net, {"b": APART["b"]}, jacobian, balancer)
    for step in range(3):
        rows = torch.randperm(12, generator=torch.Generator().manual_seed(step)).view(3, 4)
        assert compare(net, dict(zip(names, rows)), jacobian, balancer, n=12 + step).source == "grouped"


def test_layers_with_many_places_take_the_other_form(jacobian: Callable[..., Tensor], build: Callable[..., Any]) -> None:
    """Long sequences: one weight gradient a task instead of the places' kernel; small vocabularies: a table a task."""
    net = build("transformer")
    net.make = lambda n: torch.randint(11, (n, 40))
    net.shared.position = nn.Parameter(torch.randn(1, 40, 8, dtype=torch.float64))
    assert compare(net, APART, jacobian, Inverse()).source == "grouped"


def test_eval_mode_batchnorm_couples_nothing(build: Callable[..., Any], jacobian: Callable[..., Tensor]) -> None:
    net = build("batchnorm")
    net.shared(net.make(20))
    net.shared.eval()
    assert compare(net, APART, jacobian, Inverse()).source == "grouped"


def test_a_fall_back_is_said_once(build: Callable[..., Any], jacobian: Callable[..., Tensor]) -> None:
    net, balancer = build("batchnorm"), Inverse()
    _SAID.clear()
    with pytest.warns(UserWarning, match=r"falls back.*coupled"):
        step = compare(net, APART, jacobian, balancer)
    assert "coupled" in step.why
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(net, APART, jacobian, balancer)


def test_rows_of_two_tasks_fall_back(build: Callable[..., Any], jacobian: Callable[..., Tensor]) -> None:
    net = build("mlp")
    _SAID.clear()
    with pytest.warns(UserWarning, match=r"labelled for several tasks: split them"):
        assert compare(net, {**APART, "b": torch.tensor([0, 1])}, jacobian, Inverse()).source == "full"


def test_wrong_cells_are_noticed(build: Callable[..., Any], jacobian: Callable[..., Tensor]) -> None:
    """Cells that contradict the losses must not give a wrong Gram."""
    net = build("mlp")
    _SAID.clear()
    x, shared = net.make(15), list(net.shared.parameters())
    losses, z = net.losses(x, APART)
    J = jacobian(losses, shared)
    with pytest.warns(UserWarning, match=r"cells are wrong"):
        step = backward(losses, Inverse(), features=z, gram="grouped", cells={**APART, "b": torch.tensor([8, 11])})
    close(step.gram, J @ J.T)


def test_one_pass_through_the_shared_part(build: Callable[..., Any]) -> None:
    """The shared part's activations are differentiated once, not T times."""

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.n += func in (torch.ops.aten.tanh_backward.default, torch.ops.aten.threshold_backward.default)
            return func(*args, **(kwargs or {}))

    net = build("mlp")
    balancer = Inverse()
    x = net.make(15)
    losses, z = net.losses(x, APART)
    backward(losses, balancer, features=z, cells=APART)  # the first call also learns how the layers lay out their rows
    losses, z = net.losses(x, APART)
    with Count() as count:
        backward(losses, balancer, features=z, cells=APART)
    assert count.n == 3  # one for each activation of the shared part


def test_nothing_of_size_tasks_times_parameters_is_held() -> None:
    """At T = 20 the largest tensor made in a grouped, a features or a last step stays far below T × P."""
    torch.manual_seed(0)
    T, width = 20, 96
    shared = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(T))
    cells = {str(t): torch.tensor([2 * t, 2 * t + 1]) for t in range(T)}
    P = sum(p.numel() for p in shared.parameters())

    class Largest(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor):
                    self.n = max(self.n, tensor.untyped_storage().nbytes() // 4)
            return out

    for gram in ("grouped", "features", "last"):
        z = shared(torch.randn(2 * T, 8))
        losses = {t: heads[int(t)](z[r]).square().mean() for t, r in cells.items()}
        with Largest() as largest:
            step = backward(losses, Inverse(), features=z, cells=cells, gram=gram)
        assert step.source == gram
        assert largest.n <= P, (gram, largest.n, T * P)


def test_cells_must_name_the_tasks(build: Callable[..., Any]) -> None:
    net = build("mlp")
    losses, _ = net.losses(net.make(15), APART)
    with pytest.raises(BadInput, match=r"unknown task 'd'"):
        backward(losses, Inverse(), shared=net.shared, cells={**APART, "d": torch.tensor([0])})
    with pytest.raises(BadInput, match=r"no rows are given for task 'c'"):
        backward(losses, Inverse(), shared=net.shared, cells={"a": APART["a"], "b": APART["b"]})
    with pytest.raises(BadInput, match=r"cells="):
        backward(losses, Inverse(), shared=net.shared, gram="grouped")
