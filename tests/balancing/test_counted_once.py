"""Every gradient is counted once: leaves that lie above and below the features, nested features, rows that never meet.

The reference runs the model a second time with the features cut off, so that "through the features" and "beside them" are
told apart by construction: Σ_t w_t g_t below plus the plain rest for "features" and "last", Σ_t w_t ∂ℓ_t/∂θ for "full" and
"grouped". All in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pluribus.balancing import MGDA, Balancer, EqualWeighting, PCGrad, UncertaintyWeighting, at_features, backward, combine
from pluribus.errors import BadInput

D = 6
ROWS = 12
Features = tuple[Tensor, ...]


@dataclass
class Case:
    """features: inputs and nodes to cut → what leaves the shared part; losses: from the features (perhaps cut) and the inputs."""

    parts: nn.ModuleDict
    x: Tensor
    features: Callable[[nn.ModuleDict, Tensor], Features]
    losses: Callable[[nn.ModuleDict, Features, Features, Tensor], dict[str, Tensor]]
    cells: dict[str, Tensor] | None = None

    def run(self, cut: bool = False) -> tuple[dict[str, Tensor], Features, Features]:
        """losses, the features, and the features as the heads see them."""
        z = self.features(self.parts, self.x)
        seen = tuple(f.detach().requires_grad_() for f in z) if cut else z
        return self.losses(self.parts, seen, z, self.x), z, seen

    @property
    def leaves(self) -> dict[str, Tensor]:
        return dict(self.parts.named_parameters())

    def below(self) -> list[str]:
        z = self.features(self.parts, self.x)
        found = torch.autograd.grad(sum(f.sum() for f in z), list(self.leaves.values()), allow_unused=True)
        return [name for name, g in zip(self.leaves, found) if g is not None]


def linear(*names: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(D, D) for name in names})


def tied() -> Case:
    """A language model: the embedding is the head's weight too."""
    parts = nn.ModuleDict({"embed": nn.Embedding(9, D), "mix": nn.Linear(D, D), "other": nn.Linear(D, 2)})
    x = torch.randint(9, (ROWS,))

    def losses(p: nn.ModuleDict, z: Features, _: Features, x: Tensor) -> dict[str, Tensor]:
        return {"lm": nn.functional.cross_entropy(z[0] @ p["embed"].weight.T, x), "cls": p["other"](z[0]).square().mean() * 7}

    return Case(parts, x, lambda p, x: (torch.tanh(p["mix"](p["embed"](x))),), losses)


def skip() -> Case:
    """A connection from inside the trunk to the heads that is not among the features (U-Net)."""
    parts = linear("first", "second", "a", "b")

    def features(p: nn.ModuleDict, x: Tensor) -> Features:
        return (torch.tanh(p["second"](torch.tanh(p["first"](x)))),)

    def losses(p: nn.ModuleDict, z: Features, _: Features, x: Tensor) -> dict[str, Tensor]:
        beside = torch.tanh(p["first"](x))
        return {"a": (p["a"](z[0]) + beside - 1).square().mean(), "b": 5 * (p["b"](z[0]) * beside + 1).square().mean()}

    return Case(parts, torch.randn(ROWS, D), features, losses)


def one_skip() -> Case:
    """The same, but the node itself is shared, not computed twice."""
    parts = linear("first", "second", "a", "b")
    kept: dict[str, Tensor] = {}

    def features(p: nn.ModuleDict, x: Tensor) -> Features:
        kept["h"] = torch.tanh(p["first"](x))
        return (torch.tanh(p["second"](kept["h"])),)

    def losses(p: nn.ModuleDict, z: Features, _: Features, x: Tensor) -> dict[str, Tensor]:
        return {"a": (p["a"](z[0]) + kept["h"] - 1).square().mean(), "b": 5 * (p["b"](z[0]) * kept["h"] + 1).square().mean()}

    return Case(parts, torch.randn(ROWS, D), features, losses)


def penalty() -> Case:
    """One loss holds an L2 of a trunk weight."""
    parts = linear("first", "a", "b")

    def losses(p: nn.ModuleDict, z: Features, _: Features, x: Tensor) -> dict[str, Tensor]:
        a = (p["a"](z[0]) - 1).square().mean() + p["first"].weight.square().sum()
        return {"a": a, "b": 9 * (p["b"](z[0]) + 1).square().mean()}

    return Case(parts, torch.randn(ROWS, D), lambda p, x: (torch.tanh(p["first"](x)),), losses)


def pyramid() -> Case:
    """c3 is made from c2, both are features."""
    parts = linear("stem", "deep", "a", "b")

    def features(p: nn.ModuleDict, x: Tensor) -> Features:
        c2 = torch.tanh(p["stem"](x))
        return c2, torch.tanh(p["deep"](c2))

    def losses(p: nn.ModuleDict, z: Features, _: Features, x: Tensor) -> dict[str, Tensor]:
        return {"a": (p["a"](z[0]) + z[1] - 1).square().mean(), "b": 9 * (p["b"](z[1]) * z[0] + 1).square().mean()}

    return Case(parts, torch.randn(ROWS, D), features, losses)


def holes() -> Case:
    """Rows that have labels of one task, of the other, and of both."""
    parts = linear("first", "a", "b")

    def losses(p: nn.ModuleDict, z: Features, _: Features, x: Tensor) -> dict[str, Tensor]:
        return {"a": (p["a"](z[0][:7]) - 1).square().mean(), "b": 9 * (p["b"](z[0][4:10]) + 1).square().mean()}

    return Case(parts, torch.randn(ROWS, D), lambda p, x: (torch.tanh(p["first"](x)),), losses)


def batches() -> Case:
    """Every row has a label of one task."""
    case = holes()

    def losses(p: nn.ModuleDict, z: Features, _: Features, x: Tensor) -> dict[str, Tensor]:
        return {"a": (p["a"](z[0][:7]) - 1).square().mean(), "b": 9 * (p["b"](z[0][7:]) + 1).square().mean()}

    case.losses = losses
    case.cells = {"a": torch.arange(7), "b": torch.arange(7, ROWS)}
    return case


def recurrent() -> Case:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(D, D, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    parts = nn.ModuleDict({"rnn": Last(), "a": nn.Linear(D, D), "b": nn.Linear(D, D)})

    def losses(p: nn.ModuleDict, z: Features, _: Features, x: Tensor) -> dict[str, Tensor]:
        return {"a": (p["a"](z[0]) - 1).square().mean(), "b": 9 * (p["b"](z[0]) + 1).square().mean()}

    return Case(parts, torch.randn(ROWS, 3, D), lambda p, x: (p["rnn"](x),), losses)


def remade() -> Case:
    """Activations are computed again in the backward pass; the trunk's first weight is used above as well."""
    case = penalty()
    case.features = lambda p, x: (checkpoint(lambda v: torch.tanh(p["first"](v)), x, use_reentrant=False),)
    return case


CASES: dict[str, Callable[[], Case]] = {
    "tied": tied,
    "skip": skip,
    "one_skip": one_skip,
    "penalty": penalty,
    "pyramid": pyramid,
    "holes": holes,
    "batches": batches,
    "recurrent": recurrent,
    "checkpoint": remade,
}
BALANCERS = {"mgda": MGDA, "pcgrad": lambda: PCGrad(shuffle=False), "uncertainty": UncertaintyWeighting, "equal": EqualWeighting}


def build(name: str) -> Case:
    torch.manual_seed(11)
    case = CASES[name]()
    case.parts.double()
    if case.x.is_floating_point():
        case.x.data = case.x.data.double()
    return case


def weights_of(balancer: Balancer, gram: Tensor, losses: dict[str, Tensor]) -> Tensor:
    values = torch.stack([l.detach() for l in losses.values()])
    signal = values if balancer.signal == "losses" else gram
    return balancer.weights(signal, tasks=tuple(losses), losses=values)


def grad(output: Tensor | Features, inputs: list[Tensor], seeds: list[Tensor] | None = None) -> list[Tensor]:
    """By autograd, zeros where nothing is reached."""
    found = torch.autograd.grad(output, inputs, seeds, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found)]


def through_features(case: Case, balancer: Balancer, last: list[str] | None = None) -> dict[str, Tensor]:
    """Σ w_t g_t below the features, plain beside them."""
    losses, z, seen = case.run(cut=True)
    leaves = list(case.leaves.values())
    direct = [grad(loss, leaves) for loss in losses.values()]
    at_z = [grad(loss, list(seen)) for loss in losses.values()]
    if last is None:
        rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in at_z])
    else:
        own = [case.leaves[name] for name in last]
        rows = torch.stack([torch.cat([g.flatten() for g in grad(z, own, row)]) for row in at_z])
    w = weights_of(balancer, rows @ rows.T, losses)
    below = grad(z, leaves, [sum(a * row[k] for a, row in zip(w, at_z)) for k in range(len(z))])
    return {name: g + sum(row[i] for row in direct) for i, (name, g) in enumerate(zip(case.leaves, below))}


def whole(case: Case, balancer: Balancer) -> dict[str, Tensor]:
    """Σ w_t ∂ℓ_t/∂θ for what lies below the features, plain for the rest."""
    losses, _, _ = case.run()
    names = case.below()
    own = [case.leaves[name] for name in names]
    rows = torch.stack([torch.cat([g.flatten() for g in grad(loss, own)]) for loss in losses.values()])
    w = weights_of(balancer, rows @ rows.T, losses)
    plain = dict(zip(case.leaves, grad(sum(losses.values()), list(case.leaves.values()))))
    balanced = grad(sum(a * loss for a, loss in zip(w, losses.values())), own)
    return {**plain, **dict(zip(names, balanced))}


def found(case: Case) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in case.leaves.items()}


def same(case: Case, wanted: dict[str, Tensor]) -> None:
    for name, g in found(case).items():
        torch.testing.assert_close(g, wanted[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", sorted(BALANCERS))
@pytest.mark.parametrize("name", sorted(CASES))
def test_combine(name: str, method: str) -> None:
    """A leaf above and below the features, or a feature below another, must not be counted twice."""
    case = build(name)
    losses, z, _ = case.run()
    combine(losses, BALANCERS[method](), features=z).backward()
    same(case, through_features(case, BALANCERS[method]()))


@pytest.mark.parametrize("name", sorted(CASES))
def test_backward_at_the_features(name: str) -> None:
    case = build(name)
    losses, z, _ = case.run()
    backward(losses, MGDA(), features=z, gram="features")
    same(case, through_features(case, MGDA()))


@pytest.mark.parametrize("name", sorted(set(CASES) - {"recurrent"}))
def test_the_last_layer(name: str) -> None:
    case = build(name)
    last = {"tied": "mix", "skip": "second", "one_skip": "second", "pyramid": "stem"}.get(name, "first")
    losses, z, _ = case.run()
    backward(losses, MGDA(), features=z, gram="last", last=case.parts[last])
    same(case, through_features(case, MGDA(), last=[f"{last}.weight", f"{last}.bias"]))


@pytest.mark.parametrize("name", sorted(set(CASES)))
@pytest.mark.parametrize("given", ["features", "losses", "both"])
def test_full(name: str, given: str) -> None:
    """The whole gradients of the shared leaves: with features, without them, with the leaves named."""
    case = build(name)
    shared = None if given == "features" else [case.leaves[n] for n in case.below()]
    losses, z, _ = case.run()
    step = backward(losses, MGDA(), features=None if given == "losses" else z, shared=shared, gram="full")
    assert step.source == "full"
    same(case, whole(case, MGDA()))


@pytest.mark.parametrize("name", sorted(set(CASES)))
def test_full_with_held_weights(name: str) -> None:
    """Weights that are held must reach what the measured ones reach."""
    case = build(name)
    balancer = MGDA()
    for _ in range(2):
        case.parts.zero_grad()
        losses, z, _ = case.run()
        step = backward(losses, balancer, features=z, gram="full", every=2)
    assert step.source == "held"
    same(case, whole(case, MGDA()))


@pytest.mark.parametrize("given", ["features", "losses"])
def test_grouped(given: str) -> None:
    case = build("batches")
    losses, z, _ = case.run()
    shared = [case.leaves[n] for n in case.below()]
    step = backward(losses, MGDA(), shared=shared, features=z if given == "features" else None, gram="grouped", cells=case.cells)
    assert step.source == "grouped"
    same(case, whole(case, MGDA()))


@pytest.mark.parametrize("twice", [False, True])
def test_grouped_with_a_skip_beside_the_features(twice: bool) -> None:
    """A shared layer that the heads use beside z: one use stays grouped, two fall back; both are exact."""
    torch.manual_seed(2)
    parts = linear("first", "second", "a", "b").double()
    x = torch.randn(ROWS, D, dtype=torch.float64)
    cells = {"a": torch.arange(7), "b": torch.arange(7, ROWS)}
    h = torch.tanh(parts["first"](x))
    z = torch.tanh(parts["second"](h))
    beside = torch.tanh(parts["first"](x)) if twice else h
    losses = {t: (parts[t](z[r]) * beside[r] - 1).square().mean() for t, r in cells.items()}
    own = [*parts["first"].parameters(), *parts["second"].parameters()]
    rows = torch.stack([torch.cat([g.flatten() for g in grad(loss, own)]) for loss in losses.values()])
    w = MGDA().weights(rows @ rows.T, tasks=("a", "b"))
    wanted = grad(sum(a * loss for a, loss in zip(w, losses.values())), own)
    step = backward(losses, MGDA(), features=z, gram="grouped", cells=cells)
    assert step.source == ("full" if twice else "grouped")
    for p, g in zip(own, wanted):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("name", ["tied", "pyramid"])
def test_what_diagnostics_hear_is_what_combine_hears(name: str) -> None:
    case = build(name)
    losses, z, _ = case.run()
    balancer = MGDA()
    combine(losses, balancer, features=z)
    torch.testing.assert_close(at_features(losses, z).gram, balancer.last.gram)


def test_a_reentrant_checkpoint_below_the_features_is_right() -> None:
    """Reentrant checkpoints forbid `autograd.grad` through them; below the features nothing of the kind is done."""
    torch.manual_seed(3)
    first, a, b = (nn.Linear(D, D).double() for _ in range(3))
    x = torch.randn(ROWS, D, dtype=torch.float64, requires_grad=True)
    z = checkpoint(lambda v: torch.tanh(first(v)), x, use_reentrant=True)
    losses = {"a": (a(z) - 1).square().mean(), "b": 9 * (b(z) + 1).square().mean()}
    combine(losses, MGDA(), features=z).backward()
    found = first.weight.grad.clone()
    first.weight.grad = None
    z = torch.tanh(first(x))
    losses = {"a": (a(z) - 1).square().mean(), "b": 9 * (b(z) + 1).square().mean()}
    combine(losses, MGDA(), features=z).backward()
    torch.testing.assert_close(found, first.weight.grad)


def test_one_compiled_function_for_features_and_losses_is_refused() -> None:
    """The graph has one node for both: that must be said, not that the loss does not depend on the features."""
    trunk, a, b = (nn.Linear(D, D) for _ in range(3))
    x = torch.randn(ROWS, D)

    def everything(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = torch.tanh(trunk(x))
        return z, a(z).square().mean(), (b(z) - 1).square().mean()

    z, one, two = torch.compile(everything, backend="aot_eager")(x)
    with pytest.raises(BadInput, match=r"leave one node of the graph.*compile the trunk and the heads as two functions"):
        combine({"a": one, "b": two}, MGDA(), features=z)


@pytest.mark.parametrize("gram", ["features", "full"])
def test_compiled_trunk(gram: str) -> None:
    """A compiled trunk frees its buffers in the first pass: right, or one clear line; never torch's own error."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D), nn.Tanh()).double()
    a, b = nn.Linear(D, 1).double(), nn.Linear(D, 1).double()
    x = torch.randn(ROWS, D, dtype=torch.float64)

    def step(module: nn.Module) -> list[Tensor]:
        trunk.zero_grad()
        z = module(x)
        losses = {"a": (a(z) - 1).square().mean(), "b": 9 * (b(z) + 1).square().mean()}
        backward(losses, MGDA(), features=z, shared=trunk, gram=gram)
        return [p.grad.clone() for p in trunk.parameters()]

    compiled = torch.compile(trunk, backend="aot_eager")
    if gram == "full":
        with pytest.raises(BadInput, match="donated_buffer"):
            step(compiled)
        torch._dynamo.reset()
        with torch._functorch.config.patch(donated_buffer=False):
            found = step(torch.compile(trunk, backend="aot_eager"))
    else:
        found = step(compiled)
    for g, wanted in zip(found, step(trunk)):
        torch.testing.assert_close(g, wanted)


def test_compiled_heads() -> None:
    """A compiled trunk and a compiled head, each a function of its own."""
    torch.manual_seed(0)
    trunk, head = nn.Sequential(nn.Linear(D, D), nn.Tanh()), nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 1))
    x = torch.randn(ROWS, D)

    def step(trunk_: nn.Module, head_: nn.Module) -> list[Tensor]:
        trunk.zero_grad()
        head.zero_grad()
        z = trunk_(x)
        combine({"a": (head_(z) - 1).square().mean(), "b": 9 * (z + 1).square().mean()}, MGDA(), features=z).backward()
        return [p.grad.clone() for p in (*trunk.parameters(), *head.parameters())]

    compiled = [torch.compile(part, backend="aot_eager") for part in (trunk, head)]
    for g, wanted in zip(step(*compiled), step(trunk, head)):
        torch.testing.assert_close(g, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_without_features(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    trunk, a, b = nn.Linear(D, D), nn.Linear(D, 1), nn.Linear(D, 1)
    x = torch.randn(ROWS, D)

    def step(kind: torch.dtype) -> Tensor:
        parts = nn.ModuleList([trunk, a, b]).to(kind)
        parts.zero_grad()
        z = torch.tanh(trunk(x.to(kind)))
        losses = {"a": (a(z) - 1).square().mean(), "b": 9 * (b(z) + 1).square().mean()}
        backward(losses, MGDA(), shared=trunk, gram="full")
        return trunk.weight.grad.float().clone()

    wanted = step(torch.float32)
    assert (step(dtype) - wanted).norm() < 0.1 * wanted.norm()


# -- random graphs -------------------------------------------------------------------------------------------------------

PARAMETERS = 4


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], list[int], list[list[int]]]:
    """Nodes (from, parameter, also added); which of them are features; which nodes each of three losses reads."""
    n = draw(st.integers(3, 7))
    nodes = [(draw(st.integers(0, i)), draw(st.integers(0, PARAMETERS - 1)), draw(st.integers(0, i))) for i in range(n)]
    z = sorted(draw(st.sets(st.integers(1, n), min_size=1, max_size=3)))
    reads = [[*draw(st.lists(st.integers(1, n), min_size=1, max_size=2)), draw(st.sampled_from(z))] for _ in range(3)]
    return nodes, z, reads


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(graphs())
def test_random_graphs(graph: tuple[list[tuple[int, int, int]], list[int], list[list[int]]]) -> None:
    """Shared leaves anywhere, features nested or not, losses that read nodes above, below and beside the features."""
    nodes, at, reads = graph
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(D, D, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(PARAMETERS)]
    targets = torch.randn(3, 5, D, dtype=torch.float64, generator=generator)
    x = torch.randn(5, D, dtype=torch.float64, generator=generator)

    def evaluate(cut: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Losses, the features, and what stands in for them. A loss and a node that reads a feature read the stand-in."""
        made, z, seen = [x], [], []
        for i, (source, p, added) in enumerate(nodes, 1):
            value = torch.tanh(made[source] @ matrices[p]) + 0.5 * made[added]
            if i in at:
                z.append(value)
                value = value.detach().requires_grad_() if cut else value
                seen.append(value)
            made.append(value)
        losses = [(sum(made[i] for i in read) - y).square().mean() for read, y in zip(reads, targets)]
        return losses, z, seen

    losses, z, seen = evaluate(True)  # cut everywhere: what lies between two features hangs on the stand-ins
    direct = [grad(loss, matrices) for loss in losses]
    at_z = [grad(loss, seen) for loss in losses]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in at_z])
    w = MGDA().weights(rows @ rows.T)
    _, z, _ = evaluate(False)
    below = grad(tuple(z), matrices, [sum(a * row[k] for a, row in zip(w, at_z)) for k in range(len(z))])
    wanted = [g + sum(row[i] for row in direct) for i, g in enumerate(below)]

    losses, z, _ = evaluate(False)
    combine(dict(zip("abc", losses)), MGDA(), features=tuple(z)).backward()
    for p, g in zip(matrices, wanted):
        torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, g, rtol=1e-7, atol=1e-9)

    for p in matrices:
        p.grad = None
    losses, z, _ = evaluate(False)
    reached = torch.autograd.grad(sum(f.sum() for f in z), matrices, retain_graph=True, allow_unused=True)
    own = [p for p, g in zip(matrices, reached) if g is not None]
    total = [grad(loss, own) for loss in losses]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in total])
    w = MGDA().weights(rows @ rows.T)
    if all(any(bool((g != 0).any()) for g in (row[k] for row in total)) for k in range(len(own))) and all(
        all(bool((g != 0).any()) for g in row) for row in total
    ):  # "full" asks that every loss reaches every shared leaf
        losses, z, _ = evaluate(False)
        backward(dict(zip("abc", losses)), MGDA(), features=tuple(z), gram="full")
        for k, p in enumerate(own):
            torch.testing.assert_close(p.grad, sum(a * row[k] for a, row in zip(w, total)), rtol=1e-7, atol=1e-9)
