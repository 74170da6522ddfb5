"""HoME: if these fail, the hierarchy leaks, a gate is not neutral at the start, or folding changes what is served."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.modeling import Features
from pluribus.modeling.experts import StackedLinear, StackedNorm
from pluribus.sharing import HoME
from pluribus.sharing.home import FeatureGates
from pluribus.tasks import Task

TASKS = [Task(name, "binary", classes=("0", "1")) for name in "abcd"]
CATEGORIES = {"one": ["d", "a"], "two": ["b", "c"]}


def hidden(sharing: HoME, x: Tensor, names: str = "abcd") -> dict[str, Tensor]:
    return {name: found.main for name, found in sharing(Features(x), dict.fromkeys(names)).tasks.items()}


def stirred(**settings: Any) -> HoME:
    """HoME whose gates, norms and running moments are all away from where they start."""
    sharing = HoME(TASKS, 5, categories=CATEGORIES, expert=4, rank=2, **settings)
    with torch.no_grad():
        for name, p in sharing.named_parameters():
            if name.endswith(".up") or "norm" in name:
                p.add_(0.5 * torch.randn_like(p))
        for b in sharing.buffers():
            b.copy_(torch.rand_like(b) + 0.5)
    return sharing


def feature_gate(gates: Any, g: int, x: Tensor) -> Tensor:
    share = torch.softmax(x @ gates.mixing[g], -1)
    total = sum(share[:, k, None] * 2 * torch.sigmoid(x @ gates.down[g, k] @ gates.up[g, k]) for k in range(share.shape[1]))
    return x * total


def expert(bank: Any, i: int, x: Tensor) -> Tensor:
    """torch's own BatchNorm1d with the slice's parameters and moments."""
    norm = nn.BatchNorm1d(bank.first.outputs).train(bank.training)
    with torch.no_grad():
        norm.weight.copy_(bank.norms[0].weight[i])
        norm.bias.copy_(bank.norms[0].bias[i])
        norm.running_mean.copy_(bank.norms[0].mean[i])  # type: ignore[union-attr]
        norm.running_var.copy_(bank.norms[0].variance[i])  # type: ignore[union-attr]
    return nn.functional.silu(norm(x @ bank.first.weight[i] + bank.first.bias[i]))


def self_gate(gates: Any, i: int, x: Tensor) -> Tensor:
    logits = x @ gates.weight[i]
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, -1)


def mixture(weights: Tensor, outputs: list[Tensor]) -> Tensor:
    assert weights.shape[1] == len(outputs)
    return sum((weights[:, [j]] * out for j, out in enumerate(outputs)), torch.zeros(()))


@given(n=st.integers(1, 2), m=st.integers(1, 2), names=st.sampled_from(["abcd", "ca", "b"]), train=st.booleans())
def test_by_hand(n: int, m: int, names: str, train: bool) -> None:
    """Oracle: the equations over slices, one expert at a time, with torch's batch norm."""
    torch.manual_seed(0)
    sharing, x = stirred(meta=n, own=m, common=2, shared=m, tower=0).train(train), torch.randn(7, 5)
    frozen = {name: b.clone() for name, b in sharing.named_buffers()}
    meta = [[expert(sharing.meta, g * n + j, feature_gate(sharing.meta_input, g, x)) for j in range(n)] for g in range(3)]
    everyone = [out for group in meta for out in group]
    m_shared = mixture(torch.softmax(x @ sharing.meta_gate.weight[0], -1), everyone)
    m_shared = m_shared + mixture(self_gate(sharing.meta_self, 0, x), meta[0])
    common = [expert(sharing.common, j, feature_gate(sharing.common_input, j, m_shared)) for j in range(2)]
    expected = {}
    for c, members in enumerate(("ad", "bc")):
        part: Any = sharing._category(c)
        m_c = mixture(torch.softmax(x @ part.meta_gate.weight[0], -1), meta[0] + meta[1 + c])
        m_c = m_c + mixture(self_gate(part.meta_self, 0, x), meta[1 + c])
        z = torch.cat((m_c, m_shared), 1)
        shared = [expert(part.shared, j, feature_gate(part.shared_input, j, z)) for j in range(m)]
        for i, name in enumerate(members):
            own = [expert(part.own, i * m + j, feature_gate(part.own_input, i * m + j, z)) for j in range(m)]
            h = mixture(torch.softmax(z @ part.gates.weight[i], -1), common + shared + own)
            expected[name] = h + mixture(self_gate(part.self_gates, i, z), own)
    found = hidden(sharing, x, names)
    assert set(found) == set(names)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    moved = any(not torch.equal(b, frozen[name]) for name, b in sharing.named_buffers())
    assert moved == train


def test_feature_gates_start_as_the_identity() -> None:
    x = torch.randn(6, 5)
    torch.testing.assert_close(FeatureGates(3, 5, 2, 2)(x), x.expand(3, 6, 5))


def test_a_task_never_reaches_another_category() -> None:
    """Autograd: no gradient of task a ends in the other category's level 2 or in another task's experts."""
    torch.manual_seed(0)
    sharing = stirred(own=2)
    hidden(sharing, torch.randn(6, 5))["a"].sum().backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in sharing._category(1).parameters())
    own = sharing._category(0).own.first.weight.grad
    assert own is not None
    assert own[:2].abs().sum() > 0
    assert own[2:].abs().sum() == 0
    assert "category_1" not in sharing.reads("a")


def test_folding_changes_no_prediction() -> None:
    """The norms live in the linear layers: same answers, no norm left, and the state fits a model built without norms."""
    torch.manual_seed(0)
    sharing, x = stirred().eval(), torch.randn(6, 5)
    before = hidden(sharing, x)
    sharing.fold()
    assert not [part for part in sharing.modules() if isinstance(part, StackedNorm)]
    again = HoME(TASKS, 5, categories=CATEGORIES, expert=4, rank=2, norm=False)
    again.load_state_dict(sharing.state_dict())
    for name, value in hidden(again, x).items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5)


@given(rows=st.integers(2, 9), names=st.sampled_from([None, [1], [2, 0]]), seed=st.integers(0, 9))
def test_norm_equals_torchs(rows: int, names: list[int] | None, seed: int) -> None:
    """Oracle: nn.BatchNorm1d per slice, output and running moments; slices that are absent keep theirs bit for bit."""
    torch.manual_seed(seed)
    norm, active = StackedNorm(3, 4), None if names is None else torch.tensor(names)
    ran = list(range(3)) if names is None else names
    x = torch.randn(len(ran), rows, 4) * 3 + 1
    found = norm(x, active)
    for place, i in enumerate(ran):
        one = nn.BatchNorm1d(4)
        torch.testing.assert_close(found[place], one(x[place]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.mean[i], one.running_mean)
        torch.testing.assert_close(norm.variance[i], one.running_var)
    for i in set(range(3)) - set(ran):
        assert norm.mean[i].abs().sum() == 0
        assert (norm.variance[i] == 1).all()


def test_a_batch_of_one_trains() -> None:
    """It has no variance: the running moments normalise it and stay as they were."""
    torch.manual_seed(0)
    sharing, x = stirred().train(), torch.randn(1, 5)
    before = {name: b.clone() for name, b in sharing.named_buffers()}
    found = hidden(sharing, x)
    torch.stack([value.sum() for value in found.values()]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in sharing.parameters() if p.grad is not None)
    assert all(torch.equal(b, before[name]) for name, b in sharing.named_buffers())
    expected = hidden(sharing.eval(), x)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_fold_is_exact_in_double() -> None:
    torch.manual_seed(0)
    layer, norm = StackedLinear(2, 3, 4).double(), StackedNorm(2, 4).double()
    for _ in range(5):
        norm(layer(torch.randn(20, 3, dtype=torch.float64)))
    x = torch.randn(6, 3, dtype=torch.float64)
    expected = norm.eval()(layer(x))
    norm.fold_into(layer)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"categories": {"one": ["a", "b", "c", "dd"]}}, "category 'one': unknown task 'dd'; did you mean 'd'"),
        ({"categories": {"one": ["a", "b", "c"]}}, "task 'd' is in no category"),
        ({"categories": {"one": ["a", "b"], "two": ["b", "c", "d"]}}, "task 'b' is also in category 'one'"),
        ({"categories": {"one": ["a", "b", "c", "d"], "two": []}}, "'two': holds no task"),
        ({"meta": 0}, "meta must be a whole number of at least 1"),
        ({"rank": 0}, "rank must be"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        HoME(TASKS, 5, **settings)


def test_without_categories_tasks_of_a_kind_are_together() -> None:
    tasks = [Task("p"), *TASKS[:2], Task("q")]
    assert HoME(tasks, 5).members == [["p", "q"], ["a", "b"]]
