"""Every kind of the catalog keeps the protocol: loss, link and start belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss
from tests.conformance.entries import entries_for
from torch import Tensor

from pluribus import catalog
from pluribus.data import Labels
from pluribus.errors import BadInput
from pluribus.modeling import Heads
from pluribus.tasks import KINDS, Kind, Task

CLASSES = ("low", "mid", "high", "top")
TABULAR = entries_for(__name__, "kind", "table")
each_kind = pytest.mark.parametrize("kind", [entry.resolve() for entry in TABULAR], ids=lambda kind: kind.name)


def _values(kind: Kind, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind.cell == "list":  # a set of classes, in a list
        return torch.where(torch.rand(n, len(CLASSES), generator=generator) < 0.4, torch.arange(float(len(CLASSES))), -1)
    if kind.classes:
        size = 2 if kind.name == "binary" else len(CLASSES)
        values = torch.randint(0, size, (n,), generator=generator)
        values[:size] = torch.arange(size)
        return values.float()
    values = torch.randn(n, generator=generator)
    return (values.exp() * 2).round() if kind.name == "count" else values - values.mean()


def test_the_catalog_lists_them_all() -> None:
    entries = catalog.entries(family="kind")
    assert all(KINDS.get(entry.name, entry.resolve()) is entry.resolve() for entry in entries)
    assert {entry.name for entry in entries} == set(KINDS)


@each_kind
@given(seed=st.integers(0, 50))
def test_start_is_the_best_constant(kind: Kind, seed: int) -> None:
    """The mean loss over the labels has no slope at `start`: no constant predictor does better."""
    values = _values(kind, 200, seed)
    outputs = kind.start(values, len(CLASSES)).clone().requires_grad_()
    assert outputs.shape == (kind.width(len(CLASSES)),)
    kind.loss(outputs.expand(200, -1), values).mean().backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, torch.zeros_like(outputs), atol=2e-3, rtol=0)


@each_kind
@given(seed=st.integers(0, 50), scale=st.sampled_from([0.1, 3.0, 50.0, 1000.0]))
def test_losses_and_gradients_are_finite(kind: Kind, seed: int, scale: float) -> None:
    """Far from the truth too; the loss is one number a cell, and none is negative."""
    torch.manual_seed(seed)
    outputs = (scale * torch.randn(40, kind.width(len(CLASSES)))).requires_grad_()
    loss = kind.loss(outputs, _values(kind, 40, seed))
    assert loss.shape == (40,)
    assert (loss >= -1e-5).all()
    loss.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


@each_kind
def test_link_is_what_files_hold(kind: Kind) -> None:
    """Probabilities that sum to one, or a value a row; as many columns as the task names."""
    torch.manual_seed(0)
    classes = () if not kind.classes else CLASSES[:2] if kind.name == "binary" else CLASSES
    task = Task("t", kind.name, classes=classes)
    linked = kind.link(torch.randn(30, kind.width(len(classes))))
    assert linked.shape == ((30,) if len(task.columns) == 1 else (30, len(task.columns)))
    if kind.classes:
        assert ((linked >= 0) & (linked <= 1)).all()
        if linked.ndim == 2 and kind.cell == "value":
            torch.testing.assert_close(linked.sum(1), torch.ones(30))
    if kind.name == "count":
        assert (linked >= 0).all()


@pytest.mark.parametrize("name", ["binary", "multiclass", "ordinal"])
def test_the_loss_of_classes_is_minus_log_of_the_link(name: str) -> None:
    """Oracle: −log P(y) from the probabilities."""
    torch.manual_seed(0)
    kind = KINDS[name]
    outputs, values = 2 * torch.randn(50, kind.width(len(CLASSES))), _values(kind, 50, 0)
    p = kind.link(outputs)
    of_label = torch.where(values > 0, p, 1 - p) if p.ndim == 1 else p.gather(1, values.long()[:, None])[:, 0]
    torch.testing.assert_close(kind.loss(outputs, values), -of_label.log(), rtol=1e-3, atol=1e-4)


def test_the_pinball_loss_is_scikit_learns() -> None:
    """Oracle: the mean over the levels of scikit-learn's, from the quantiles."""
    torch.manual_seed(0)
    task = Task("t", "quantile", levels=(0.05, 0.3, 0.75, 0.99))
    outputs, values = torch.randn(60, 4, dtype=torch.float64), torch.randn(60, dtype=torch.float64)
    q = task.record.link(outputs)
    each = [mean_pinball_loss(values, q[:, i], alpha=level) for i, level in enumerate(task.levels)]
    assert task.record.loss(outputs, values).mean().item() == pytest.approx(np.mean(each))


@given(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True),
    st.integers(0, 10**6),
    st.sampled_from([0.1, 10.0, 1e4]),
    st.floats(1e-3, 1e6),
)
def test_quantiles_never_cross(levels: list[float], seed: int, spread: float, scale: float) -> None:
    """Whatever a network says, also on the target's own scale: a higher level never lies below a lower one."""
    task = Task("t", "quantile", levels=tuple(sorted(levels)))
    outputs = spread * torch.randn(50, len(levels), generator=torch.Generator().manual_seed(seed))
    q = task.record.link(outputs) * scale - 3.7
    assert q.shape == (50, len(levels))
    assert (q.diff(dim=1) >= 0).all()


@given(st.integers(0, 50), st.sampled_from([2.0**-10, 4.0, 2.0**20]))
def test_quantiles_follow_the_scale_of_the_target(seed: int, scale: float) -> None:
    """Broken: euros in thousands are learned otherwise than euros. Powers of two, so that no rounding differs."""
    values = torch.randn(100, generator=torch.Generator().manual_seed(seed)).exp()
    task = Task("t", "quantile")
    found = []
    for factor in (1.0, scale):
        heads = Heads([task], 3)
        with torch.no_grad():
            heads.start({"t": Labels(factor * values, torch.arange(100))})
            heads.weight.fill_(0.3)
        outputs = {"t": torch.ones(5, 3) @ heads.weight.T + heads.bias}
        found.append(
            (heads.link(outputs)["t"] / factor, heads.loss("t", outputs["t"], Labels(factor * values[:5], torch.arange(5))))
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    heads.start({"t": Labels(values, torch.arange(100))})
    empirical = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(heads.link({"t": heads.bias[None]})["t"][0], empirical, rtol=1e-4, atol=1e-4)


def test_levels_that_no_task_can_have() -> None:
    for levels in ((0.5, 0.1), (0.0, 0.5), (0.5, 1.0), (0.2, 0.2)):
        with pytest.raises(BadInput, match="levels must ascend between 0 and 1"):
            Task("t", "quantile", levels=levels)
    with pytest.raises(BadInput, match="has levels, and kind 'regression' predicts none"):
        Task("t", "regression", levels=(0.5,))
    task = Task("t", "quantile", levels=(0.25, 0.75))
    assert Task.from_dict(task.to_dict()) == task
    assert task.columns == ("t__q0.25", "t__q0.75")
    assert task.main_metric.checked([[1.0, 2.0]], [1.5])[0].shape == (1, 2)


def test_the_loss_of_sets_is_the_mean_of_binary_losses() -> None:
    """Oracle: one binary task a class; padded with a mask or with −1."""
    torch.manual_seed(0)
    kind, outputs = KINDS["multilabel"], torch.randn(30, 4)
    values = _values(kind, 30, 1)
    held = torch.stack([(values == c).any(1) for c in range(4)], 1).float()
    each = torch.stack([KINDS["binary"].loss(outputs[:, c : c + 1], held[:, c]) for c in range(4)], 1)
    torch.testing.assert_close(kind.loss(outputs, values), each.mean(1))
    torch.testing.assert_close(kind.loss(outputs, values.clamp_min(0).int(), values >= 0), each.mean(1))
    none = kind.loss(outputs, torch.zeros(30, 1, dtype=torch.int32), torch.zeros(30, 1, dtype=torch.bool))
    torch.testing.assert_close(none, torch.nn.functional.softplus(outputs).mean(1))
