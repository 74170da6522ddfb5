"""The doors: one scalar, balanced below the features, plain above them, at any scale; bad input is one clear line."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import MGDA, Balancer, EqualWeighting, GradDrop, combine
from pluribus.errors import BadInput, NonFinite

TASKS = ("seg", "depth", "normal")


class Inverse(Balancer):
    """A Gram method of the test's own: w = 1 / ‖g_t‖; counts its calls as state."""

    needs = frozenset({"gram"})
    mutable = ("calls",)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        self.calls = dict(self.calls)
        for task in tasks:
            self.calls[task] = self.calls.get(task, 0) + 1
        return signal.diagonal().rsqrt()

    def reset(self) -> None:
        self.calls: dict[str, int] = {}


class Scaled(Inverse):
    """w_t = 1 / ℓ_t from the losses alone."""

    needs = frozenset({"losses"})

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        super().compute(torch.diag(signal**2), tasks, losses)
        return 1 / signal


class Signs(Balancer):
    """A direction, not weights: the sign of the summed gradient."""

    needs = frozenset({"jacobian"})

    def direction(self, jacobian: Tensor, *, tasks: object = None, losses: object = None) -> Tensor:
        return jacobian.sum(0).sign()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh())
        self.neck = nn.Linear(6, 4)  # above the features, shared by two heads
        self.heads = nn.ModuleDict({"seg": nn.Linear(4, 3), "depth": nn.Linear(4, 1), "normal": nn.Linear(6, 2)})

    def losses(self, x: Tensor, tasks: tuple[str, ...] = TASKS) -> tuple[dict[str, Tensor], Tensor]:
        z = self.encoder(x)
        read = {"seg": lambda: self.neck(z), "depth": lambda: self.neck(z), "normal": lambda: z}
        scale = {"seg": 1.0, "depth": 30.0, "normal": 0.1}
        return {t: scale[t] * self.heads[t](read[t]()).square().mean() for t in tasks}, z


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def grads(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def expected(net: Net, x: Tensor, w: Callable[[Tensor], Tensor], scale: float = 1.0, extra: float = 0.0) -> dict[str, Tensor]:
    """Plain autograd: Σ w_t ℓ_t below z, Σ ℓ_t above it, extra everywhere, with w from the Gram of ∂ℓ_t/∂z."""
    losses, z = net.losses(x)
    rows = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0].flatten() for l in losses.values()])
    weights = w(rows @ rows.T)
    penalty = extra * sum(p.square().sum() for p in net.parameters())
    weighted = sum(a * l for a, l in zip(weights, losses.values())) + penalty
    plain = sum(losses.values()) + penalty
    found = {}
    for name, p in net.named_parameters():
        found[name] = scale * torch.autograd.grad(weighted if name.startswith("encoder") else plain, p, retain_graph=True)[0]
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("scale", [1.0, 1 / 8, 65536.0])
@pytest.mark.parametrize("extra", [0.0, 0.3])
def test_combine_balances_below_the_features_and_nothing_above(net: Net, x: Tensor, scale: float, extra: float) -> None:
    """Wrong weights in a head, or a scale that reaches only a part, would show here."""
    losses, z = net.losses(x)
    penalty = extra * sum(p.square().sum() for p in net.parameters()) if extra else None
    balancer = Inverse()
    loss = combine(losses, balancer, features=z, extra=penalty)
    (scale * loss).backward()
    assert_same(grads(net), expected(net, x, lambda G: G.diagonal().rsqrt(), scale, extra))
    assert loss.item() == pytest.approx(sum(l.item() for l in losses.values()) + (penalty.item() if extra else 0))
    assert balancer.last.tasks == TASKS
    assert balancer.last.source == "features"


def test_accumulation_adds_up(net: Net, x: Tensor) -> None:
    """Two halves at half scale must leave the sum of the two halves' own gradients."""
    wanted: dict[str, Tensor] = {}
    for half in x.chunk(2):
        for name, g in expected(net, half, lambda G: G.diagonal().rsqrt(), 0.5).items():
            wanted[name] = wanted.get(name, 0) + g
    for half in x.chunk(2):
        losses, z = net.losses(half)
        (combine(losses, Inverse(), features=z) / 2).backward()
    assert_same(grads(net), wanted)


def test_a_balancer_of_losses_with_features_spares_the_heads(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    w = torch.tensor([1 / l.item() for l in losses.values()], dtype=torch.float64)
    combine(losses, Scaled(), features=z).backward()
    assert_same(grads(net), expected(net, x, lambda G: w))


def test_without_features_the_heads_are_weighted_too(net: Net, x: Tensor) -> None:
    losses, _ = net.losses(x)
    loss = combine(losses, Scaled(), extra=torch.ones((), dtype=torch.float64))
    assert loss.item() == pytest.approx(4.0)  # Σ ℓ_t/ℓ_t + 1
    loss.backward()
    found = grads(net)
    net.zero_grad()
    again, _ = net.losses(x)
    sum(l / l.item() for l in again.values()).backward()
    assert_same(found, grads(net))


def test_equal_weighting_is_the_plain_step(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    combine(losses, EqualWeighting(), features=z).backward()
    assert_same(grads(net), expected(net, x, lambda G: torch.ones(3, dtype=torch.float64)))


def test_several_features_are_one_long_feature(net: Net, x: Tensor) -> None:
    """Cutting z in two and passing both parts must give the same Gram and the same gradients."""
    _, z = net.losses(x)
    a, b = z.split([2, 4], 1)
    whole = torch.cat([a, b], 1)
    losses = {t: net.heads[t](net.neck(whole) if t != "normal" else whole).square().mean() for t in TASKS}
    one, two = Inverse(), Inverse()
    combine(losses, one, features=whole).backward(retain_graph=True)
    first = grads(net)
    net.zero_grad()
    combine(losses, two, features=(a, b)).backward()
    torch.testing.assert_close(one.last.gram, two.last.gram)
    assert_same(grads(net), first)


def test_a_task_may_read_only_one_of_the_features(net: Net, x: Tensor) -> None:
    z = net.encoder(x)
    a, b = z.split([4, 2], 1)
    losses = {"left": a.square().mean(), "right": (b**3).mean(), "both": (a.sum(1) * b.sum(1)).mean()}
    balancer = Inverse()
    combine(losses, balancer, features=(a, b)).backward()
    assert balancer.last.gram[0, 1] == 0
    assert balancer.last.gram[0, 2] != 0


def test_a_direction_is_taken_at_the_features(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    rows = [torch.autograd.grad(l, z, retain_graph=True)[0] for l in losses.values()]
    wanted = torch.autograd.grad(z, list(net.encoder.parameters()), sum(rows).sign(), retain_graph=True)
    combine(losses, Signs(), features=z).backward()
    for p, g in zip(net.encoder.parameters(), wanted):
        torch.testing.assert_close(p.grad, g)


def test_graddrop_takes_its_features_form(net: Net, x: Tensor) -> None:
    """Purity from sign(Z)·g summed over the batch, masks sample by sample: the form that the method is defined in."""
    losses, z = net.losses(x)
    rows = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0] for l in losses.values()])
    d = GradDrop(seed=3).on_features(rows, z, tasks=TASKS)
    wanted = torch.autograd.grad(z, list(net.encoder.parameters()), d, retain_graph=True)
    combine(losses, GradDrop(seed=3), features=z).backward()
    for p, g in zip(net.encoder.parameters(), wanted):
        torch.testing.assert_close(p.grad, g)


def test_an_absent_task_has_no_vote_and_no_state_moves(net: Net, x: Tensor) -> None:
    balancer = Inverse()
    for tasks in (TASKS, ("normal", "seg"), ("seg",)):
        losses, z = net.losses(x, tasks)
        combine(losses, balancer, features=z).backward()
        assert balancer.last.tasks == tasks
        assert balancer.last.weights.shape == (len(tasks),)
    assert balancer.calls == {"seg": 3, "depth": 1, "normal": 2}


def test_the_order_of_tasks_does_not_matter(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    combine(losses, Inverse(), features=z).backward()
    first = grads(net)
    net.zero_grad()
    losses, z = net.losses(x, TASKS[::-1])
    combine(losses, Inverse(), features=z).backward()
    assert_same(grads(net), first)


def test_the_last_layer_can_speak_for_the_shared_part(net: Net, x: Tensor) -> None:
    """gram="last": G of ∂ℓ_t/∂W at the last shared layer, found by itself or named."""
    for last in (None, net.encoder[2], list(net.encoder[2].parameters())):
        losses, z = net.losses(x)
        layer = list(net.encoder[2].parameters())
        rows = torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(l, layer, retain_graph=True)]) for l in losses.values()]
        )
        balancer = Inverse()
        combine(losses, balancer, features=z, gram="last", last=last)
        torch.testing.assert_close(balancer.last.gram, rows @ rows.T, rtol=1e-9, atol=1e-12)


def test_weights_are_held_between_every_k_calls(net: Net, x: Tensor) -> None:
    balancer, weights = Inverse(), []
    for step in range(5):
        losses, z = net.losses(x * (1 + step))
        combine(losses, balancer, features=z, every=2).backward()
        weights.append(balancer.last.weights)
    assert balancer.calls["seg"] == 3
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[1], weights[2])
    losses, z = net.losses(x, ("seg",))  # another set of tasks: afresh
    combine(losses, balancer, features=z, every=2)
    assert balancer.last.age == 0


def test_held_weights_are_part_of_the_state(net: Net, x: Tensor) -> None:
    """If this fails, a run that is resumed between two computations of the weights is another run."""
    file, first = io.BytesIO(), MGDA()
    losses, z = net.losses(x)
    combine(losses, first, features=z, every=3).backward()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = MGDA()
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(1, 4):
        for balancer in (first, second):
            losses, z = net.losses(x * (1 + step))
            combine(losses, balancer, features=z, every=3).backward()
        assert torch.equal(first.last.weights, second.last.weights)
        assert first.last.source == second.last.source == ("features" if step == 3 else "held")
    losses, z = net.losses(x)
    combine(losses, first, features=z).backward()
    assert first.state_dict() == {}


def test_held_weights_give_the_same_gradients(net: Net, x: Tensor) -> None:
    balancer = Inverse()
    losses, z = net.losses(x)
    combine(losses, balancer, features=z, every=9).backward()
    first = grads(net)
    net.zero_grad()
    losses, z = net.losses(x)
    combine(losses, balancer, features=z, every=9).backward()
    assert balancer.last.source == "held"
    assert_same(grads(net), first)


def test_no_head_is_traversed_twice(net: Net, x: Tensor) -> None:
    """A hook on a head's hidden layer must fire once in the whole step."""
    calls: list[int] = []
    net.neck.weight.requires_grad_()
    z = net.encoder(x)
    hidden = net.neck(z)
    hidden.register_hook(lambda g: calls.append(1))
    combine({"seg": net.heads["seg"](hidden).square().mean(), "normal": z.square().mean()}, Inverse(), features=z).backward()
    assert len(calls) == 1
    assert net.neck.weight.grad is not None


def test_a_validation_step_leaves_the_balancer_alone(net: Net, x: Tensor) -> None:
    """The same line runs under no_grad in other people's loops: the plain sum, no state moved, NaN or not."""
    balancer = Inverse()
    with torch.no_grad():
        losses, z = net.losses(x)
        value = combine(losses, balancer, features=z, extra=torch.ones((), dtype=torch.float64))
    assert value.item() == pytest.approx(1 + sum(loss.item() for loss in losses.values()))
    assert balancer.calls == {}
    assert balancer.last is None


def test_float16_gradients_do_not_vanish() -> None:
    """A mean over many rows makes ∂ℓ/∂z of 1e-8 in float16: the Gram must not be lost, the heads stay plain."""
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 4), nn.Linear(4, 1)
    x = 1e-3 * torch.randn(4096, 4)

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        encoder.zero_grad(), head.zero_grad()
        z = encoder(x).to(dtype)
        losses = {"a": 1e-3 * head(z.float()).square().mean(), "b": 1e-3 * z.float().sum(1).square().mean()}
        balancer = Inverse()
        (combine(losses, balancer, features=z) * 65536).backward()
        return balancer.last.gram, encoder.weight.grad.clone(), head.weight.grad.clone()

    for half, full in zip(run(torch.float16), run(torch.float32)):
        torch.testing.assert_close(half, full, rtol=0.1, atol=1e-12)


def test_float16_gradients_do_not_overflow() -> None:
    """The passes' own loss scale must give way where a loss has large gradients; nor may a large Gram vanish."""
    z = torch.randn(4, 3, dtype=torch.float16, requires_grad=True)
    balancer = Inverse()
    y = z * 1
    combine({"a": 300 * y.float().sum(), "b": 1e-5 * y.float().sum()}, balancer, features=y)
    gram = balancer.last.gram.sqrt()
    assert gram[0, 0].item() == pytest.approx(300 * 12**0.5, rel=1e-3)
    assert gram[1, 1].item() == pytest.approx(1e-5 * 12**0.5, rel=1e-2)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_scalar(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    with pytest.raises(BadInput, match=r"'depth'.*not a scalar"):
        combine({**losses, "depth": z}, Inverse(), features=z)


def test_a_loss_without_a_graph(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    with pytest.raises(BadInput, match=r"'depth'.*no graph"):
        combine({**losses, "depth": losses["depth"].detach()}, Inverse(), features=z)


def test_a_loss_on_another_device(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    elsewhere = torch.zeros((), device="meta", requires_grad=True)
    with pytest.raises(BadInput, match=r"'depth'.*meta"):
        combine({**losses, "depth": elsewhere}, Inverse(), features=z)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(net: Net, x: Tensor, value: float) -> None:
    """Raised with the task's name, or skipped: no gradient written, no state moved."""
    losses, z = net.losses(x)
    losses["depth"] = losses["depth"] * value
    balancer = Inverse()
    with pytest.raises(NonFinite, match=r"depth"):
        combine(losses, balancer, features=z)
    loss = combine(losses, balancer, features=z, on_nonfinite="skip")
    loss.backward()
    assert all(p.grad is None for p in net.parameters())
    assert balancer.calls == {}
    assert balancer.last.skipped
    assert balancer.last.weights is None
    with pytest.raises(BadInput, match=r"on_nonfinite"):
        combine(losses, balancer, features=z, on_nonfinite="ignore")


def test_features_that_are_not_on_a_loss_s_path(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    stray = net.encoder(x).mean()
    with pytest.raises(BadInput, match=r"features.*'stray'"):
        combine({**losses, "stray": stray}, Inverse(), features=z)
    with pytest.raises(BadInput, match=r"no graph"):
        combine(losses, Inverse(), features=z.detach())


def test_wrong_doors_name_the_right_one(net: Net, x: Tensor) -> None:
    class Two(Inverse):
        doors = ("backward",)

    losses, z = net.losses(x)
    with pytest.raises(BadInput, match=r"backward\("):
        combine(losses, Two(), features=z)
    with pytest.raises(BadInput, match=r"features=z.*backward\("):
        combine(losses, Inverse())
    with pytest.raises(BadInput, match=r"is not a balancer"):
        combine(losses, "nash", features=z)


def test_no_loss_at_all(net: Net, x: Tensor) -> None:
    with pytest.raises(BadInput, match=r"no loss"):
        combine({}, EqualWeighting())
    with pytest.raises(BadInput, match=r"mapping"):
        combine([torch.ones((), requires_grad=True)], EqualWeighting())


def test_extra_must_be_a_scalar(net: Net, x: Tensor) -> None:
    losses, z = net.losses(x)
    with pytest.raises(BadInput, match=r"extra"):
        combine(losses, Inverse(), features=z, extra=z)
