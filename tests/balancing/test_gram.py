"""Every source of the Gram matrix against plain autograd in float64, and the gradients that `backward` writes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import Balancer, backward
from pluribus.errors import BadInput, NonFinite

CELLS = {"a": torch.arange(0, 9), "b": torch.arange(5, 12), "c": torch.tensor([1, 3, 12])}  # rows 13, 14: no label at all


class Inverse(Balancer):
    needs = frozenset({"gram"})

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        return signal.diagonal().rsqrt()


class Norms(Balancer):
    needs = frozenset({"norms"})

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        assert signal.ndim == 1
        return signal.rsqrt()


class Scaled(Balancer):
    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        return 1 / signal


class Clipped(Balancer):
    """A direction of the Jacobian's entries."""

    needs = frozenset({"jacobian"})

    def direction(self, jacobian: Tensor, *, tasks: Any = None, losses: Any = None) -> Tensor:
        return jacobian.clamp(-0.1, 0.1).sum(0)


class Cross(Balancer):
    needs = frozenset({"cross_gram"})
    doors = ("backward",)
    batches = 3

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        return signal.sum(1)


def grads(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, b.abs().max().item()))


def heads_of(net: Any, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The plain gradient of each present task's head."""
    return {t: torch.autograd.grad(l, net.heads[t].weight, retain_graph=True)[0] for t, l in losses.items()}


def check_written(net: Any, heads: dict[str, Tensor], d: Tensor, scale: float = 1.0) -> None:
    """The shared part holds scale·d, the heads their plain gradients, an absent task's head nothing."""
    close(torch.cat([p.grad.flatten() for p in net.shared.parameters()]), scale * d)
    for task, head in net.heads.items():
        if task in heads:
            close(head.weight.grad, scale * heads[task])
        else:
            assert head.weight.grad is None, "an absent task's head was moved"


@pytest.mark.parametrize("through", ["features", "losses"])
@pytest.mark.parametrize("tasks", [("a", "b", "c"), ("c", "a"), ("b",)])
def test_the_full_gram_is_autograd_s(network: Any, jacobian: Callable[..., Tensor], through: str, tasks: tuple[str, ...]) -> None:
    net, _ = network
    torch.manual_seed(1)
    losses, z = net.losses(net.make(15), {t: CELLS[t] for t in tasks})
    J = jacobian(losses, list(net.shared.parameters()))
    heads = heads_of(net, losses)
    step = backward(losses, Inverse(), shared=net.shared, features=z if through == "features" else None, gram="full", scale=3.0)
    close(step.gram, J @ J.T)
    assert (step.source, step.tasks) == ("full", tasks)
    check_written(net, heads, J.T @ (J @ J.T).diagonal().rsqrt(), 3.0)


def test_the_feature_gram_is_autograd_s(network: Any) -> None:
    net, _ = network
    losses, z = net.losses(net.make(15), CELLS)
    rows = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0].flatten() for l in losses.values()])
    step = backward(losses, Inverse(), features=z)
    close(step.gram, rows @ rows.T)
    assert step.source == "features"


def test_the_last_layer_s_gram_is_autograd_s(build: Callable[[str], Any], jacobian: Callable[..., Tensor]) -> None:
    net = build("mlp")
    losses, z = net.losses(net.make(15), CELLS)
    J = jacobian(losses, list(net.shared.out.parameters()))
    for last in (None, net.shared.out):
        net.zero_grad()
        close(backward(losses, Inverse(), features=z, gram="last", last=last).gram, J @ J.T)
        losses, z = net.losses(net.make(15), CELLS)
        J = jacobian(losses, list(net.shared.out.parameters()))


def test_norms_are_the_gram_s_diagonal(build: Callable[[str], Any], jacobian: Callable[..., Tensor]) -> None:
    net = build("mlp")
    losses, _ = net.losses(net.make(15), CELLS)
    J = jacobian(losses, list(net.shared.parameters()))
    heads_of(net, losses)
    step = backward(losses, Norms(), shared=net.shared, gram="full")
    close(step.weights, J.square().sum(1).rsqrt())


def test_losses_only_with_shared_parameters(build: Callable[[str], Any], jacobian: Callable[..., Tensor]) -> None:
    """Heads stay plain although no gradient was heard."""
    net = build("mlp")
    losses, _ = net.losses(net.make(15), CELLS)
    J = jacobian(losses, list(net.shared.parameters()))
    heads = heads_of(net, losses)
    step = backward(losses, Scaled(), shared=net.shared, scale=0.5)
    assert step.source == "losses"
    check_written(net, heads, J.T @ step.weights, 0.5)


def test_a_direction_of_the_jacobian(network: Any, jacobian: Callable[..., Tensor]) -> None:
    net, _ = network
    losses, z = net.losses(net.make(15), CELLS)
    J = jacobian(losses, list(net.shared.parameters()))
    heads = heads_of(net, losses)
    for features in (None, z):
        net.zero_grad()
        step = backward(losses, Clipped(), shared=net.shared, features=features)
        assert step.source == "full"
        check_written(net, heads, J.clamp(-0.1, 0.1).sum(0))


def test_independent_batches(build: Callable[[str], Any], jacobian: Callable[..., Tensor]) -> None:
    net = build("mlp")
    batches = [net.losses(net.make(15), CELLS) for _ in range(3)]
    J = [jacobian(losses, list(net.shared.parameters())) for losses, _ in batches]
    w, heads = (J[0] @ J[1].T).sum(1), heads_of(net, batches[2][0])
    step = backward([losses for losses, _ in batches], Cross(), shared=net.shared)
    close(step.gram, J[0] @ J[1].T)
    check_written(net, heads, J[2].T @ w)
    net.zero_grad()
    batches = [net.losses(net.make(15), CELLS) for _ in range(3)]
    J = [jacobian(losses, list(net.shared.parameters())) for losses, _ in batches]
    heads = heads_of(net, batches[2][0])
    backward([losses for losses, _ in batches], Cross(), features=[z for _, z in batches])
    check_written(net, heads, J[2].T @ (J[0] @ J[1].T).sum(1))


def test_extra_is_added_unbalanced_and_gradients_accumulate(build: Callable[[str], Any], jacobian: Callable[..., Tensor]) -> None:
    net = build("mlp")
    shared = list(net.shared.parameters())
    wanted: Any = 0
    for _ in range(2):
        losses, _ = net.losses(net.make(15), CELLS)
        J = jacobian(losses, shared)
        wanted = wanted + 0.5 * (J.T @ (J @ J.T).diagonal().rsqrt() + torch.cat([2 * p.detach().flatten() for p in shared]))
        penalty = sum(p.square().sum() for p in shared)
        backward(losses, Inverse(), shared=net.shared, gram="full", extra=penalty, scale=0.5)
    close(torch.cat([p.grad.flatten() for p in shared]), wanted)


def test_weights_are_held_in_the_second_door_too(build: Callable[[str], Any], jacobian: Callable[..., Tensor]) -> None:
    net, balancer = build("mlp"), Inverse()
    for call in range(2):
        net.zero_grad()
        losses, _ = net.losses(net.make(15), CELLS)
        J = jacobian(losses, list(net.shared.parameters()))
        heads = heads_of(net, losses)
        w = (J @ J.T).diagonal().rsqrt() if call == 0 else w  # noqa: F821
        step = backward(losses, balancer, shared=net.shared, gram="full", every=2)
        check_written(net, heads, J.T @ w)
    assert (step.source, step.age) == ("held", 1)


def test_a_share_of_the_rows_measures_the_gram(build: Callable[[str], Any], jacobian: Callable[..., Tensor]) -> None:
    """rows=0.5: the Gram is that of the closure's rows, the gradient that of the whole batch."""
    net = build("mlp")
    x = net.make(15)
    part = {t: r[::2] for t, r in CELLS.items()}
    shares = []

    def closure(share: float) -> tuple[dict[str, Tensor], Tensor]:
        shares.append(share)
        return net.losses(x, part)

    small = jacobian(net.losses(x, part)[0], list(net.shared.parameters()))
    losses, z = net.losses(x, CELLS)
    J = jacobian(losses, list(net.shared.parameters()))
    heads = heads_of(net, losses)
    step = backward(losses, Inverse(), shared=net.shared, features=z, rows=0.5, closure=closure)
    close(step.gram, small @ small.T)
    assert shares == [0.5]
    check_written(net, heads, J.T @ (small @ small.T).diagonal().rsqrt())


def test_auto_says_what_it_picked_and_why(build: Callable[[str], Any]) -> None:
    net = build("mlp")
    apart = {"a": torch.arange(0, 5), "b": torch.arange(5, 10), "c": torch.arange(10, 15)}
    losses, z = net.losses(net.make(15), apart)
    picked = {
        "full": backward(losses, Inverse(), shared=net.shared),
        "grouped": backward(losses, Inverse(), shared=net.shared, cells=apart),
        "features": backward(losses, Inverse(), features=z),
    }
    losses, z = net.losses(net.make(15), apart)
    picked["losses"] = backward(losses, Scaled(), features=z)
    for source, step in picked.items():
        assert step.source == source
        assert len(step.why) > 10


def test_a_refused_batched_pass_goes_task_by_task(jacobian: Callable[..., Tensor]) -> None:
    """A custom function without a batching rule must cost time, not the result."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return g * 3 * x**2 * (1 if g.sum().item() == g.sum().item() else 0)  # .item() is refused under vmap

    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    z = Cube.apply(layer(torch.randn(6, 4, dtype=torch.float64)))
    losses = {"a": z.square().mean(), "b": z.sin().sum()}
    J = jacobian(losses, list(layer.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(backward(losses, Inverse(), features=z, gram="full").gram, J @ J.T)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["MGDA", "AlignedMTL", "IMTLG", "PCGrad"])
def test_gradients_are_torchjd_s(network: Any, name: str) -> None:
    """`.grad` after backward(gram="full") equals mtl_backward followed by jac_to_grad."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    from torchjd.autojac import jac_to_grad, mtl_backward

    net, _ = network
    torch.manual_seed(2)
    x = net.make(15)
    losses, z = net.losses(x, CELLS)
    torch.manual_seed(3)
    mtl_backward(list(losses.values()), features=z, parallel_chunk_size=1)
    jac_to_grad([p for p in net.shared.parameters() if p.requires_grad], getattr(aggregation, name)())
    wanted = grads(net)
    net.zero_grad()
    losses, z = net.losses(x, CELLS)
    torch.manual_seed(3)
    backward(losses, getattr(aggregation, name)(), features=z, gram="full")
    found = grads(net)
    assert found.keys() == wanted.keys()
    for key, g in wanted.items():
        close(found[key], g)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_shared_parameters_that_a_loss_does_not_reach(build: Callable[[str], Any]) -> None:
    net = build("mlp")
    losses, _z = net.losses(net.make(15), CELLS)
    losses["stray"] = net.shared.into.weight.square().sum()
    with pytest.raises(BadInput, match=r"'stray' does not reach \d+ of the \d+ shared parameters \(first: "):
        backward(losses, Inverse(), shared=net.shared, gram="full")
    with pytest.raises(BadInput, match=r"'a' does not reach 2 of the \d+"):
        backward(net.losses(net.make(15), CELLS)[0], Inverse(), shared=[*net.shared.parameters(), *net.heads["b"].parameters()])
    assert all(p.grad is None for p in net.parameters())


def test_nothing_says_what_is_shared(build: Callable[[str], Any]) -> None:
    net = build("mlp")
    losses, z = net.losses(net.make(15), CELLS)
    with pytest.raises(BadInput, match=r"shared= or features="):
        backward(losses, Inverse())
    with pytest.raises(BadInput, match=r"no shared parameters"):
        backward(losses, Inverse(), shared=[])
    with pytest.raises(BadInput, match=r"item 0 is not a parameter"):
        backward(losses, Inverse(), shared=[z])
    with pytest.raises(BadInput, match=r"needs features"):
        backward(losses, Inverse(), shared=net.shared, gram="last")
    with pytest.raises(BadInput, match=r"unknown source 'ful'"):
        backward(losses, Inverse(), shared=net.shared, gram="ful")


def test_a_missing_closure(build: Callable[[str], Any]) -> None:
    net = build("mlp")
    losses, _ = net.losses(net.make(15), CELLS)
    with pytest.raises(BadInput, match=r"closure"):
        backward(losses, Inverse(), shared=net.shared, rows=0.25)
    with pytest.raises(BadInput, match=r"rows"):
        backward(losses, Inverse(), shared=net.shared, rows=1.5, closure=lambda share: losses)


def test_too_few_batches(build: Callable[[str], Any]) -> None:
    net = build("mlp")
    losses, _ = net.losses(net.make(15), CELLS)
    with pytest.raises(BadInput, match=r"3 independent batches"):
        backward(losses, Cross(), shared=net.shared)
    with pytest.raises(BadInput, match=r"different tasks"):
        backward([losses, losses, {"a": losses["a"]}], Cross(), shared=net.shared)


def test_a_loss_that_is_not_finite_is_skipped_or_raised(build: Callable[[str], Any]) -> None:
    net = build("mlp")
    losses, _ = net.losses(net.make(15), CELLS)
    losses["b"] = losses["b"] * float("nan")
    with pytest.raises(NonFinite, match=r"'b'"):
        backward(losses, Inverse(), shared=net.shared)
    assert backward(losses, Inverse(), shared=net.shared, on_nonfinite="skip").skipped
    assert all(p.grad is None for p in net.parameters())


def test_sharded_parameters_are_refused(build: Callable[[str], Any]) -> None:
    """FSDP and ZeRO hold parameters in pieces: only losses and features can serve."""
    net = build("mlp")
    net.shared.out.weight._fsdp_flattened = True
    losses, z = net.losses(net.make(15), CELLS)
    for gram in ("full", "last"):
        with pytest.raises(BadInput, match=r"sharded"):
            backward(losses, Inverse(), features=z, gram=gram)
    backward(losses, Inverse(), features=z)
    losses, z = net.losses(net.make(15), CELLS)
    backward(losses, Scaled(), features=z)
