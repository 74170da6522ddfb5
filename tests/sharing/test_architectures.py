"""Cross-stitch, DSelect-k, MTAN and AdaTT against their papers' equations written out over modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.modeling import Features, Sharing
from pluribus.sharing import MTAN, AdaTT, CrossStitch, DSelectK
from pluribus.sharing.cross_stitch import RATE
from pluribus.sharing.dselect_k import smooth_step
from pluribus.tasks import Task

TASKS = [Task("a"), Task("b", "binary", classes=("0", "1")), Task("c")]
REQUESTS = st.sampled_from(["abc", "ca", "b"])


def hidden(sharing: Sharing, x: Tensor, names: str = "abc") -> dict[str, Tensor]:
    return {name: found.main for name, found in sharing(Features(x), dict.fromkeys(names)).tasks.items()}


def linear(layer: Any, i: int) -> nn.Linear:
    one = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias is not None)
    with torch.no_grad():
        one.weight.copy_(layer.weight[i].T)
        if layer.bias is not None:
            one.bias.copy_(layer.bias[i])
    return one


def test_cross_stitch_with_identity_is_separate_networks() -> None:
    """α = I: a task's output is its own MLP's, and no gradient crosses."""
    torch.manual_seed(0)
    sharing, x = CrossStitch(TASKS, 5, hidden=4, own=1.0), torch.randn(6, 5)
    found = hidden(sharing, x)
    for i, name in enumerate("abc"):
        one = nn.Sequential(linear(sharing.layers[0], i), nn.ReLU(), linear(sharing.layers[1], i), nn.ReLU())
        torch.testing.assert_close(found[name], one(x))
    found["b"].sum().backward()
    for layer in sharing.layers:
        assert layer.weight.grad[[0, 2]].abs().sum() == 0  # type: ignore[index, union-attr]


@given(names=REQUESTS, seed=st.integers(0, 9))
def test_cross_stitch_by_hand(names: str, seed: int) -> None:
    torch.manual_seed(seed)
    sharing, x = CrossStitch(TASKS, 5, hidden=4), torch.randn(6, 5)
    paths = [x] * 3
    for layer, stitch in zip(sharing.layers, sharing.stitches):
        alpha = RATE * stitch.weight  # type: ignore[operator]
        torch.testing.assert_close(alpha.sum(1), torch.ones(3))
        torch.testing.assert_close(alpha.diagonal(), torch.full((3,), 0.9))
        own = [torch.relu(linear(layer, s)(paths[s])) for s in range(3)]
        paths = [sum(alpha[t, s] * own[s] for s in range(3)) for t in range(3)]  # type: ignore[misc]
    for name, value in hidden(sharing, x, names).items():
        torch.testing.assert_close(value, paths["abc".index(name)])


@given(st.floats(-2, 2), st.floats(0.1, 3))
def test_smooth_step(z: float, gamma: float) -> None:
    """From exactly 0 to exactly 1, S(z) + S(−z) = 1, and no gradient outside (−γ/2, γ/2)."""
    at = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    value = smooth_step(at, gamma)
    torch.testing.assert_close(value + smooth_step(-at, gamma), torch.ones_like(value))
    (slope,) = torch.autograd.grad(value, at)
    if abs(z) >= gamma / 2:
        assert value.item() == (z > 0)
        assert slope == 0
    else:
        assert slope > 0


@given(experts=st.integers(1, 9), seed=st.integers(0, 9))
def test_selectors_are_distributions(experts: int, seed: int) -> None:
    """Over 2^m experts r sums to one; over fewer the rest of the mass is what the padding penalty sees."""
    torch.manual_seed(seed)
    sharing = DSelectK(TASKS, 5, experts=experts, k=1)
    with torch.no_grad():
        sharing.codes.uniform_(-0.7, 0.7)
    total = sharing.selectors().sum(-1)
    if experts in (2, 4, 8):
        torch.testing.assert_close(total, torch.ones_like(total))
        assert sharing.padding == 0
    assert (total <= 1 + 1e-5).all()


def test_hard_codes_choose_at_most_k() -> None:
    """Saturated codes: q is exactly zero but at k places, those with the codes' bits; the others do not run."""
    sharing, x = DSelectK(TASKS, 5, experts=8, k=2, tower=0), torch.randn(6, 5)
    chosen = [(3, 5), (0, 7), (6, 6)]
    with torch.no_grad():
        for t, pair in enumerate(chosen):
            for c, i in enumerate(pair):
                sharing.codes[t, c] = torch.tensor([1.0 if i >> j & 1 else -1.0 for j in range(3)])
    ran: list[int] = []
    sharing.experts.register_forward_hook(lambda _, args, out: ran.append(len(out)))
    shared = sharing(Features(x), dict.fromkeys("abc"))
    for name, pair in zip("abc", chosen):
        assert shared.extra["gates"][name][0].nonzero()[:, 0].tolist() == sorted(set(pair))
    found = hidden(sharing, x, "c")["c"]
    torch.testing.assert_close(found, torch.relu(linear(sharing.experts.layers[0], 6)(x)))
    assert ran == [5, 1]
    penalty = sharing.train()(Features(x), dict.fromkeys("abc")).penalties["dselect_k_entropy"]
    assert float(penalty.detach()) == pytest.approx(0, abs=1e-6)
    penalty.backward()
    assert torch.isfinite(sharing.codes.grad).all()  # type: ignore[arg-type]


@given(names=REQUESTS, experts=st.sampled_from([1, 3, 4]), training=st.booleans())
def test_dselect_k_per_example_by_hand(names: str, experts: int, training: bool) -> None:
    """Oracle: with gates linear in the row, every row has the static gate of its own codes and mixing."""
    torch.manual_seed(0)
    sharing = DSelectK(TASKS, 5, experts=experts, k=1 if experts == 1 else 2, expert=4, tower=0, per_example=True).train(training)
    x = torch.randn(6, 5)
    with torch.no_grad():
        sharing.codes.uniform_(-0.3, 0.3)
        sharing.mixing.normal_()
    found = sharing(Features(x), dict.fromkeys(names))
    entropy = 0.0
    for b in range(6):
        for name in names:
            t = "abc".index(name)
            static = DSelectK([TASKS[t]], 5, experts=experts, k=sharing.codes.shape[2], expert=4, tower=0).train(training)
            static.experts.load_state_dict(sharing.experts.state_dict())
            with torch.no_grad():
                static.codes.copy_(torch.einsum("w,wkm->km", x[b], sharing.codes[t])[None])
                static.mixing.copy_((x[b] @ sharing.mixing[t])[None])
            one = static(Features(x[[b]]), {TASKS[t].name: None})
            torch.testing.assert_close(found.tasks[name].main[[b]], one.tasks[TASKS[t].name].main, rtol=1e-4, atol=1e-5)
            entropy += float(one.penalties["dselect_k_entropy"].detach()) / 6 if training else 0.0
    if training:
        assert float(found.penalties["dselect_k_entropy"].detach()) == pytest.approx(entropy, rel=1e-3)


def test_dselect_k_per_example_skips() -> None:
    """Saturated gates: a row's experts are at most k, each runs on the rows alone that chose it, and gradients are finite."""
    torch.manual_seed(0)
    sharing, x = DSelectK(TASKS, 5, experts=8, k=1, tower=0, per_example=True), torch.randn(40, 5)
    with torch.no_grad():
        sharing.codes.normal_(0, 100)
    rows: list[int] = []
    alone = sharing.experts.alone
    sharing.experts.alone = lambda e, part: (rows.append(len(part)), alone(e, part))[1]  # type: ignore[method-assign]
    found = sharing(Features(x), {"a": None})
    gates = found.extra["gates"]["a"]
    assert ((gates > 0).sum(1) == 1).all()
    assert sum(rows) == 40
    assert len(rows) > 1
    found.tasks["a"].main.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in sharing.parameters())


def test_dselect_k_per_example_of_no_row_has_no_penalty() -> None:
    """A mean over no rows would be NaN and end the training that one empty batch of one process is in."""
    penalties = DSelectK(TASKS, 5, experts=5, per_example=True).train()(Features(torch.zeros(0, 5)), {"a": None}).penalties
    assert {name: float(value.detach()) for name, value in penalties.items()} == dict.fromkeys(penalties, 0.0)
    assert len(penalties) == 2


@given(names=REQUESTS, experts=st.sampled_from([1, 3, 4]))
def test_dselect_k_by_hand(names: str, experts: int) -> None:
    torch.manual_seed(0)
    sharing, x = DSelectK(TASKS, 5, experts=experts, k=1, expert=4, tower=0), torch.randn(6, 5)
    with torch.no_grad():
        sharing.codes.uniform_(-0.4, 0.4)
    found = sharing(Features(x), dict.fromkeys(names))
    entropy = 0.0
    for name in names:
        t, h = "abc".index(name), torch.zeros(6, 4)
        for i in range(experts):
            r = 1.0
            for j, z in enumerate(sharing.codes[t, 0].tolist()):
                step = -2 * z**3 + 1.5 * z + 0.5
                r *= step if i >> j & 1 else 1 - step
            h += r * torch.relu(linear(sharing.experts.layers[0], i)(x))
            entropy -= r * float(torch.tensor(r).log())
        torch.testing.assert_close(found.tasks[name].main, h)
    assert float(found.penalties["dselect_k_entropy"].detach()) == pytest.approx(1e-2 * entropy, rel=1e-4)
    assert ("dselect_k_padding" in found.penalties) == (experts != 4)
    assert not sharing.eval()(Features(x), dict.fromkeys(names)).penalties


def test_mtan_with_open_masks_is_a_shared_bottom() -> None:
    """a ≡ 1: every task gets the same features."""
    torch.manual_seed(0)
    sharing, x = MTAN(TASKS, 5, hidden=4), torch.randn(6, 5)
    with torch.no_grad():
        for block in sharing.blocks:
            block.attention.layers[1].weight.zero_()  # type: ignore[union-attr, index]
            block.attention.layers[1].bias.fill_(50.0)  # type: ignore[union-attr, index]
    found = hidden(sharing, x)
    trunk = x
    for block in sharing.blocks:
        trunk = torch.relu(block.p(torch.relu(block.u(trunk))))  # type: ignore[operator]
    expected = torch.relu(sharing.blocks[1].f(trunk))  # type: ignore[operator]
    for value in found.values():
        torch.testing.assert_close(value, expected)


@given(names=REQUESTS, blocks=st.integers(1, 3))
def test_mtan_by_hand(names: str, blocks: int) -> None:
    torch.manual_seed(0)
    sharing, x = MTAN(TASKS, 5, blocks=blocks, hidden=4, attention=3), torch.randn(6, 5)
    found = hidden(sharing, x, names)
    for name in names:
        t, trunk, before = "abc".index(name), x, torch.zeros(6, 0)
        for block in sharing.blocks:
            first, second = (linear(block.attention.layers[i], t) for i in (0, 1))  # type: ignore[union-attr, index]
            u = torch.relu(block.u(trunk))  # type: ignore[operator]
            trunk = torch.relu(block.p(u))  # type: ignore[operator]
            mask = torch.sigmoid(second(torch.relu(first(torch.cat((u, before), 1)))))
            before = torch.relu(block.f(mask * trunk))  # type: ignore[operator]
        torch.testing.assert_close(found[name], before)


@given(names=REQUESTS, levels=st.integers(1, 3), own=st.integers(1, 2), shared=st.integers(0, 2))
def test_adatt_by_hand(names: str, levels: int, own: int, shared: int) -> None:
    torch.manual_seed(0)
    sharing, x = AdaTT(TASKS, 5, levels=levels, own=own, shared=shared, expert=4, tower=0), torch.randn(6, 5)
    units = 3 + shared
    paths = [x] * units
    for level in sharing.levels:
        e = [torch.relu(linear(level.experts.layers[0], j)(paths[j // own])) for j in range(units * own)]  # type: ignore[union-attr, index]
        new = []
        for u in range(level.gates.size):  # type: ignore[union-attr, arg-type]
            g = torch.softmax(linear(level.gates, u)(paths[u]), -1)
            v = torch.ones(1) if own == 1 else level.native[u]  # type: ignore[index]
            new.append(sum(g[:, j, None] * e[j] for j in range(len(e))) + sum(v[i] * e[u * own + i] for i in range(own)))
        paths = new
    for name, value in hidden(sharing, x, names).items():
        torch.testing.assert_close(value, paths["abc".index(name)])


@pytest.mark.parametrize("own", [1, 2, 3])
def test_adatt_begins_with_the_mean_of_its_own_experts(own: int) -> None:
    """v starts at 1/m: a task's residual is as large with three experts as with one."""
    sharing, x = AdaTT(TASKS, 5, levels=1, own=own, shared=0, tower=0), torch.randn(6, 5)
    level = sharing.levels[0]
    outputs, weights = level.experts(x), level.gates(x)  # type: ignore[operator, union-attr]
    mixture = torch.einsum("tbe,ebd->tbd", weights, outputs)
    found = sharing(Features(x), dict.fromkeys("abc")).tasks
    for t, name in enumerate("abc"):
        torch.testing.assert_close(found[name].main - mixture[t], outputs[t * own : (t + 1) * own].mean(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossStitch(TASKS, 5, own=1.5), "own must lie between 0 and 1"),
        (lambda: CrossStitch(TASKS, 5, layers=0), "layers must be"),
        (lambda: DSelectK(TASKS, 5, experts=0), "experts must be a whole number of at least 1, not 0"),
        (lambda: DSelectK(TASKS, 5, experts=2, k=3), "k must not be above experts = 2"),
        (lambda: DSelectK(TASKS, 5, gamma=0.0), "gamma must be positive"),
        (lambda: MTAN(TASKS, 5, blocks=-1), "blocks must be"),
        (lambda: AdaTT(TASKS, 5, own=0), "own must be"),
        (lambda: AdaTT(TASKS, 5, shared=-1), "shared must be"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


@pytest.mark.parametrize("kind", [CrossStitch, DSelectK, MTAN, AdaTT])
@pytest.mark.parametrize("tasks", [TASKS, TASKS[:1]])
def test_a_batch_of_one_trains(kind: Any, tasks: list[Task]) -> None:
    torch.manual_seed(0)
    sharing = kind(tasks, 5).train()
    found = hidden(sharing, torch.randn(1, 5), "".join(task.name for task in tasks))
    torch.stack([value.sum() for value in found.values()]).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in sharing.parameters())


def test_stitches_move_ten_times_as_far_as_weights() -> None:
    """The paper's rate for α: one step of Adam at 0.01 moves every α by 0.1, and a weight by 0.01."""
    torch.manual_seed(0)
    sharing = CrossStitch(TASKS, 5, layers=1, own=0.9)
    stitch, weight = sharing.stitches[0], sharing.layers[0].weight
    assert isinstance(weight, Tensor)
    h = torch.eye(3)[:, None]
    before, old = stitch(h, None).detach()[:, 0], weight.detach().clone()
    torch.testing.assert_close(before, torch.full((3, 3), 0.05) + 0.85 * torch.eye(3))
    optimizer = torch.optim.Adam(sharing.parameters(), lr=0.01)
    found = sharing(Features(torch.randn(9, 5)), dict.fromkeys("abc")).tasks
    torch.stack([one.main.square().sum() for one in found.values()]).sum().backward()
    optimizer.step()
    moved = (stitch(h, None).detach()[:, 0] - before).abs()
    torch.testing.assert_close(moved, torch.full((3, 3), 0.1), rtol=1e-3, atol=1e-4)
    assert float((weight.detach() - old).abs().max()) == pytest.approx(0.01, rel=1e-3)
