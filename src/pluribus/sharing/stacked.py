"""What architectures with stacked parts have in common: the order of the tasks, gates, experts, towers, ownership.

Every set of parallel small networks is one stacked weight (`pluribus.modeling.experts`). A part that holds `each` entries a task,
in the tasks' order, is named in `owned`; the rows of an absent task then neither run nor move.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Sharing
from pluribus.modeling.experts import Bank, StackedLinear
from pluribus.tasks import Task


def at_least(minimum: int, where: str, **counts: int) -> None:
    """Each count is a whole number of at least `minimum`; otherwise a `BadInput` that names it."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise BadInput(f"{name} must be a whole number of at least {minimum}, not {value!r}", where=where)


def vectors(features: Features, where: str) -> Tensor:
    """`features.main` where it is one vector a row [B, d]; otherwise a `BadInput`."""
    if features.main.ndim != 2:
        shape = list(features.main.shape)
        raise BadInput(f"needs one vector a row, not features of shape {shape}", where=where, remedy="pool them first")
    return features.main


class Experts(Bank):
    """E experts of one hidden shape whose output passes a ReLU: x [B, in] or [A, B, in] → [A, B, out]."""

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        return F.relu(super().forward(x, active))


def alone(bank: Bank, i: int, x: Tensor) -> Tensor:
    """Entry i of a bank on rows of its own [m, in] → [m, out], a ReLU after every layer."""
    for layer in bank.layers:
        assert isinstance(layer, StackedLinear)
        weight: Tensor = layer.weight
        bias: Tensor = layer.bias
        x = F.relu(torch.addmm(bias[i], x, weight[i]))
    return x


class Gates(StackedLinear):
    """G gates over E experts: softmax(x W_g), no bias: x [B, in] or [A, B, in] → weights [A, B, E] that sum to one.

    top_k: only the k largest of a row count, the others weigh exactly 0 (None: all).
    dropout: share of experts a gate must do without in training, so that no gate polarises (Zhao et al., "Recommending What
        Video to Watch Next", RecSys 2019); the rest is rescaled to sum to one, a gate that would lose all keeps all.
    """

    def __init__(self, size: int, inputs: int, experts: int, *, top_k: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(size, inputs, experts)
        del self.bias
        self.register_parameter("bias", None)
        self.top_k, self.dropout = None if top_k is None or top_k >= experts else top_k, dropout

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        weight: Tensor = self.weight if active is None else self.weight[active]
        logits = torch.matmul(x, weight)
        if self.top_k is not None:
            kept, where = logits.topk(self.top_k, -1)
            logits = torch.full_like(logits, -torch.inf).scatter(-1, where, kept)
        weights = torch.softmax(logits, -1)
        if self.training and self.dropout:
            left = weights * (torch.rand_like(weights) >= self.dropout)
            total = left.sum(-1, keepdim=True)
            weights = torch.where(total > 0, left / total.clamp_min(1e-12), weights)
        return weights


def mix(weights: Tensor, outputs: Tensor) -> Tensor:
    """Σ_e weights[a, b, e] · outputs[e, b, :] → [A, B, d], as one batched product over the rows."""
    return torch.bmm(weights.transpose(0, 1), outputs.transpose(0, 1)).transpose(0, 1)


def mix_own(weights: Tensor, outputs: Tensor) -> Tensor:
    """Σ_m weights[a, b, m] · outputs[a, m, b, :] → [A, B, d]: each mixes its own."""
    return torch.einsum("abm,ambd->abd", weights, outputs)


class Towers(nn.Module):
    """One hidden layer with ReLU per task, or nothing where `tower` is 0; only on the rows that the task asks for."""

    def __init__(self, tasks: int, width: int, tower: int) -> None:
        super().__init__()
        self.width = tower or width
        self.bank = Bank(tasks, (width, tower)) if tower else None

    def forward(
        self, hidden: Tensor, order: Sequence[str], active: Tensor | None, rows: Rows, features: Features
    ) -> dict[str, Features]:
        """hidden [A, B, d] of the tasks in `order` → what their heads read."""
        if self.bank is None:
            return {name: Features(one, context=features.context) for name, one in zip(order, hidden.unbind())}
        wanted = [rows[name] for name in order]
        asked = sum(hidden.shape[1] if r is None else len(r) for r in wanted)
        if asked > 0.75 * hidden.shape[0] * hidden.shape[1]:  # nearly all: one batched product
            high = F.relu(self.bank(hidden, active))
            return {name: Features(one, context=features.context) for name, one in zip(order, high.unbind())}
        found = {}
        places = range(len(order)) if active is None else active.tolist()
        for i, (name, place) in enumerate(zip(order, places)):
            one = Features(hidden[i], context=features.context).at(rows[name])
            found[name] = Features(alone(self.bank, place, one.main), context=one.context, selected=one.selected)
        return found


class Stacked(Sharing):
    """Base of the architectures: `index` gives a task's place, `owned` the parts that hold `each` entries a task."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.index = {task.name: i for i, task in enumerate(tasks)}
        self.owned: dict[str, int] = {}

    def requested(self, rows: Rows, device: torch.device) -> tuple[list[str], Tensor | None]:
        """Names in the order of their places, and these places (None: all)."""
        order = [name for name in self.index if name in rows]
        if len(order) == len(self.index):
            return order, None
        return order, torch.tensor([self.index[name] for name in order], device=device)

    def slices(self, task: str) -> dict[str, slice]:
        i = self.index[task]
        return {
            name: slice(i * each, (i + 1) * each)
            for part, each in self.owned.items()
            for name, _ in self.named_parameters()
            if name == part or name.startswith(part + ".")
        }


def entries(active: Tensor | None, each: int) -> Tensor | None:
    """Places of tasks → places of their entries in a stack that holds `each` a task (None: all)."""
    if active is None or each == 1:
        return active
    return (active[:, None] * each + torch.arange(each, device=active.device)).flatten()
