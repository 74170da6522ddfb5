"""Heads: one fused matrix for all tasks, units in and out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pluribus.data import Labels
from pluribus.modeling import Features, Heads
from pluribus.tasks import Task

TASKS = (Task("loss"), Task("grade", "multiclass", classes=("a", "b", "c")), Task("default", "binary", classes=("0", "1")))


def _labels(values: list[float]) -> Labels:
    return Labels(torch.tensor(values), torch.arange(len(values)))


def test_fused_equals_one_linear_each() -> None:
    """Oracle: F.linear with each task's rows of the weight; on one shared tensor, on several, all tasks and some."""
    torch.manual_seed(0)
    heads, x, z = Heads(TASKS, 4), torch.randn(6, 4), torch.randn(6, 4)
    one, other = Features(x), Features(z)
    expected = {
        task.name: F.linear(x, heads.weight[heads.place[task.name]], heads.bias[heads.place[task.name]]) for task in TASKS
    }
    for names in (["loss", "grade", "default"], ["default", "loss"]):
        found = heads(dict.fromkeys(names, one), dict.fromkeys(names))
        assert list(found) == names
        for name in names:
            torch.testing.assert_close(found[name], expected[name])
    mixed = heads({"loss": one, "grade": other, "default": one}, dict.fromkeys(("loss", "grade", "default")))
    torch.testing.assert_close(mixed["loss"], expected["loss"])
    torch.testing.assert_close(mixed["grade"], F.linear(z, heads.weight[1:4], heads.bias[1:4]))


def test_rows_and_selected_features() -> None:
    """Rows are selected once: features that already hold only the requested rows are not indexed again."""
    torch.manual_seed(0)
    heads, x, rows = Heads(TASKS, 4), torch.randn(6, 4), torch.tensor([4, 0])
    whole = heads({"loss": Features(x)}, {"loss": None})["loss"]
    torch.testing.assert_close(heads({"loss": Features(x)}, {"loss": rows})["loss"], whole[rows])
    torch.testing.assert_close(heads({"loss": Features(x).at(rows)}, {"loss": rows})["loss"], whole[rows])


def test_regression_learns_on_a_standard_scale_and_answers_in_units() -> None:
    heads = Heads(TASKS, 4)
    heads.start({"loss": _labels([1000.0, 1400.0])})
    outputs = torch.tensor([[0.0], [1.0]])
    torch.testing.assert_close(heads.link({"loss": outputs})["loss"], torch.tensor([1200.0, 1400.0]))
    loss = heads.loss("loss", outputs, _labels([1200.0, 1000.0]))
    torch.testing.assert_close(loss, torch.tensor([0.0, 4.0]))


def test_starts_at_the_best_constant() -> None:
    """Base rates are in the biases before the first step; a constant target has scale 1; an absent task is left alone."""
    heads = Heads(TASKS, 4)
    heads.start({"default": _labels([0, 0, 0, 1]), "loss": _labels([7.0, 7.0, 7.0])})
    with torch.no_grad():
        heads.weight.zero_()
    names = ("default", "loss")
    outputs = heads({name: Features(torch.randn(2, 4)) for name in names}, dict.fromkeys(names))
    linked = heads.link(outputs)
    torch.testing.assert_close(linked["default"], torch.full((2,), 0.25))
    torch.testing.assert_close(linked["loss"], torch.full((2,), 7.0))
    assert heads.scale[0] == 1
    assert (heads.bias[heads.place["grade"]] == 0).all()


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_slices_are_disjoint_and_cover(task: str) -> None:
    heads = Heads(TASKS, 4)
    marked = torch.zeros(len(heads.weight))
    for other in TASKS:
        marked[heads.slices(other.name)["weight"]] += 1
    assert (marked == 1).all()
    assert heads.weight[heads.slices(task)["weight"]].shape == (next(t for t in TASKS if t.name == task).width, 4)
