"""RealMLP: a perceptron with tuned defaults (Holzmüller, Grinsztajn, Steinwart, "Better by Default: Strong Pre-Tuned MLPs and
Boosted Trees on Tabular Data", NeurIPS 2024, section 3 and appendix A), for several tasks: one trunk, a linear head a task.

    x   robustly scaled columns (`pluribus.tabular.robust`); larger categories as embeddings
    e_j = [V_j^T cos(2π w_j x_j + b_j) + c_j, x_j]           numbers ("PBLD": periodic with bias, linear, dense)
    h_0 = s ⊙ [e, x, …]                                      scale layer, s = 1 at first: a soft choice of columns
    z_l = W_l^T h_{l−1} / √d_{l−1} + b_l                     neural tangent parametrisation (NTP)
    h_l = Drop(z_l + α_l ⊙ (φ(z_l) − z_l))                   parametric activation, α = 1 at first; φ: SELU or Mish
    o_t = W_t^T h_L / √d_L + b_t                             heads, NTP too

The factor 1/√d stands in the forward pass (what a layer hands on is divided already) and weights have unit scale, so that one
learning rate fits all widths. First weights:

- "data" (RealMLP-TD): W ~ N(0, 1), its columns divided by the standard deviation of z on the training rows; b is minus a random
  convex combination of five training values of z ("he+5"), so that the kink of every unit lies among the data;
- "normal" (RealMLP-TD-S): W and b from N(0, 1).

Where paper and public code (pytabkit) differ from this, or leave it open:

- several tasks are ours, and their heads begin at the best constant predictor with W_t = 0 (the code: TD-S does so; TD draws the
  last layer as the others);
- predictions of numbers are held within the range of the training labels (the code: training and validation labels together);
- label smoothing applies to tasks whose main metric judges the label that is chosen; the code's users switch it off by hand for
  metrics of probabilities.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from pluribus.data import Labels
from pluribus.errors import unknown
from pluribus.modeling import Heads, MultiTaskModel
from pluribus.sharing import SharedBottom
from pluribus.sharing.stacked import at_least
from pluribus.tabular.bank import BankEncoder
from pluribus.tabular.dropout import kept
from pluribus.tabular.embeddings import Categorical
from pluribus.tabular.parametric import ACTIVATIONS, Activation, activated
from pluribus.tabular.robust import RobustColumns
from pluribus.tasks import Task
from pluribus.tasks.kinds import Kind
from pluribus.training.schedules import flat_cosine

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns
    from pluribus.data.prepared import Prepared

RealMLPEmbedding = Literal["pbld", "plain"]
REALMLP_EMBEDDINGS: tuple[RealMLPEmbedding, ...] = ("pbld", "plain")
Start = Literal["data", "normal"]
CORNERS = 5  # training values that a first bias is a convex combination of
SHOWN = 1 << 14  # training rows that the first weights are fitted to, at most
_LEAST = 1e-6  # a pre-activation whose standard deviation is below this is constant


class PBLD(nn.Module):
    """Periodic features with bias, a linear map and the number itself, for each feature its own: F → F · `per_feature`.

    Parameters
    ----------
    features : int
        F.
    frequencies : int
        Cosines a feature.
    per_feature : int
        Numbers that a feature becomes, itself the last.
    sigma : float
        Spread of the frequencies at the start.
    copies : int
        E networks side by side.
    """

    def __init__(
        self, features: int, *, frequencies: int = 16, per_feature: int = 4, sigma: float = 0.1, copies: int = 1
    ) -> None:
        super().__init__()
        self.width = features * per_feature
        bound, linear = 1 / math.sqrt(frequencies), per_feature - 1
        self.frequency = nn.Parameter(sigma * torch.randn(copies, features, 1, frequencies))
        self.phase = nn.Parameter(torch.empty(copies, features, 1, frequencies).uniform_(-math.pi, math.pi))
        self.weight = nn.Parameter(torch.empty(copies, features, frequencies, linear).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(copies, features, 1, linear).uniform_(-bound, bound))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [A or 1, B, F] → [A, B, width]."""
        w, b, v, c = (p if active is None else p[active] for p in (self.frequency, self.phase, self.weight, self.bias))
        copies, features, _, linear = v.shape
        seen = x.transpose(1, 2)[..., None]  # [A or 1, F, B, 1]
        u = torch.cos(torch.addcmul(b, seen, 2 * math.pi * w)).flatten(0, 1)
        e = torch.baddbmm(c.flatten(0, 1), u, v.flatten(0, 1))
        e = e.reshape(copies, features, -1, linear)
        return torch.cat((e, seen.expand(copies, -1, -1, -1)), -1).transpose(1, 2).flatten(2)


class NTPLinear(nn.Module):
    """E linear maps: weight [E, in, out], bias [E, out], both from N(0, 1).

    The factor 1/√in of the parametrisation is left to who makes the inputs, so that it costs nothing: they come divided by it.
    """

    def __init__(self, size: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, inputs, outputs))
        self.bias = nn.Parameter(torch.randn(size, outputs))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [A, B, in] → [A, B, out]."""
        weight, bias = (p if active is None else p[active] for p in (self.weight, self.bias))
        if weight.shape[0] == 1:
            return torch.addmm(bias[0], x[0], weight[0])[None]
        return torch.baddbmm(bias[:, None], x, weight)

    @torch.no_grad()
    def fit(self, x: Tensor) -> Tensor:
        """Fit fresh weights to what they will read, x [A, n, in] (all slices): unit deviation, and biases among the data.
        The pre-activations [A, n, out] of the fitted map."""
        z = torch.bmm(x, self.weight)
        deviation = z.std(1, correction=0)
        deviation = torch.where(deviation > _LEAST, deviation, 1.0)
        self.weight.div_(deviation[:, None])
        z.div_(deviation[:, None])
        size, rows, outputs = z.shape
        share = torch.empty(size, CORNERS, outputs).exponential_()
        share /= share.sum(1, keepdim=True)
        corners = z.gather(1, torch.randint(rows, (size, CORNERS, outputs)))
        self.bias.copy_(-(corners * share).sum(1))
        return z + self.bias[:, None]


class RealMLPEncoder(BankEncoder):
    """Columns → hidden units: Features.main [B, width], divided by √width, so that a plain head on them is an NTP head.

    Parameters
    ----------
    columns : FittedColumns
        What the training rows held (scales, levels).
    width : int
        Hidden units a layer.
    depth : int
        Layers.
    activation : {"mish", "selu"}
        φ.
    dropout : float
        Share of units dropped at first; it falls to 0 in the second half of the training ("flat_cosine").
    embedding : {"pbld", "plain"}
        Of the numbers; "plain": as they are scaled.
    parametric : bool
        Whether the activations have α; without, α = 1.
    start : {"data", "normal"}
        The first weights (see the module's text); `begin` fits them.
    sigma : float
        Spread of the frequencies of "pbld".
    category_size : int
        Width of the embedding of a category with more than nine levels.
    copies : int
        E networks side by side.
    """

    def __init__(
        self,
        columns: FittedColumns,
        *,
        width: int = 256,
        depth: int = 3,
        activation: Activation = "mish",
        dropout: float = 0.15,
        embedding: RealMLPEmbedding = "pbld",
        parametric: bool = True,
        start: Start = "data",
        sigma: float = 0.1,
        category_size: int = 8,
        copies: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, "realmlp", width=width, depth=depth, category_size=category_size)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS, where="realmlp")
        if embedding not in REALMLP_EMBEDDINGS:
            raise unknown("numeric embedding", embedding, REALMLP_EMBEDDINGS, where="realmlp")
        if start not in ("data", "normal"):
            raise unknown("start", start, ("data", "normal"), where="realmlp")
        self.width, self.dropout, self.copies, self.start = width, dropout, copies, start
        self.activation, self.parametric = activation, parametric
        self.times = 1.0
        self.robust = RobustColumns(columns)
        large = [columns.cardinalities[i] for i in self.robust.large]
        numbers = self.robust.numbers
        self.numeric = PBLD(numbers, sigma=sigma, copies=copies) if embedding == "pbld" and numbers else None
        self.categorical = Categorical(large, category_size, copies) if large else None
        if self.categorical is not None:
            nn.init.normal_(self.categorical.table)
        known = numbers if self.numeric is None else self.numeric.width
        inputs = known + self.robust.fixed + category_size * len(large)
        self.scale = nn.Parameter(torch.ones(copies, inputs))
        self.layers = nn.ModuleList(NTPLinear(copies, a, b) for a, b in itertools.pairwise([inputs, *[width] * depth]))
        alphas = (nn.Parameter(torch.ones(copies, width)) for _ in range(depth if parametric else 0))
        self.alphas = nn.ParameterList(alphas)
        self.register_buffer("large", torch.tensor(self.robust.large, dtype=torch.int64), persistent=False)

    large: Tensor

    @classmethod
    def of(cls, columns: FittedColumns, *, copies: int = 1, **settings: Any) -> Self:
        return cls(columns, copies=copies, **settings)

    def anneal(self, share: float) -> None:
        """Dropout of a step before which `share` of the training is done."""
        self.times = flat_cosine(share)

    def heads(self, tasks: Sequence[Task]) -> Heads:
        return RangeHeads(tasks, self.width)

    def features(self, x: Tensor, codes: Tensor, active: Tensor | None) -> Tensor:
        h = self._first(x, codes, active)
        masks = self._masks(h.shape[0], h.shape[1], h)
        for i, (layer, mask) in enumerate(zip(self.layers, masks)):
            h = activated(layer(h, active), self.activation, self._alpha(i, active), mask)
        return h

    def _alpha(self, i: int, active: Tensor | None) -> Tensor | None:
        """Of layer i [A, width]."""
        if not self.parametric:
            return None
        alpha: Tensor = self.alphas[i]
        return alpha if active is None else alpha[active]

    def _masks(self, copies: int, rows: int, like: Tensor) -> Sequence[Tensor | float]:
        """What each layer's units are multiplied by [A, B, width], 1/√width of the next map included; a number where nothing is
        dropped."""
        p, factor = self.dropout * self.times, 1 / math.sqrt(self.width)
        if not self.training or p <= 0:
            return [factor] * len(self.layers)
        shape = (len(self.layers), copies, rows, self.width)
        return kept(like.new_empty(shape), p).mul_(factor / (1 - p)).unbind()

    def _first(self, x: Tensor, codes: Tensor, active: Tensor | None) -> Tensor:
        """h_0 / √in [A, B, in]."""
        known, fixed = self.robust(x, codes)
        scale = self.scale if active is None else self.scale[active]
        parts = [known if self.numeric is None else self.numeric(known, active), fixed]
        if self.categorical is not None:
            parts.append(self.categorical(codes.index_select(-1, self.large), active))
        copies = scale.shape[0]
        h = torch.cat([part if part.shape[0] == copies else part.expand(copies, -1, -1) for part in parts], -1)
        return h * (scale * (1 / math.sqrt(max(1, h.shape[-1]))))[:, None]

    @torch.no_grad()
    def begin(self, x: Tensor, codes: Tensor) -> None:
        """Fit fresh weights to rows x [E or 1, n, F], codes [E or 1, n, C] of the training part, layer by layer."""
        if self.start == "normal" or not x.shape[1]:
            return
        h = self._first(x, codes, None)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, NTPLinear)
            h = activated(layer.fit(h), self.activation, self._alpha(i, None), 1 / math.sqrt(self.width))


class RangeHeads(Heads):
    """Linear heads that begin at W = 0, and whose predictions of numbers stay within the range of the training labels.

    Parameters
    ----------
    tasks : sequence of Task
        In order.
    width : int
        The size of the features.
    smoothing : float
        The share of a label that is spread over all classes, of tasks whose main metric judges the label that is chosen.
    """

    low: Tensor
    high: Tensor

    def __init__(self, tasks: Sequence[Task], width: int, smoothing: float = 0.0) -> None:
        super().__init__(tasks, width)
        nn.init.zeros_(self.weight)
        self.register_buffer("low", torch.full((len(self.tasks),), -math.inf))
        self.register_buffer("high", torch.full((len(self.tasks),), math.inf))
        self.smoothed = {task.name: smoothing for task in self.tasks if smoothing and smooths(task)}

    def ranged(self, data: Prepared) -> None:
        """Take the ranges of the training labels."""
        for task in self.tasks:
            values = data.labelled(task.name, "train").counted().values
            if task.record.quantity and isinstance(values, np.ndarray) and len(values):
                i = self._index[task.name]
                self.low[i], self.high[i] = float(values.min()), float(values.max())

    def loss(self, name: str, outputs: Tensor, labels: Labels) -> Tensor:
        share = self.smoothed.get(name)
        if not share:
            return super().loss(name, outputs, labels)
        task = self.tasks[self._index[name]]
        return smoothed(task.record, share, len(task.classes), outputs, labels.values)

    def link(self, outputs: Mapping[str, Tensor], places: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        return {name: self.within(name, value) for name, value in super().link(outputs, places).items()}

    def within(self, name: str, predictions: Tensor) -> Tensor:
        """A task's predictions, held within the range of its labels where they are numbers."""
        i = self._index[name]
        if not self.tasks[i].record.quantity:
            return predictions
        low, high = self.low[i].to(predictions.dtype), self.high[i].to(predictions.dtype)
        return torch.minimum(torch.maximum(predictions, low), high)


def smooths(task: Task) -> bool:
    """Whether labels of a task are smoothed: where they are one class each, and its main metric judges the label chosen."""
    return task.record.classes and task.record.cell == "value" and task.main_metric.decides


def smoothed(record: Kind, share: float, classes: int, outputs: Tensor, values: Tensor) -> Tensor:
    """(1 − ε) ℓ(z, y) + ε · mean over classes c of ℓ(z, c): label smoothing, for any loss that is linear in the target."""
    each = torch.arange(classes, dtype=values.dtype, device=values.device).repeat(len(values))
    spread = record.loss(outputs.repeat_interleave(classes, 0), each).reshape(len(values), classes).mean(1)
    return (1 - share) * record.loss(outputs, values) + share * spread


class RealMLP(MultiTaskModel):
    """One RealMLP for all tasks: a trunk, a head a task."""

    def __init__(self, tasks: Sequence[Task], encoder: RealMLPEncoder, smoothing: float = 0.0) -> None:
        heads = RangeHeads(tasks, encoder.width, smoothing)
        super().__init__(tasks, encoder, SharedBottom(tasks, encoder.width), heads)

    @classmethod
    def of(cls, tasks: Sequence[Task], columns: FittedColumns, *, smoothing: float = 0.0, **settings: Any) -> RealMLP:
        """The model for tables that `columns` encodes; settings: those of `RealMLPEncoder`, and `smoothing` of the heads."""
        return cls(tasks, RealMLPEncoder.of(columns, **settings), smoothing)
