"""Heads: the last linear map of every task, fused into one weight, with the tasks' units inside.

Tasks that read the same features share one matrix product. A regression head carries the mean and scale of its target as
buffers, so that `link` answers in the user's units and the loss is computed on the standardised scale.

| a task answers by   | features     | the weight is        | outputs          |
|---------------------|--------------|----------------------|------------------|
| one row a cell      | [B, d]       | a linear map         | [m, width]       |
| place of a list     | [B, L, d]    | a linear map         | [m, L, width]    |
| place of a map      | [B, d, H, W] | a 1×1 convolution    | [m, width, H, W] |

Outputs of maps are resized to the labels before the loss, and predictions to the size that the labels had at the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Labels, Rows
from pluribus.errors import BadInput
from pluribus.modeling.features import Features
from pluribus.tasks import Task
from pluribus.tasks.forms import Form
from pluribus.tasks.kinds import Kind

LAYOUTS: dict[Form, str] = {"value": "[B, d]", "list": "[B, L, d]", "map": "[B, d, H, W]"}


class Heads(nn.Module):
    """One linear head per task: weight [Σ width_t, width], bias [Σ width_t].

    Parameters
    ----------
    tasks : sequence of Task
        In order.
    width : int
        The size of the last (of maps: the channel) dimension of the features.
    """

    mean: Tensor
    scale: Tensor
    extent: Tensor

    def __init__(self, tasks: Sequence[Task], width: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.place: dict[str, slice] = {}
        start = 0
        for task in self.tasks:
            self.place[task.name] = slice(start, start + task.width)
            start += task.width
        bound = 1 / math.sqrt(max(width, 1))
        self.weight = nn.Parameter(torch.empty(start, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(start))
        self.register_buffer("mean", torch.zeros(len(self.tasks)))
        self.register_buffer("scale", torch.ones(len(self.tasks)))
        self._index = {task.name: i for i, task in enumerate(self.tasks)}
        self._form: dict[str, Form] = {task.name: task.record.per for task in self.tasks}
        if "map" in self._form.values():  # only then: weights of other heads have no such tensor
            self.register_buffer("extent", torch.zeros(len(self.tasks), 2, dtype=torch.int64))  # height and width of the labels

    def start(self, labels: Mapping[str, Labels]) -> None:
        """Begin at the best constant predictor: biases, and the mean and scale of standardised targets."""
        with torch.no_grad():
            for i, task in enumerate(self.tasks):
                if task.name not in labels or not len(labels[task.name]):
                    continue
                values, mask = labels[task.name].values, labels[task.name].mask
                if self._form[task.name] == "map":
                    self.extent[i] = torch.tensor(values.shape[1:3])
                    values = values.flatten(0, 2) if mask is None else values[mask]
                if task.record.standardise:
                    spread = values.double().std(correction=0) if len(values) > 1 else torch.zeros(())
                    self.mean[i] = values.double().mean()
                    self.scale[i] = spread if spread > 0 else 1.0
                    values = (values - self.mean[i]) / self.scale[i]
                self.bias[self.place[task.name]] = task.record.start(values, len(task.classes)).to(self.bias)

    def slices(self, task: str) -> dict[str, slice]:
        """Which rows of the stacked weight and bias belong to `task`."""
        return {"weight": self.place[task], "bias": self.place[task]}

    def forward(self, features: Mapping[str, Features], rows: Rows) -> dict[str, Tensor]:
        """Outputs of every requested task at its rows, by the table above.

        Raises
        ------
        BadInput
            A task answers by place of a map and its features are no maps, or the other way round.
        """
        groups: dict[int, list[str]] = {}
        for name in rows:
            main = features[name].main
            if (main.ndim == 4) != (self._form[name] == "map"):
                what = f"needs features {LAYOUTS[self._form[name]]}, and its encoder gives {list(main.shape)}"
                raise BadInput(what, where=f"task {name!r}", remedy="pool maps for values, give maps for maps (Features.levels)")
            groups.setdefault(id(main), []).append(name)
        outputs: dict[str, Tensor] = {}
        for names in groups.values():
            shared = features[names[0]]
            for name, piece in self.products(shared.main, names).items():
                wanted = rows[name]
                outputs[name] = piece if wanted is None or shared.selected else piece[wanted]
        return {name: outputs[name] for name in rows}

    def products(self, main: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of tasks that read the same features `main`, at all of their rows."""
        whole = len(names) == len(self.tasks)
        if main.ndim == 4:
            if whole:
                fused = F.conv2d(main, self.weight[:, :, None, None], self.bias)
                return {name: fused[:, self.place[name]] for name in names}
            own = {name: (self.weight[place], self.bias[place]) for name, place in self.place.items() if name in names}
            return {name: F.conv2d(main, own[name][0][:, :, None, None], own[name][1]) for name in names}
        if whole:
            fused = F.linear(main, self.weight, self.bias)
            return {name: fused[..., self.place[name]] for name in names}
        return {name: F.linear(main, self.weight[self.place[name]], self.bias[self.place[name]]) for name in names}

    def loss(self, name: str, outputs: Tensor, labels: Labels) -> Tensor:
        """Loss per cell [m] of one task, on the standardised scale where its kind has one; maps at the size of the labels."""
        i = self._index[name]
        record = self.tasks[i].record
        values = (labels.values - self.mean[i]) / self.scale[i] if record.standardise else labels.values
        if self._form[name] == "map":
            outputs = resized(outputs, values.shape[1], values.shape[2])
        return self.loss_of(record, outputs, values, labels.mask)

    def loss_of(self, record: Kind, outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """The kind's loss per cell [m], on the scale that the heads work in."""
        return record.loss(outputs, values, mask)

    def link(self, outputs: Mapping[str, Tensor], places: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Predictions in the tasks' own units (see `pluribus.tasks.kinds`); maps at the size that the labels had at the start.

        places: of tasks that answer by place of a list, the places that there are [m, L]; -1 stands behind a row's last element.
        """
        found = {}
        for name, value in outputs.items():
            i = self._index[name]
            record = self.tasks[i].record
            if self._form[name] == "map":
                height, width = self.extent[i].tolist()
                value = resized(value, height, width) if height else value
            mask = None if places is None else places.get(name)
            linked = self.link_of(record, value) if mask is None else record.link(value, mask)
            found[name] = linked * self.scale[i] + self.mean[i] if record.standardise else linked
        return found

    def link_of(self, record: Kind, outputs: Tensor) -> Tensor:
        """The kind's prediction, on the scale that the heads work in."""
        return record.link(outputs)


def resized(outputs: Tensor, height: int, width: int) -> Tensor:
    """Outputs of maps [m, C, H, W] at another size, bilinear between the centres of places."""
    if outputs.shape[-2:] == (height, width):
        return outputs
    return F.interpolate(outputs, size=(height, width), mode="bilinear", align_corners=False)
