"""MMoE, CGC and PLE: if these fail, a mixture is not the paper's, or a task reaches what it must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.modeling import Features, Sharing
from pluribus.sharing import CGC, PLE, MMoE, SharedBottom, stacked
from pluribus.sharing.stacked import Experts, mix, mix_own
from pluribus.tasks import Task

TASKS = [Task("a"), Task("b", "binary", classes=("0", "1")), Task("c")]
ALL: dict[str, Tensor | None] = dict.fromkeys("abc")


def hidden(sharing: Sharing, x: Tensor, rows: Any = None) -> dict[str, Tensor]:
    return {name: found.main for name, found in sharing(Features(x), rows or ALL).tasks.items()}


def linear(layer: Any, i: int) -> nn.Linear:
    """Slice i of a stacked layer as the module everybody knows."""
    one = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias is not None)
    with torch.no_grad():
        one.weight.copy_(layer.weight[i].T)
        if layer.bias is not None:
            one.bias.copy_(layer.bias[i])
    return one


def listed(bank: Any) -> list[nn.Sequential]:
    return [nn.Sequential(linear(bank.layers[0], i), nn.ReLU()) for i in range(bank.size)]


@given(experts=st.integers(1, 5), tower=st.sampled_from([0, 3]), rows=st.integers(1, 6), seed=st.integers(0, 9))
def test_mmoe_equals_a_list_of_modules(experts: int, tower: int, rows: int, seed: int) -> None:
    """Oracle: the paper's equations over nn.Linear modules with the same weights."""
    torch.manual_seed(seed)
    sharing, x = MMoE(TASKS, 5, experts=experts, expert=4, tower=tower), torch.randn(rows, 5)
    modules = listed(sharing.experts)
    found = hidden(sharing, x)
    for i, name in enumerate("abc"):
        g = torch.softmax(linear(sharing.gates, i)(x), -1)
        h = sum(g[:, j, None] * modules[j](x) for j in range(experts))
        if sharing.towers.bank is not None:
            h = torch.relu(linear(sharing.towers.bank.layers[0], i)(h))
        torch.testing.assert_close(found[name], h)


def test_one_expert_is_a_shared_bottom() -> None:
    torch.manual_seed(0)
    sharing, x = MMoE(TASKS, 5, experts=1, expert=4, tower=3), torch.randn(6, 5)
    bottom = SharedBottom(TASKS, 4, tower=3)
    bottom.towers.load_state_dict(sharing.towers.bank.state_dict())  # type: ignore[union-attr]
    expected = hidden(bottom, sharing.experts(x)[0])
    for name, value in hidden(sharing, x).items():
        torch.testing.assert_close(value, expected[name])


def test_equal_gates_answer_alike() -> None:
    """One gate for all (OMoE) is the case of equal gate weights."""
    torch.manual_seed(0)
    sharing = MMoE(TASKS, 5, tower=0)
    with torch.no_grad():
        sharing.gates.weight[1:] = sharing.gates.weight[0]
    found = hidden(sharing, torch.randn(6, 5))
    torch.testing.assert_close(found["a"], found["b"])
    torch.testing.assert_close(found["a"], found["c"])


@given(top_k=st.sampled_from([None, 1, 2]), dropout=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 9))
def test_a_mixture_stays_in_the_hull(top_k: int | None, dropout: float, seed: int) -> None:
    """Weights are a distribution whatever is dropped; so a coordinate lies between the experts' extremes."""
    torch.manual_seed(seed)
    sharing, x = MMoE(TASKS, 5, experts=4, tower=0, top_k=top_k, gate_dropout=dropout), torch.randn(6, 5)
    weights = sharing.gates(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 6))
    outputs = sharing.experts(x)
    for value in hidden(sharing, x).values():
        assert (value <= outputs.max(0)[0] + 1e-5).all()
        assert (value >= outputs.min(0)[0] - 1e-5).all()


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.7])
def test_gates_do_without_as_many_experts_as_asked(dropout: float) -> None:
    """`gate_dropout` is the share that is dropped, not the share that is kept; and nothing is dropped when predicting."""
    torch.manual_seed(0)
    gates = MMoE(TASKS, 5, experts=8, tower=0, gate_dropout=dropout).gates
    x = torch.randn(400, 5)
    assert float((gates(x) == 0).double().mean()) == pytest.approx(dropout, abs=0.06)  # a gate that loses all keeps all
    assert (gates.eval()(x) > 0).all()


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("names", ["abc", "b"])
def test_top_k_skips_experts_and_answers_the_same(rows: int, names: str) -> None:
    """Oracle: the dense mixture with the same weights. One row and one task run exactly k experts."""
    torch.manual_seed(0)
    sharing, x = MMoE(TASKS, 5, experts=6, tower=0, top_k=2), torch.randn(rows, 5)
    weights, outputs = sharing.gates(x), sharing.experts(x)
    assert ((weights > 0).sum(-1) == 2).all()
    expected = torch.einsum("tbe,ebd->tbd", weights, outputs)
    ran: list[Any] = []
    handle = sharing.experts.register_forward_hook(lambda _, args, out: ran.append(len(out)))
    found = hidden(sharing, x, dict.fromkeys(names))
    handle.remove()
    for name in names:
        torch.testing.assert_close(found[name], expected["abc".index(name)])
    if rows == 1 and names == "b":
        assert ran == [2]
    sharing.zero_grad()
    found["b"].sum().backward()  # an expert that no row chose gets nothing
    idle = (weights[["abc".index(n) for n in names]] > 0).any(0).any(0).logical_not()
    gradient = sharing.experts.layers[0].weight.grad
    assert gradient is not None
    assert gradient[idle].abs().sum() == 0


@pytest.mark.parametrize("tower", [0, 3])
def test_cgc_without_own_experts_is_mmoe(tower: int) -> None:
    torch.manual_seed(0)
    cgc, x = CGC(TASKS, 5, own=0, shared=4, expert=6, tower=tower), torch.randn(7, 5)
    mmoe = MMoE(TASKS, 5, experts=4, expert=6, tower=tower)
    renamed = {name.replace("level.shared", "experts").replace("level.", ""): v for name, v in cgc.state_dict().items()}
    mmoe.load_state_dict(renamed)
    expected = hidden(mmoe, x)
    for name, value in hidden(cgc, x).items():
        torch.testing.assert_close(value, expected[name])


@given(levels=st.integers(1, 3), own=st.integers(0, 2), shared=st.integers(0, 2), names=st.sampled_from(["abc", "ca", "b"]))
def test_ple_equals_a_list_of_modules(levels: int, own: int, shared: int, names: str) -> None:
    """Oracle: the paper's levels as loops over modules, for any request."""
    if own + shared == 0:
        return
    torch.manual_seed(0)
    sharing, x = PLE(TASKS, 5, levels=levels, own=own, shared=shared, expert=4, tower=3), torch.randn(6, 5)
    paths, common = [x] * 3, x
    for level in sharing.levels:
        mine = listed(level.own) if own else []
        theirs = listed(level.shared) if shared else []
        shared_out = [e(common) for e in theirs]
        own_out = [[mine[t * own + j](paths[t]) for j in range(own)] for t in range(3)]
        new = []
        for t in range(3):
            g = torch.softmax(linear(level.gates, t)(paths[t]), -1)
            new.append(sum(g[:, j, None] * out for j, out in enumerate(own_out[t] + shared_out)))
        if level.shared_gate is not None:
            g = torch.softmax(linear(level.shared_gate, 0)(common), -1)
            common = sum(g[:, j, None] * out for j, out in enumerate([o for t in own_out for o in t] + shared_out))  # type: ignore[assignment]
        paths = new  # type: ignore[assignment]
    found = hidden(sharing, x, dict.fromkeys(names))
    assert set(found) == set(names)
    for name in names:
        t = "abc".index(name)
        torch.testing.assert_close(found[name], torch.relu(linear(sharing.towers.bank.layers[0], t)(paths[t])))


def test_a_task_never_reaches_anothers_experts() -> None:
    """Autograd: in CGC no gradient of a task ends in another's experts; asked alone, only its own and the shared run."""
    torch.manual_seed(0)
    sharing, x = CGC(TASKS, 5, own=2), torch.randn(6, 5)
    hidden(sharing, x)["b"].sum().backward()
    gradient = sharing.level.own.layers[0].weight.grad  # type: ignore[union-attr]
    assert gradient is not None
    assert gradient[2:4].abs().sum() > 0
    assert gradient[[0, 1, 4, 5]].abs().sum() == 0
    ran: list[int] = []
    sharing.level.own.register_forward_hook(lambda _, args, out: ran.append(len(out)))  # type: ignore[union-attr]
    hidden(sharing, x, {"c": None})
    assert ran == [2]


def test_without_shared_experts_nothing_is_shared() -> None:
    """n = 0: T separate stacks; a task's gradient stays in its slices, on every level."""
    torch.manual_seed(0)
    sharing, x = PLE(TASKS, 5, own=2, shared=0), torch.randn(6, 5)
    hidden(sharing, x)["b"].sum().backward()
    for name, p in sharing.named_parameters():
        assert p.grad is not None
        rest = torch.ones(len(p), dtype=torch.bool)
        rest[sharing.slices("b")[name]] = False
        assert p.grad[rest].abs().sum() == 0, name


def test_towers_see_only_the_rows_of_their_task() -> None:
    """Few labelled rows: the tower runs on those and the answer is that of the whole at those rows."""
    torch.manual_seed(0)
    sharing, x = MMoE(TASKS, 5), torch.randn(20, 5)
    whole = hidden(sharing, x)
    rows = {"a": torch.tensor([3, 9]), "b": torch.tensor([1]), "c": torch.arange(4)}
    shared = sharing(Features(x), rows)
    for name, wanted in rows.items():
        assert shared.tasks[name].selected
        torch.testing.assert_close(shared.tasks[name].main, whole[name][wanted])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMoE(TASKS, 5, experts=0), "experts must be a whole number of at least 1, not 0"),
        (lambda: MMoE(TASKS, 5, experts=-2), "not -2"),
        (lambda: MMoE(TASKS, 5, experts=2, top_k=3), "top_k must lie between 1 and experts = 2, not 3"),
        (lambda: MMoE(TASKS, 5, tower=-1), "tower must be"),
        (lambda: CGC(TASKS, 5, own=0, shared=0), "a task needs an expert"),
        (lambda: PLE(TASKS, 5, levels=0), "levels must be"),
        (lambda: PLE(TASKS, 5, expert=1.5), "expert must be a whole number"),  # type: ignore[arg-type]
        (lambda: MMoE(TASKS, 5)(Features(torch.zeros(2, 3, 5)), ALL), "one vector a row"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


def test_unknown_architecture_names_the_nearest() -> None:
    from pluribus import catalog

    with pytest.raises(BadInput, match="did you mean 'mmoe'"):
        catalog.get("sharing", "mmoee")


@pytest.mark.parametrize("kind", [MMoE, CGC, PLE])
def test_a_batch_of_one_trains(kind: Any) -> None:
    torch.manual_seed(0)
    sharing = kind(TASKS, 5).train()
    found = hidden(sharing, torch.randn(1, 5))
    torch.stack([value.sum() for value in found.values()]).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in sharing.parameters())


@given(a=st.integers(1, 5), e=st.integers(1, 5), d=st.integers(1, 80), rows=st.sampled_from([1, 63, 64, 200]))
@settings(max_examples=60)
def test_a_mixture_is_the_sum_whatever_the_plan(a: int, e: int, d: int, rows: int) -> None:
    """Whether a product a row or a pass an addend: the same sum and the same gradients, on both sides of every threshold."""
    draw = torch.Generator().manual_seed(a + 10 * e + 100 * d)
    weights = torch.rand(a, rows, e, generator=draw, dtype=torch.float64, requires_grad=True)
    for shape, run, reference in (((e, rows, d), mix, "abe,ebd->abd"), ((a, e, rows, d), mix_own, "abe,aebd->abd")):
        outputs = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
        mine, theirs = run(weights, outputs), torch.einsum(reference, weights, outputs)
        torch.testing.assert_close(mine, theirs)
        back = torch.randn(mine.shape, generator=draw, dtype=torch.float64)
        torch.testing.assert_close(
            torch.autograd.grad(mine, (weights, outputs), back), torch.autograd.grad(theirs, (weights, outputs), back)
        )


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("places", [None, [0, 2, 3, 6]])
def test_experts_by_groups(norm: bool, own: bool, places: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few experts at a time or all at once: the same outputs, gradients and moments, and absent experts keep theirs."""
    torch.manual_seed(0)
    active = None if places is None else torch.tensor(places)
    count = 7 if places is None else len(places)
    x = torch.randn((count, 20, 5) if own else (20, 5), dtype=torch.float64, requires_grad=True)
    found = []
    for step in (2, 100):
        monkeypatch.setattr(stacked, "at_once", lambda rows, width, step=step: step)
        torch.manual_seed(1)
        experts = Experts(7, (5, 6, 4), norm=norm).double()
        out = experts(x, active)
        grads = torch.autograd.grad(out.sin().sum(), [x, *experts.parameters()])
        found.append([out, *grads, *experts.buffers(), experts.eval()(x, active)])
    torch.testing.assert_close(found[0], found[1])
    if norm and places is not None:
        mean, variance = found[0][-3:-1]  # of the last layer
        assert not mean[1].any()
        assert (variance[1] == 1).all()
