"""Kinds of task: how a cell's value, a head's outputs and a prediction hang together.

A `Kind` is an open record: a domain registers its own (dense maps, tags, rankings …) with `register`. The five here serve
tables. Shapes: `outputs` [m, width], `values` [m], `loss` [m], and `link(outputs)` is what metrics and files see:

| kind       | width | values           | link                                    |
|------------|-------|------------------|-----------------------------------------|
| binary     | 1     | 0., 1.           | P(positive) [m]                         |
| multiclass | C     | class index      | P(class) [m, C]                         |
| ordinal    | C − 1 | class index      | P(class) [m, C]                         |
| regression | 1     | real             | mean [m], in the target's units         |
| count      | 1     | 0, 1, 2 …        | mean [m]                                |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus import catalog
from pluribus.errors import BadInput, unknown


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    name: as in `Task(kind=…)` and on the command line.
    width: number of classes (0 for numbers) → outputs per cell.
    loss: (outputs [m, width], values [m]) → loss per cell [m].
    link: outputs → predictions (see the module's table).
    start: (values, number of classes) → outputs [width] of the best constant predictor; heads begin there.
    metrics: names judged by default, the main one first.
    classes: whether values are class indices that stand for labels.
    standardise: whether the target is centred and scaled for training (the head undoes it).
    listed: whether a cell is a list, one class a word of the row's text: values [m, W], −1 behind the last word.
    """

    name: str
    width: Callable[[int], int]
    loss: Callable[[Tensor, Tensor], Tensor]
    link: Callable[[Tensor], Tensor]
    start: Callable[[Tensor, int], Tensor]
    metrics: tuple[str, ...]
    classes: bool = False
    standardise: bool = False
    listed: bool = False


def _one(_: int) -> int:
    return 1


def _binary_loss(outputs: Tensor, values: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], values.to(outputs.dtype), reduction="none")


def _binary_start(values: Tensor, _: int) -> Tensor:
    rate = values.double().mean().clamp(1e-4, 1 - 1e-4)
    logit: Tensor = torch.logit(rate)
    return logit.float()[None]


def _multiclass_loss(outputs: Tensor, values: Tensor) -> Tensor:
    return F.cross_entropy(outputs, values.long(), reduction="none")


def _frequencies(values: Tensor, size: int) -> Tensor:
    counts = torch.bincount(values.long(), minlength=size).double() + 1e-2
    shares: Tensor = counts / counts.sum()
    return shares


def _regression_loss(outputs: Tensor, values: Tensor) -> Tensor:
    return (outputs[:, 0] - values.to(outputs.dtype)).square()


LARGEST_LOG_MEAN = 30.0


def _mean_of_counts(outputs: Tensor) -> Tensor:
    """exp(z); beyond `LARGEST_LOG_MEAN` it goes on along its tangent, so that neither value nor gradient overflows."""
    log_mean = outputs[:, 0]
    bounded = log_mean.clamp_max(LARGEST_LOG_MEAN)
    mean: Tensor = bounded.exp() * (1 + (log_mean - bounded))
    return mean


def _count_loss(outputs: Tensor, values: Tensor) -> Tensor:
    """Poisson negative log-likelihood up to a constant in the values; non-negative form (half the unit deviance)."""
    log_mean, values = outputs[:, 0], values.to(outputs.dtype)
    deviance: Tensor = _mean_of_counts(outputs) - values * log_mean + torch.special.xlogy(values, values) - values
    return deviance


def _cumulative(outputs: Tensor) -> Tensor:
    """Logits of P(y > k), k = 0 … C−2: decreasing in k by construction, so that no class gets a negative probability."""
    first, steps = outputs[:, :1], F.softplus(outputs[:, 1:])
    return torch.cat((first, first - steps.cumsum(1)), 1)


def _ordinal_loss(outputs: Tensor, values: Tensor) -> Tensor:
    """−log P(y): with a = logit P(y > k−1), b = logit P(y > k), P = σ(a) − σ(b) = σ(a)·σ(−b)·(1 − e^{b−a})."""
    logits = _cumulative(outputs)
    padded = F.pad(logits, (1, 1))
    padded[:, 0], padded[:, -1] = torch.inf, -torch.inf
    index = values.long()[:, None]
    above, below = padded.gather(1, index)[:, 0], padded.gather(1, index + 1)[:, 0]
    inner = (index[:, 0] > 0) & (index[:, 0] < logits.shape[1])
    gap = torch.where(inner, above - below, torch.ones_like(above)).clamp_min(1e-6)
    log_gap = torch.where(inner, torch.log(-torch.expm1(-gap)), torch.zeros_like(gap))
    return F.softplus(-above) + F.softplus(below) - log_gap


def _ordinal_link(outputs: Tensor) -> Tensor:
    beyond = torch.sigmoid(_cumulative(outputs))
    ones = torch.ones_like(beyond[:, :1])
    return (torch.cat((ones, beyond), 1) - torch.cat((beyond, torch.zeros_like(ones)), 1)).clamp_min(0)


def _ordinal_start(values: Tensor, size: int) -> Tensor:
    beyond = 1 - _frequencies(values, size).cumsum(0)[:-1]
    logits = torch.logit(beyond.clamp(1e-6, 1 - 1e-6))
    steps = (logits[:-1] - logits[1:]).clamp_min(1e-4)
    return torch.cat((logits[:1], torch.log(torch.expm1(steps)))).float()


KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> Kind:
    """Add a kind; a name can be registered once."""
    if kind.name in KINDS:
        raise BadInput(f"kind {kind.name!r} is registered already", remedy="choose another name")
    KINDS[kind.name] = kind
    return kind


BINARY = register(
    Kind("binary", _one, _binary_loss, lambda z: torch.sigmoid(z[:, 0]), _binary_start, ("auc", "logloss"), classes=True)
)
MULTICLASS = register(
    Kind(
        "multiclass",
        lambda size: size,
        _multiclass_loss,
        lambda z: torch.softmax(z, 1),
        lambda values, size: _frequencies(values, size).log().float(),
        ("logloss", "accuracy"),
        classes=True,
    )
)
ORDINAL = register(
    Kind("ordinal", lambda size: size - 1, _ordinal_loss, _ordinal_link, _ordinal_start, ("logloss", "qwk"), classes=True)
)
REGRESSION = register(
    Kind(
        "regression",
        _one,
        _regression_loss,
        lambda z: z[:, 0],
        lambda values, _: torch.zeros(1),
        ("rmse", "mae", "r2"),
        standardise=True,
    )
)
COUNT = register(
    Kind(
        "count",
        _one,
        _count_loss,
        _mean_of_counts,
        lambda values, _: values.double().mean().clamp_min(1e-4).log().float()[None],
        ("poisson_deviance", "rmse"),
    )
)


def names() -> tuple[str, ...]:
    """The names of all kinds: those registered, and those that the catalog lists for a domain that is not imported yet."""
    return tuple(dict.fromkeys((*KINDS, *(entry.name for entry in catalog.entries(family="kind")))))


def kind(name: str, *, where: str | None = None) -> Kind:
    """The kind called `name`, a domain's from its own package; an unknown name is an error that suggests the nearest."""
    if name not in KINDS:
        if name not in names():
            raise unknown("kind", name, names(), where=where)
        catalog.get("kind", name).resolve()
    return KINDS[name]
