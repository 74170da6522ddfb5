"""Heads: one fused matrix for all tasks, units in and out; for values, lists and maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.data import Labels
from pluribus.errors import BadInput
from pluribus.modeling import Encoder, Features, Heads, MultiTaskModel
from pluribus.modeling.pieces import collected
from pluribus.sharing import MMoE, SharedBottom
from pluribus.tabular.members import MemberHeads
from pluribus.tasks import Metric, Task
from pluribus.tasks.kinds import KINDS, Kind
from pluribus.tasks.kinds.labels import frequencies

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


# -- lists and maps --------------------------------------------------------------------------------------------------------


def _mean(each: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the places of each row [m]."""
    there = torch.ones_like(each) if mask is None else mask.to(each.dtype)
    return (each * there).flatten(1).sum(1) / there.flatten(1).sum(1)


def _areas(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return _mean(F.cross_entropy(outputs, values.long().clamp_max(2), reduction="none"), mask)


def _heights(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return _mean((outputs[:, 0] - values.nan_to_num()).square(), mask)


def _words(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return _areas(outputs.movedim(-1, 1), values, mask)


MINE = (Metric("mine", "max"),)
HELD: tuple[Any, ...] = (
    Kind("areas", int, _areas, lambda z: z.argmax(1), lambda v, n: frequencies(v, n).log().float(), MINE, cell="map"),
    Kind("heights", lambda _: 1, _heights, lambda z: z[:, 0], lambda *_: torch.zeros(1), MINE, cell="map", standardise=True),
    Kind("words", int, _words, lambda z: z.argmax(-1), lambda v, n: torch.zeros(n), MINE, cell="list"),
)


@pytest.fixture(scope="module", autouse=True)
def kinds() -> Iterator[None]:
    for kind in HELD:
        KINDS.register(kind)
    yield
    for kind in HELD:
        del KINDS._held[kind.name]


CLASSES = ("a", "b", "c")


def _maps() -> tuple[Task, ...]:
    return Task("area", "areas", CLASSES), Task("height", "heights")


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("names", [["area", "height"], ["height"], ["area"]])
def test_maps_are_a_convolution_with_the_same_weight(size: int, names: list[str]) -> None:
    """Oracle: F.conv2d with each task's rows of the weight. An 8×8 map of width 8 once went through along its last side."""
    torch.manual_seed(0)
    heads, x = Heads(_maps(), 8), torch.randn(3, 8, size, size)
    features = Features(x)
    found = heads(dict.fromkeys(names, features), dict.fromkeys(names, torch.tensor([2, 0])))
    for name in names:
        place = heads.place[name]
        expected = F.conv2d(x, heads.weight[place][..., None, None], heads.bias[place])[[2, 0]]
        assert found[name].shape == (2, place.stop - place.start, size, size)
        torch.testing.assert_close(found[name], expected)


def test_lists_are_a_linear_map_at_each_place() -> None:
    """Oracle: F.linear on every place by itself."""
    torch.manual_seed(0)
    heads, x = Heads((Task("word", "words", CLASSES), Task("loss")), 4), torch.randn(2, 5, 4)
    found = heads({"word": Features(x)}, {"word": None})["word"]
    for i in range(5):
        torch.testing.assert_close(found[:, i], F.linear(x[:, i], heads.weight[:3], heads.bias[:3]))


def test_maps_are_judged_and_answered_at_the_size_of_the_labels() -> None:
    """Oracle: F.interpolate of the outputs, bilinear between centres; void places do not count."""
    torch.manual_seed(0)
    heads = Heads(_maps(), 8)
    values = torch.randint(0, 3, (2, 12, 20), dtype=torch.uint8)
    mask = torch.rand(2, 12, 20) > 0.3
    labels = Labels(values.masked_fill(~mask, 255), torch.arange(2), mask)
    heads.start({"area": labels})
    counts = torch.bincount(values[mask].long(), minlength=3)
    torch.testing.assert_close(heads.bias[:3].softmax(0), counts / counts.sum(), atol=1e-3, rtol=0)
    outputs = heads({"area": Features(torch.randn(2, 8, 4, 5))}, {"area": None})["area"]
    large = F.interpolate(outputs, size=(12, 20), mode="bilinear", align_corners=False)
    each = F.cross_entropy(large, values.long(), reduction="none") * mask
    torch.testing.assert_close(heads.loss("area", outputs, labels), each.sum((1, 2)) / mask.sum((1, 2)))
    found = heads.link({"area": outputs})["area"]
    assert torch.equal(found, large.argmax(1))
    again = Heads(_maps(), 8)
    again.load_state_dict(heads.state_dict())
    assert torch.equal(again.link({"area": outputs})["area"], found), "the size travels with the weights"


def test_numbers_of_maps_have_units_too() -> None:
    """Mean and scale are those of the places that have a label: NaN elsewhere spoils nothing."""
    heads = Heads(_maps(), 8)
    values = torch.tensor([[[100.0, 300.0], [float("nan"), 200.0]]])
    labels = Labels(values, torch.arange(1), ~values.isnan())
    heads.start({"height": labels})
    assert heads.mean[1] == 200
    torch.testing.assert_close(heads.scale[1], torch.tensor(200.0 * (1 / 6) ** 0.5))
    link = heads.link({"height": torch.zeros(1, 1, 2, 2)})["height"]
    torch.testing.assert_close(link, torch.full((1, 2, 2), 200.0))
    loss = heads.loss("height", torch.zeros(1, 1, 2, 2), labels)
    torch.testing.assert_close(loss, torch.tensor([2 / 3 * 1.5]))  # (1.5, 1.5, 0) on the scale where the variance is 1


def test_features_of_the_wrong_form_are_refused() -> None:
    """A map read as a vector, or a vector as a map, is no number that anybody wants."""
    heads = Heads((*_maps(), Task("loss")), 8)
    with pytest.raises(BadInput, match=r"task 'loss': needs features \[B, d\], and its encoder gives \[2, 8, 8, 8\]"):
        heads({"loss": Features(torch.randn(2, 8, 8, 8))}, {"loss": None})
    with pytest.raises(BadInput, match=r"task 'area': needs features \[B, d, H, W\]"):
        heads({"area": Features(torch.randn(2, 8))}, {"area": None})
    with pytest.raises(BadInput, match="an ensemble of members answers one row of outputs a cell"):
        MemberHeads(_maps(), 8, 4)


class _Levels(Encoder):
    """A vector, words and two maps of a row."""

    width = 6

    def forward(self, inputs: Any, context: Mapping[str, Tensor]) -> Features:
        words, fine = inputs["words"], inputs["fine"]
        return Features(fine.mean((2, 3)), (words, fine, F.avg_pool2d(fine, 2)), inputs["mask"], context)


@pytest.mark.parametrize("tower", [0, 5])
def test_each_task_reads_the_features_of_its_form(tower: int) -> None:
    """Values read the vector, lists the words, maps the finest map; tasks that are not asked for change nothing. Oracle: the
    task's rows of the weight at each place by itself, behind the tower's where there is one."""
    torch.manual_seed(0)
    tasks = (*_maps(), Task("word", "words", CLASSES), Task("loss"))
    model = MultiTaskModel(tasks, _Levels(), SharedBottom(tasks, 6, tower=tower))
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    inputs = {"words": torch.randn(3, 3, 6), "fine": torch.randn(3, 6, 4, 4), "mask": mask}
    found = model(inputs)
    assert [found[name].shape[1:] for name in ("area", "height", "word", "loss")] == [(3, 4, 4), (1, 4, 4), (3, 3), (1,)]
    alone = model(inputs, {"word": torch.tensor([2, 0])})
    torch.testing.assert_close(alone["word"], found["word"][[2, 0]])
    assert torch.equal(alone.places["word"], mask[[2, 0]])
    assert len(alone.shared) == 1
    assert len(found.shared) == 3
    for name, read in (("word", inputs["words"]), ("area", inputs["fine"].movedim(1, -1))):
        at = read.reshape(-1, 6)
        if tower:
            layer, i = model.sharing.towers.layers[0], list(model.tasks).index(name)
            at = (at @ layer.weight[i] + layer.bias[i]).relu()
        place = model.heads.place[name]
        flat = F.linear(at, model.heads.weight[place], model.heads.bias[place])
        whole = found[name].movedim(1, -1) if name == "area" else found[name]
        torch.testing.assert_close(whole.reshape(-1, 3), flat)
    predicted = model.predict(inputs)
    assert torch.equal(predicted["word"] >= 0, mask)
    lists = collected("list", [predicted["word"][:1], predicted["word"][1:]])
    assert lists.lengths.tolist() == [2, 1, 3]


def test_a_sharing_architecture_says_what_it_serves() -> None:
    with pytest.raises(BadInput, match="answers by place of a map, and MMoE serves tasks that answer by row"):
        MultiTaskModel(_maps(), _Levels(), MMoE(_maps(), 6))
