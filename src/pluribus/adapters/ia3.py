"""(IA)³: per task, three vectors a block that rescale keys, values and the inner units of the FFN.

Liu, Tam, Muqeeth, et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022, §3.3:
https://arxiv.org/abs/2205.05638

    softmax(Q (l_k ⊙ K)ᵀ / √d_k) (l_v ⊙ V),    (l_ff ⊙ act(W₁ x)) W₂,    l = 1 at the start

Where a block has one map for queries, keys and values, its whole output is rescaled, as PEFT does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.adapters.adapter import LinearAdapters, back, key_of, rows_first
from pluribus.adapters.route import Route
from pluribus.adapters.sites import blocks, linears, transposed
from pluribus.linalg.low_rank import Pick


class Vector(nn.Module):
    """One vector a task, [E, d], that starts at `value`."""

    def __init__(self, size: int, width: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.l = nn.Parameter(torch.full((size, width), value))

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        self.l[slot] = self.value


class IA3(LinearAdapters):
    """outputs, inputs: the linear maps whose outputs (default keys and values) and inputs (default the FFN's last map) are
    rescaled, as roles or patterns."""

    name = "ia3"

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        outputs: str | Sequence[str] | None = None,
        inputs: str | Sequence[str] = "fc2",
        freeze: bool = True,
    ) -> None:
        fused = any("qkv" in block.roles for block in blocks(model))
        outputs = outputs if outputs is not None else ["qkv"] if fused else ["k", "v"]
        super().__init__(model, tasks, outputs, {}, freeze=freeze)
        self.inner = {site.path: site for site in linears(model, inputs)} if inputs else {}
        self.settings = {"outputs": self.settings["where"], "inputs": inputs if isinstance(inputs, str) else list(inputs)}
        for path, site in self.places.items():
            self.sites[key_of(path)] = Vector(self.capacity, site.outputs, 1.0)
        for path, site in self.inner.items():
            self.sites[f"{key_of(path)} (input)"] = Vector(self.capacity, site.inputs, 1.0)
        self.start()

    def hooks(self) -> Iterator[tuple[str, str, Any]]:
        yield from super().hooks()
        for path in self.inner:
            yield path, "before", path

    def updated(self, path: str, module: nn.Module, x: Tensor, y: Tensor, pick: Pick, route: Route) -> Tensor:
        l: Tensor = self.site(path).l[pick.counted(len(y))]
        return y * l[:, None]

    def before(self, at: Any, module: nn.Module, x: Tensor, route: Route) -> Tensor:
        pick, site = route.pick(self, x.device), self.inner[at]
        each = rows_first(x, pick, site.batch)
        l: Tensor = self.sites[f"{key_of(at)} (input)"].l[pick.counted(len(each))]  # type: ignore[index]
        return back(each * l[:, None], x, site.batch)

    def merged_parameters(self, task: str) -> dict[str, Tensor]:
        slot, found = self.slot(task), {}
        for path in dict.fromkeys([*self.places, *self.inner]):
            module: Any = self.model.get_submodule(path)
            weight = self.weight(path)
            if path in self.places:
                l = self.site(path).l[slot]
                weight = l[:, None] * weight
                if module.bias is not None:
                    found[f"{path}.bias"] = l * module.bias
            if path in self.inner:
                weight = weight * self.sites[f"{key_of(path)} (input)"].l[slot]  # type: ignore[index]
            found[f"{path}.weight"] = weight.T if transposed(module) else weight
        return found
