"""Banks: E small networks of one shape side by side, every layer one stacked weight.

The layout serves accelerators, small batches and batch-one serving, where the cost of many small networks is in the calls.
An absent slice does not run, gets a zero gradient and, stepped by `pluribus.training.SliceAdamW` with `active`, keeps weight
and moments bit-identical, whatever the plan.

A plan is how the products of one layer are carried out; the answers are the same to rounding. `plan` chooses by shape:

| plan      | what                                                           | where                                           |
|-----------|----------------------------------------------------------------|-------------------------------------------------|
| "single"  | one plain product                                              | one slice runs                                  |
| "wide"    | one product with the slices' weights side by side [in, E·out]  | on a CPU, at least `WIDE_SLICES` slices on the  |
|           |                                                                | same rows, slices × rows at least `WIDE_ROWS`   |
| "stacked" | one batched product                                            | all else                                        |

A bank of several layers goes through them a few slices at a time where all together would not stay in the cache (`at_once`).

`Packed` parts put several layers that read the same rows into one product for prediction, where the weights stand still and their
joint matrix can be kept. The thresholds are read off docs/results/sharing_speed.md; a loop over the slices was measured there too
and is no plan, since it is nowhere clearly the fastest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Plan = Literal["single", "stacked", "wide"]
WIDE_SLICES = 4
WIDE_ROWS = 4096  # slices times rows from which on one wide product pays for laying the weights side by side
CACHED = 1 << 18  # numbers of one layer's activations that a core's cache holds


def plan(slices: int, rows: int, *, common: bool, cpu: bool) -> Plan:
    """How a stacked layer multiplies: slices that run, rows each, whether all read the same rows, and where."""
    if slices == 1:
        return "single"
    if common and cpu and slices >= WIDE_SLICES and slices * rows >= WIDE_ROWS:
        return "wide"
    return "stacked"


def _single(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat, one = x.flatten(0, -2), weight.squeeze(0)
    h = flat @ one if bias is None else torch.addmm(bias[0], flat, one)
    return h.reshape(1, -1, weight.shape[2])


def _stacked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    each = x.expand(len(weight), *x.shape[-2:])
    return torch.bmm(each, weight) if bias is None else torch.baddbmm(bias[:, None], each, weight)


def _wide(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    size, _, outputs = weight.shape
    flat, beside = x.flatten(0, -2), weight.transpose(0, 1).flatten(1)
    h = flat @ beside if bias is None else torch.addmm(bias.flatten(), flat, beside)
    return h.reshape(-1, size, outputs).transpose(0, 1)


PLANS: dict[Plan, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {"single": _single, "stacked": _stacked, "wide": _wide}


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, in] that all slices read, or [A, B, in], through weight [A, in, out] and bias [A, out] by the plan → [A, B, out]."""
    common = x.ndim == 2 or (len(x) == 1 < len(weight))
    return PLANS[plan(len(weight), x.shape[-2], common=common, cpu=on_cpu(x))](x, weight, bias)


def on_cpu(x: Tensor) -> bool:
    """Whether a CPU's choices hold: it computes here, and not in an exported graph, which serves any number of rows."""
    return x.device.type == "cpu" and not torch.compiler.is_exporting()


def at_once(rows: int, width: int) -> int:
    """How many slices to take through all their layers at a time on a CPU. A layer's activations should stay in a core's cache
    until the next operation reads them; below four slices the products are too small to gain from."""
    return max(4, CACHED // max(1, rows * width))


class StackedLinear(nn.Module):
    """E linear maps: weight [E, in, out], bias [E, out], each drawn as `torch.nn.Linear` draws its own."""

    def __init__(self, size: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.size, self.inputs, self.outputs = size, inputs, outputs
        bound = 1 / math.sqrt(inputs) if inputs else 0.0
        self.weight = nn.Parameter(torch.empty(size, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(size, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [B, in] that all maps read, or [A, B, in] with one batch a map → [A, B, out].

        active: int64 [A], which maps run; default all (A = E).
        """
        return product(x, *self.taken(active))

    def taken(self, active: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight [A, in, out] and the bias [A, out] of the maps that run."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if active is None:
            return weight, bias
        return weight[active], None if bias is None else bias[active]

    def extra_repr(self) -> str:
        return f"{self.size} × ({self.inputs} → {self.outputs})"


class Bank(nn.Module):
    """E multilayer perceptrons of one shape: Linear, then (ReLU, dropout, Linear) for every further width.

    size: E. widths: (in, hidden, …, out), at least two. dropout: share of hidden units dropped in training.
    """

    def __init__(self, size: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.size, self.widths, self.dropout = size, tuple(widths), dropout
        self.layers = nn.ModuleList(StackedLinear(size, a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [B, in] or [A, B, in] → [A, B, out]; `active` (int64 [A]) as in `StackedLinear`."""
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else F.dropout(F.relu(x), self.dropout, self.training), active)
        return x


class StackedNorm(nn.Module):
    """Batch normalisation of E slices, each with its own scale, shift and running moments (Ioffe & Szegedy 2015).

    An absent slice keeps its moments bit for bit. A batch of one row has no variance: in training it is normalised by the
    running moments, as when predicting, and leaves them alone.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, size: int, width: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(size, width))
        self.bias = nn.Parameter(torch.zeros(size, width))
        self.register_buffer("mean", torch.zeros(size, width))
        self.register_buffer("variance", torch.ones(size, width))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [A, B, d] of the active slices → the same shape."""
        weight, bias, mean, variance = self.taken(active)
        found = self.by(x, weight, bias, mean, variance)
        self.keep(active, mean, variance)
        return found

    def taken(self, active: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scale, shift, running mean and running variance [A, d] of the slices that run; where only some do, copies."""
        weight, bias = cast("Tensor", self.weight), cast("Tensor", self.bias)
        if active is None:
            return weight, bias, self.mean, self.variance
        return weight[active], bias[active], self.mean[active], self.variance[active]

    def keep(self, active: Tensor | None, mean: Tensor, variance: Tensor) -> None:
        """Write copies of the moments that `by` moved back."""
        if active is not None and self.training:
            self.mean.index_copy_(0, active, mean)
            self.variance.index_copy_(0, active, variance)

    def by(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """x [A, B, d] with these scales, shifts and running moments [A, d]: by the batch's moments in training (which move the
        running ones), else by the running ones. In training the slices stand side by side [B, A·d], so that torch's own kernel
        makes one pass of all."""
        slices, rows, width = x.shape
        if not (self.training and rows > 1):
            scale = weight * torch.rsqrt(variance + self.eps)
            return torch.addcmul((bias - mean * scale)[:, None], x, scale[:, None])
        beside = x.transpose(0, 1).reshape(rows, slices * width)
        given = mean.view(-1), variance.view(-1), weight.reshape(-1), bias.reshape(-1)
        h = F.batch_norm(beside, *given, training=True, momentum=self.momentum, eps=self.eps)
        return h.view(rows, slices, width).transpose(0, 1)

    @torch.no_grad()
    def fold_into(self, layer: StackedLinear) -> None:
        """Write what this does when predicting into the linear layer before it, which then answers for both."""
        scale = self.weight * torch.rsqrt(self.variance + self.eps)
        layer.bias.copy_((layer.bias - self.mean) * scale + self.bias)
        layer.weight.mul_(scale[:, None])


def beside(*layers: tuple[Tensor, Tensor | None], groups: int = 1) -> tuple[Tensor, Tensor]:
    """Stacked layers that read the same rows as one: each a weight [S, in, out] and a bias [S, out] → weight [G, in, W] and bias
    [G, 1, W], W = Σ (S / G) · out, the layers one after the other, a layer's slices side by side. `groups` = G row sets: the k-th
    G-th of a layer's slices reads set k."""
    weights, biases = [], []
    for weight, bias in layers:
        size, inputs, outputs = weight.shape
        weights.append(weight.reshape(groups, -1, inputs, outputs).transpose(1, 2).flatten(2))
        biases.append(weight.new_zeros(groups, size // groups * outputs) if bias is None else bias.reshape(groups, -1))
    return torch.cat(weights, -1).contiguous(), torch.cat(biases, -1)[:, None].contiguous()


class Packed(nn.Module):
    """A module that, for prediction, keeps joint matrices of its weights: what they answer is the same, in far fewer operations,
    which is what a request of a few rows costs.

    `pack` (or `pluribus.modeling.experts.pack` for a whole model) makes `kept` from `joined`; it is dropped when training begins
    and when weights are loaded or moved, and does not count (`stands`) where gradients are wanted, in an export, or when a weight
    has changed under torch's version count, so that only writes to `.data` go unseen. Packed, the weights are in memory twice.
    """

    kept: Any = None
    seen: tuple[tuple[Tensor, int], ...] = ()

    def joined(self) -> Any:
        """What to keep; None where these settings have no packed form."""
        raise NotImplementedError

    @torch.no_grad()
    def pack(self) -> None:
        self.kept = None if self.training else self.joined()
        self.seen = tuple((p, p._version) for p in self.parameters())

    def stands(self) -> bool:
        if self.kept is None or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return False
        return all([p._version == version for p, version in self.seen])  # noqa: C419 (a list is half the time)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start unpacked: versions are counted anew there."""
        return {**self.__dict__, "kept": None, "seen": ()}

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.kept, self.seen = None, ()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.kept, self.seen = None, ()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.kept, self.seen = None, ()
        super()._load_from_state_dict(*args, **kwargs)


def pack(model: nn.Module) -> None:
    """Pack every part of a model whose weights stand (see `Packed`); parts in training mode stay as they are."""
    for part in model.modules():
        if isinstance(part, Packed):
            part.pack()
