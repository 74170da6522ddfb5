"""What architectures with stacked parts have in common: the order of the tasks, gates, experts, towers, ownership.

Every set of parallel small networks is one stacked weight (`pluribus.modeling.experts`). A part that holds `each` entries a task,
in the tasks' order, is named in `owned`; the rows of an absent task then neither run nor move.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Shared, Sharing
from pluribus.modeling.experts import Bank, Packed, StackedLinear, StackedNorm, at_once, beside, on_cpu, product
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


def widths_of(given: int | Sequence[int], where: str, name: str = "expert") -> tuple[int, ...]:
    """Units of layers, first to last, from one number or a list."""
    found = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not found:
        raise BadInput(f"{name} names no layer", where=where, remedy="name the units of at least one")
    for units in found:
        at_least(1, where, **{name: cast(int, units)})
    return cast("tuple[int, ...]", found)


class Experts(Bank):
    """E experts of one shape, every layer Linear → (batch norm) → activation: x [B, in] or [A, B, in] → [A, B, out].

    norm: with batch norms; `fold` writes them into the linear layers before them, for prediction.
    """

    def __init__(
        self, size: int, widths: Sequence[int], *, norm: bool = False, activation: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__(size, widths)
        self.activation, self.depth = activation, len(widths) - 1
        self.norms = nn.ModuleList(StackedNorm(size, width) for width in widths[1:]) if norm else None

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        size = self.size if active is None else len(active)
        step = at_once(x.shape[-2], max(self.widths[1:])) if on_cpu(x) else size
        if size > step and (x.ndim == 2 or len(x) == size):
            return self._by_groups(x, active, step)
        for i, layer in enumerate(self.layers):
            x = self._end(i, layer(x, active), active)
        return x

    def _by_groups(self, x: Tensor, active: Tensor | None, step: int) -> Tensor:
        """The same, `step` experts through all layers at a time."""
        norms = cast("list[StackedNorm]", list(self.norms or ()))
        layers = [layer.taken(active) for layer in cast(Iterable[StackedLinear], self.layers)]
        scales = [norm.taken(active) for norm in norms]
        groups = zip(*(zip(*(torch.split(part, step) for part in each if part is not None)) for each in (*layers, *scales)))
        inputs = itertools.repeat(x) if x.ndim == 2 else torch.split(x, step)
        found = []
        for h, parts in zip(inputs, groups):  # parts: what every layer, then every norm takes
            for i in range(self.depth):
                h = product(h, *parts[i])
                h = self.activation(norms[i].by(h, *parts[self.depth + i]) if norms else h)
            found.append(h.transpose(0, 1))
        for norm, (_, _, mean, variance) in zip(norms, scales):
            norm.keep(active, mean, variance)
        return torch.cat(found, 1).transpose(0, 1)

    def _end(self, i: int, h: Tensor, active: Tensor | None) -> Tensor:
        return self.activation(h if self.norms is None else self.norms[i](h, active))

    @property
    def first(self) -> StackedLinear:
        return cast(StackedLinear, self.layers[0])

    def alone(self, e: int, x: Tensor) -> Tensor:
        """Expert e on rows of its own [m, in] → [m, out]."""
        active = None if self.norms is None else torch.tensor([e], device=x.device)
        for i, layer in enumerate(self.layers):
            weight, bias = cast(StackedLinear, layer).weight[e], cast(StackedLinear, layer).bias[e]
            x = self._end(i, torch.addmm(bias, x, weight)[None], active)[0]
        return x

    def fold(self) -> None:
        for layer, norm in zip(self.layers, self.norms or ()):
            cast(StackedNorm, norm).fold_into(cast(StackedLinear, layer))
        self.norms = None


class Gates(StackedLinear):
    """G gates over E experts: softmax(x W_g), no bias: x [B, in] or [A, B, in] → weights [A, B, E] that sum to one.

    top_k: only the k largest of a row count, the others weigh exactly 0 (None: all).
    dropout: share of experts a gate must do without in training, so that no gate polarises (Zhao et al., "Recommending What
        Video to Watch Next", RecSys 2019); the rest is rescaled to sum to one, a gate that would lose all keeps all.
    """

    def __init__(self, size: int, inputs: int, experts: int, *, top_k: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(size, inputs, experts)
        if not 0 <= dropout <= 1:
            raise BadInput(f"gate dropout must be a share from 0 to 1, not {dropout!r}", where="gates")
        del self.bias
        self.register_parameter("bias", None)
        self.top_k, self.dropout = None if top_k is None or top_k >= experts else top_k, dropout

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        return self.shares(super().forward(x, active))

    def shares(self, logits: Tensor) -> Tensor:
        """Logits [A, B, E] → weights."""
        if self.top_k is not None:
            kept, where = logits.topk(self.top_k, -1)
            logits = torch.full_like(logits, -torch.inf).scatter(-1, where, kept)
        weights = torch.softmax(logits, -1)
        if self.training and self.dropout:
            left = weights * (torch.rand_like(weights) >= self.dropout)
            total = left.sum(-1, keepdim=True)
            weights = torch.where(total > 0, left / total.clamp_min(1e-12), weights)
        return weights


SMALL = 400  # multiplications a row below which torch's batched product on a CPU takes its matrices element by element
FEW = 64  # rows below which one slow call still beats several


def mix(weights: Tensor, outputs: Tensor) -> Tensor:
    """Σ_e weights[a, b, e] · outputs[e, b, :] → [A, B, d]."""
    if small(weights.shape[0] * outputs.shape[0] * outputs.shape[2], weights):
        return summed(weights, outputs.unbind())
    return torch.bmm(weights.transpose(0, 1), outputs.transpose(0, 1)).transpose(0, 1)  # a product a row


def mix_own(weights: Tensor, outputs: Tensor) -> Tensor:
    """Σ_m weights[a, b, m] · outputs[a, m, b, :] → [A, B, d]: each mixes its own."""
    if small(outputs.shape[1] * outputs.shape[3], weights):
        return summed(weights, outputs.unbind(1))
    return torch.einsum("abm,ambd->abd", weights, outputs)


def small(multiplications: int, weights: Tensor) -> bool:
    """Whether a product a row, each of so many multiplications, is slower than one pass over the rows for each addend: several
    times so with one gate or few experts (docs/results/sharing_speed.md)."""
    if weights.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    return multiplications < SMALL and weights.shape[1] >= FEW


def summed(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    found = weights[..., :1] * outputs[0]
    for e in range(1, len(outputs)):
        found = torch.addcmul(found, weights[..., e : e + 1], outputs[e])
    return found


class Towers(nn.Module):
    """One hidden layer with ReLU per task, or nothing where `tower` is 0; only on the rows that the task asks for."""

    def __init__(self, tasks: int, width: int, tower: int) -> None:
        super().__init__()
        self.width = tower or width
        self.bank = Experts(tasks, (width, tower)) if tower else None

    def joined(self) -> tuple[Tensor, ...]:
        """What `packed` needs: weight [T, d, tower] and bias [T, 1, tower], or nothing."""
        return () if self.bank is None else (self.bank.first.weight.detach(), self.bank.first.bias.detach()[:, None])

    def forward(
        self, hidden: Tensor, order: Sequence[str], active: Tensor | None, rows: Rows, features: Features
    ) -> dict[str, Features]:
        """hidden [A, B, d] of the tasks in `order` → what their heads read."""
        if self.bank is None:
            return {name: Features(one, context=features.context) for name, one in zip(order, hidden.unbind())}
        wanted = [rows[name] for name in order]
        asked = sum(hidden.shape[1] if r is None else len(r) for r in wanted)
        if asked > 0.75 * hidden.shape[0] * hidden.shape[1]:  # nearly all: one batched product
            high = self.bank(hidden, active)
            return {name: Features(one, context=features.context) for name, one in zip(order, high.unbind())}
        found = {}
        places = range(len(order)) if active is None else active.tolist()
        for i, (name, place) in enumerate(zip(order, places)):
            one = Features(hidden[i], context=features.context).at(rows[name])
            found[name] = Features(self.bank.alone(place, one.main), context=one.context, selected=one.selected)
        return found


# For prediction, all tasks on all rows: as few operations as there are different inputs.


class Level(NamedTuple):
    """Experts and gates that read the same rows, in one product: x [B, in] → the gates' mixtures [B, G, d]."""

    weight: Tensor  # [in, E · units + G · E]
    bias: Tensor
    sizes: tuple[int, int]  # columns of the experts' first layers, of the gates
    units: int
    deeper: Sequence[tuple[Tensor, Tensor]]

    def __call__(self, x: Tensor) -> Tensor:
        e, g = torch.mm(x, self.weight).add_(self.bias).split_with_sizes(self.sizes, 1)
        experts = self.sizes[0] // self.units
        return blend(e.relu_().view(-1, experts, self.units), g.view(-1, self.sizes[1] // experts, experts), self.deeper)

    @classmethod
    def of(cls, experts: Sequence[Experts], *gates: tuple[Tensor, Tensor | None]) -> Level:
        weight, bias = beside(*((one.first.weight, one.first.bias) for one in experts), *gates)
        units, columns = experts[0].first.outputs, sum(one.size * one.first.outputs for one in experts)
        return cls(weight[0], bias[0, 0], (columns, weight.shape[2] - columns), units, deeper(experts))


def deeper(experts: Sequence[Experts]) -> list[tuple[Tensor, Tensor]]:
    """The layers behind the first of all these experts of one shape: weight [E, units, out] and bias [E, 1, out] each."""
    layers = zip(*(cast(Iterable[StackedLinear], one.layers) for one in experts))
    return [(torch.cat([x.weight for x in same]), torch.cat([x.bias for x in same])[:, None]) for same in layers][1:]


def blend(e: Tensor, logits: Tensor, deeper: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The experts behind their first layers e [B, E, units], mixed by gates of these logits [B, G, E] → [B, G, d]."""
    for weight, bias in deeper:
        e = torch.baddbmm(bias, e.transpose(0, 1), weight).relu_().transpose(0, 1)
    return torch.bmm(logits.softmax(-1), e)


def towered(hidden: Tensor, *kept: Tensor) -> Tensor:
    """All towers on all rows, hidden [B, T, d] → [T, B, tower], from what `Towers.joined` gave."""
    h = hidden.transpose(0, 1)
    return torch.baddbmm(kept[1], h, kept[0]).relu_() if kept else h


class Stacked(Packed, Sharing):
    """Base of the architectures: `index` gives a task's place, `owned` the parts that hold `each` entries a task."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.index = {task.name: i for i, task in enumerate(tasks)}
        self.owned: dict[str, int] = {}

    def joined(self) -> Any:
        return None

    def everything(self, rows: Rows) -> bool:
        """Whether every task is asked for on every row, no gradient is wanted, and what was packed stands."""
        if self.kept is None or len(rows) != len(self.index):
            return False
        return self.stands() and not [r for r in rows.values() if r is not None]

    def handed(self, hidden: Tensor, features: Features) -> Shared:
        """hidden [T, B, d] of all tasks → what their heads read."""
        context = features.context
        return Shared({name: Features(one, context=context) for name, one in zip(self.index, hidden.unbind())})

    @property
    def normed(self) -> bool:
        """Whether batch norms wait to be folded."""
        return any(isinstance(part, Experts) and part.norms is not None for part in self.modules())

    def fold(self) -> None:
        """Write every expert's batch norms into the linear layers before them, for serving: the same predictions from fewer
        operations, and the state of the same architecture built with `norm=False`."""
        for part in self.modules():
            if isinstance(part, Experts):
                part.fold()
        for part in self.modules():
            if isinstance(part, Packed) and part.kept is not None:
                part.pack()

    def requested(self, rows: Rows, device: torch.device) -> tuple[list[str], Tensor | None]:
        """Names in the order of their places, and these places (None: all)."""
        order = [name for name in self.index if name in rows]
        if len(order) == len(self.index):
            return order, None
        return order, torch.tensor([self.index[name] for name in order], dtype=torch.long, device=device)

    def each(
        self, run: Callable[[Features, Tensor | None], Tensor], features: Features, rows: Rows, *, exact: bool = False
    ) -> dict[str, Features]:
        """`run(features, active)` → [A, B, d] for every requested task: at once where the tasks want nearly all rows, otherwise
        task by task on the rows of each. exact: at once only where all want all rows (for what depends on the rows it sees)."""
        order, active = self.requested(rows, features.main.device)
        everyone = features.main.shape[0]
        whole = [name for name in order if rows[name] is None or len(cast(Tensor, rows[name])) == everyone]
        asked = sum(everyone if rows[name] is None else len(cast(Tensor, rows[name])) for name in order)
        if len(whole) == len(order) or (not exact and asked > 0.75 * len(order) * everyone):
            found = run(features, active).unbind()
            return {name: Features(one, context=features.context) for name, one in zip(order, found)}
        answers = {}
        for name in order:
            own = features.at(rows[name])
            place = torch.tensor([self.index[name]], device=features.main.device)
            answers[name] = Features(run(own, place)[0], context=own.context, selected=own.selected)
        return answers

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
