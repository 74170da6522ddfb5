"""Every kind of the catalog keeps the protocol: loss, link and start belong together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.entries import entries_for
from torch import Tensor

from pluribus import catalog
from pluribus.tasks import KINDS, Kind, Task

CLASSES = ("low", "mid", "high", "top")
TABULAR = entries_for(__name__, "kind", "table")
each_kind = pytest.mark.parametrize("kind", [entry.resolve() for entry in TABULAR], ids=lambda kind: kind.name)


def _values(kind: Kind, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
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
        if linked.ndim == 2:
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
