"""The health of experts: three ills that Wang et al. ("HoME", 2024, section 2) saw in production, measured on rows of data.

- collapse: units that are zero on nearly every row (`zero_share`, `dead_units`), experts of unequal scale (`scale_spread`);
- degradation: a shared expert that one task has for itself (`occupancy`);
- underfitting: gates that decide alike for every row or take one expert only (`gate_entropy`).

`health` runs a model once and reports all of them; the functions work on any expert's outputs and any gate's weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.modeling import MultiTaskModel
from pluribus.modeling.experts import Packed
from pluribus.sharing.stacked import Experts, Towers


def zero_share(outputs: Tensor) -> Tensor:
    """Outputs [E, B, d] → share of activations that are exactly 0, per expert [E]."""
    return (outputs == 0).double().mean((1, 2))


def dead_units(outputs: Tensor, within: float = 1e-6) -> Tensor:
    """Outputs [E, B, d] → share of units that stay within `within` of one value on all rows, per expert [E]."""
    return ((outputs.amax(1) - outputs.amin(1)) <= within).double().mean(1)


def scale_spread(outputs: Tensor) -> float:
    """Largest over smallest standard deviation among the experts' outputs [E, B, d]; 1 for one expert, ∞ with a dead one."""
    scale = outputs.double().flatten(1).std(1, correction=0)
    return float(scale.max() / scale.min()) if float(scale.min()) > 0 else math.inf


def gate_entropy(weights: Tensor) -> float:
    """Mean entropy of a gate's weights [B, E] over that of the uniform one: 1 decides nothing, 0 takes one
    expert; NaN for E = 1."""
    if weights.shape[1] == 1:
        return math.nan
    share = weights.double() / weights.double().sum(1, keepdim=True)
    return float(torch.special.entr(share).sum(1).mean()) / math.log(weights.shape[1])


def occupancy(gates: Mapping[str, Tensor]) -> Tensor:
    """Task → weights [B, E] on the same experts → per expert [E] the largest share that one task has of all weight it gets: 1/T
    where tasks use it alike, 1 where one task has it for itself; NaN where nobody does."""
    weight = torch.stack([w.double().mean(0) for w in gates.values()])
    return weight.amax(0) / weight.sum(0)


@dataclass(frozen=True)
class Health:
    """What `health` found. By name of the expert group: zero_share, dead_units (means over its experts), scale_spread;
    by task: gate_entropy (of the last gates); occupancy of each expert that all tasks share."""

    zero_share: dict[str, float] = field(default_factory=dict)
    dead_units: dict[str, float] = field(default_factory=dict)
    scale_spread: dict[str, float] = field(default_factory=dict)
    gate_entropy: dict[str, float] = field(default_factory=dict)
    occupancy: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, None where a figure is not defined."""

        def plain(value: float) -> float | None:
            return value if math.isfinite(value) else None

        groups = ("zero_share", "dead_units", "scale_spread", "gate_entropy")
        found: dict[str, Any] = {name: {k: plain(v) for k, v in getattr(self, name).items()} for name in groups}
        return {**found, "occupancy": [plain(value) for value in self.occupancy]}


def health(model: MultiTaskModel, inputs: Any) -> Health:
    """One pass over `inputs` in eval mode. Architectures without experts or gates give empty fields; experts that top-k gates
    ran on their own rows only are left out."""
    outputs: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        def hook(_: nn.Module, arguments: Any, output: Tensor) -> None:
            outputs[name] = output

        return hook

    towers = {id(part.bank) for part in model.modules() if isinstance(part, Towers)}
    handles = [
        part.register_forward_hook(listen(name))
        for name, part in model.sharing.named_modules()
        if isinstance(part, Experts) and id(part) not in towers
    ]
    packed = [(part, part.kept) for part in model.modules() if isinstance(part, Packed)]
    training = model.training
    model.eval()
    try:
        for part, _ in packed:  # packed, experts do not run one by one
            part.kept = None
        with torch.no_grad():
            extra = model(inputs).extra
    finally:
        for part, kept in packed:
            part.kept = kept
        model.train(training)
        for handle in handles:
            handle.remove()
    gates = extra.get("gates", {})
    shared = {name: weights[:, extra["shared"]] for name, weights in gates.items()} if "shared" in extra else {}
    return Health(
        {name: float(zero_share(value).mean()) for name, value in outputs.items()},
        {name: float(dead_units(value).mean()) for name, value in outputs.items()},
        {name: scale_spread(value) for name, value in outputs.items()},
        {name: gate_entropy(weights) for name, weights in gates.items()},
        tuple(occupancy(shared).tolist()) if shared else (),
    )
