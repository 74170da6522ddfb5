"""What to look at before merging: do the models belong together, where do they disagree, and what would each road cost?

`examine` walks the task vectors once or twice, a chunk at a time, and reports for every layer (see `layer_of`)
    distance   ‖τ_t‖ / ‖θ0‖ of each expert          cosine    mean pairwise cosine of the τ_t
    conflict   share of entries in which two experts moved in opposite directions, among those in which at least two moved
    overlap    mean pairwise Jaccard index of the entries with the largest fifth of |τ_t|
Experts that moved further than the base is long did not start from this base, most likely; the report says so.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pluribus.merging.algebra import Method, Span, WeightedSum, total
from pluribus.merging.checkpoints import MergePlan
from pluribus.merging.folder import own_names
from pluribus.merging.source import is_statistic
from pluribus.merging.stream import Engine, TensorPass, one_thread
from pluribus.merging.trim import Trim

TOP = 0.2


def layer_of(name: str) -> str:
    """A tensor's layer: its name up to and including the first number ("encoder.layer.3"), else its module."""
    found = re.match(r"(.*?\.\d+)(?:\.|$)", name)
    return found.group(1) if found else name.rpartition(".")[0] or name


@dataclass
class LayerFigures:
    """Figures of one layer. distance: by task. cosine, conflict and overlap are None with one expert."""

    name: str
    entries: int
    distance: dict[str, float]
    cosine: float | None
    conflict: float | None
    overlap: float | None


@dataclass
class Examination:
    """The doctor's findings. roads: bytes on disk and in memory of each way to serve the tasks."""

    tasks: tuple[str, ...]
    layers: list[LayerFigures]
    whole: LayerFigures
    heads: dict[str, tuple[str, ...]]
    notes: list[str]
    warnings: list[str]
    roads: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def svg(self) -> str:
        """A picture: one row a layer, bars for cosine, conflict and overlap."""
        rows = [self.whole, *self.layers]
        columns = (("cosine", "#3b6ea5"), ("conflict", "#b5483a"), ("overlap", "#5a8a4a"))
        width, line, left = 760, 18, 260
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{line * (len(rows) + 2)}" '
            'font-family="sans-serif" font-size="11">'
        ]
        for i, (name, colour) in enumerate(columns):
            parts.append(f'<text x="{left + 165 * i}" y="13" fill="{colour}">{name}</text>')
        for r, row in enumerate(rows):
            y = line * (r + 1)
            parts.append(f'<text x="4" y="{y + 13}">{html.escape(row.name)}</text>')
            for i, (name, colour) in enumerate(columns):
                value = getattr(row, name)
                if value is not None:
                    x = left + 165 * i
                    parts.append(
                        f'<rect x="{x}" y="{y + 3}" width="{120 * min(1.0, abs(value)):.1f}" height="11" fill="{colour}"/>'
                    )
                    parts.append(f'<text x="{x + 124}" y="{y + 13}">{value:.2f}</text>')
        return "\n".join([*parts, "</svg>"])


def examine(plan: MergePlan) -> Examination:
    """Look at a plan's task vectors. Reads every input twice."""
    engine = Engine(plan.base, plan.experts, plan.merged, Method(WeightedSum()))
    tasks, t_count = engine.tasks, len(engine.tasks)
    pairs = list(itertools.combinations(range(t_count), 2))
    sums: dict[str, Tensor] = {}
    entries: dict[str, int] = {}

    with one_thread():
        for name in plan.merged:
            if is_statistic(name):
                continue
            view = TensorPass(engine, name)
            cuts = Trim(TOP).observe(view)

            def figures(tau: Tensor, span: Span, cuts: Any = cuts) -> Tensor:
                wide = tau.double()
                theta = plan.base.read(span.name, span.start, span.stop).double()
                sign = tau.sign()
                moved = (sign != 0).sum(0) >= 2
                opposed = (sign.amax(0) > 0) & (sign.amin(0) < 0)
                kept = torch.stack([cuts[t][1].mask(tau[t].abs(), span.start) & (tau[t] != 0) for t in range(t_count)])
                both = [float((kept[a] & kept[b]).sum()) for a, b in pairs]
                either = [float((kept[a] | kept[b]).sum()) for a, b in pairs]
                products = wide @ wide.T
                return torch.cat(
                    [
                        torch.tensor(
                            [float(theta.square().sum()), float(moved.sum()), float(opposed.sum())], dtype=torch.float64
                        ),
                        products.diagonal(),
                        torch.tensor([float(products[a, b]) for a, b in pairs], dtype=torch.float64),
                        torch.tensor(both, dtype=torch.float64),
                        torch.tensor(either, dtype=torch.float64),
                    ]
                )

            layer = layer_of(name)
            found = total(view, figures)
            sums[layer] = sums[layer] + found if layer in sums else found
            entries[layer] = entries.get(layer, 0) + math.prod(plan.base.shape(name))

    def row(name: str, s: Tensor, n: int) -> LayerFigures:
        base, moved, opposed = s[:3].tolist()
        energy = s[3 : 3 + t_count]
        rest = s[3 + t_count :].view(3, len(pairs)) if pairs else None
        distance = {t: math.sqrt(float(e) / base) if base > 0 else math.inf for t, e in zip(tasks, energy)}
        if rest is None:
            return LayerFigures(name, n, distance, None, None, None)
        cosines = [
            float(d) / math.sqrt(float(energy[a] * energy[b])) if float(energy[a] * energy[b]) > 0 else 0.0
            for d, (a, b) in zip(rest[0], pairs)
        ]
        jaccard = [float(x / y) if float(y) > 0 else 0.0 for x, y in zip(rest[1], rest[2])]
        return LayerFigures(
            name, n, distance, sum(cosines) / len(cosines), opposed / moved if moved else 0.0, sum(jaccard) / len(jaccard)
        )

    layers = [row(name, s, entries[name]) for name, s in sums.items()]
    whole = row("all layers", torch.stack(list(sums.values())).sum(0), sum(entries.values()))
    return Examination(tasks, layers, whole, plan.heads, plan.notes, _warnings(whole), roads(plan))


def _warnings(whole: LayerFigures) -> list[str]:
    found = []
    for task, distance in whole.distance.items():
        if distance > 0.7:
            found.append(f"expert {task!r} lies {distance:.2f} base norms away: it hardly started from this base")
        elif distance == 0:
            found.append(f"expert {task!r} equals the base")
    if whole.cosine is not None and whole.cosine > 0.99:
        found.append("the experts' updates are all but the same: an average will do")
    return found


def roads(plan: MergePlan) -> list[dict[str, Any]]:
    """Bytes of each way to serve the tasks, heads included, and what each needs at prediction time."""
    trunk = sum(math.prod(s) * d.itemsize for s, d in plan.layout().values())
    heads = sum(
        math.prod(plan.originals[t].shape(n)) * plan.originals[t].dtype(n).itemsize
        for t, names in plan.heads.items()
        for n in own_names(plan, t, names).values()
    )
    mergeable = sum(math.prod(plan.base.shape(n)) for n in plan.merged)
    tasks = len(plan.experts)
    factors = _factors(plan, 16)
    return [
        {"road": "one model per task", "bytes": tasks * trunk + heads, "needs": "the task id"},
        {"road": "one merged model", "bytes": trunk + heads, "needs": "the task id for the head"},
        {
            "road": "masks (emr, tall_masks)",
            "bytes": trunk + 4 * mergeable + tasks * -(-mergeable // 8) + heads,
            "needs": "the task id",
        },
        {
            "road": "rank-16 factors (twin, extracted LoRA)",
            "bytes": trunk + tasks * factors + heads,
            "needs": "the task id or a router",
        },
    ]


def _factors(plan: MergePlan, rank: int) -> int:
    sizes = 0
    for name in plan.merged:
        shape: Sequence[int] = plan.base.shape(name)
        if len(shape) == 2:
            sizes += 4 * min(rank, *shape) * sum(shape)
    return sizes
