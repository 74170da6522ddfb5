"""BitFit: per task, the biases and nothing else.

Ben Zaken, Ravfogel, Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", ACL
2022: https://arxiv.org/abs/2106.10199

Kept is each task's difference from the pretrained bias, [E, out], zero at the start, added behind the map: a batch may mix
tasks, and weight decay pulls towards the pretrained model instead of towards zero (the one departure).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pluribus.adapters.adapter import LinearAdapters, key_of
from pluribus.adapters.ia3 import Vector
from pluribus.adapters.route import Route
from pluribus.adapters.sites import Site, blocks
from pluribus.errors import BadInput
from pluribus.linalg.low_rank import Pick


class BitFit(LinearAdapters):
    """where: the linear maps, as roles or patterns (those without a bias are left out). norms: whether the biases of
    LayerNorms, too."""

    name = "bitfit"

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        where: str | Sequence[str] = "all",
        norms: bool = True,
        freeze: bool = True,
    ) -> None:
        super().__init__(model, tasks, where, {"norms": norms}, freeze=freeze)
        self.places = {path: site for path, site in self.places.items() if _bias(model, path)}
        if norms:
            batches = {block.path: block.batch for block in blocks(model)}
            for path, module in model.named_modules():
                if isinstance(module, nn.LayerNorm) and module.bias is not None:
                    width = module.normalized_shape[-1]
                    self.places[path] = Site(path, width, width, batch=_batch(path, batches))
        if not self.places:
            raise BadInput("none of the maps has a bias", where="where", remedy="choose others, or LoRA")
        for path, site in self.places.items():
            self.sites[key_of(path)] = Vector(self.capacity, site.outputs, 0.0)
        self.start()

    def updated(self, path: str, module: nn.Module, x: Tensor, y: Tensor, pick: Pick, route: Route) -> Tensor:
        l: Tensor = self.site(path).l[pick.counted(len(y))]
        return y + l[:, None]

    def merged_parameters(self, task: str) -> dict[str, Tensor]:
        slot, found = self.slot(task), {}
        for path in self.places:
            module: Any = self.model.get_submodule(path)
            found[f"{path}.bias"] = module.bias + self.site(path).l[slot]
        return found


def _bias(model: nn.Module, path: str) -> bool:
    try:
        return getattr(model.get_submodule(path), "bias", None) is not None
    except AttributeError:  # a projection of an attention that is not open yet
        owner: Any = model.get_submodule(path.rpartition(".")[0])
        return owner.in_proj_bias is not None


def _batch(path: str, batches: dict[str, int]) -> int:
    """The batch dimension of the block that holds the norm; of the blocks, for a norm between or after them."""
    inside = [batch for block, batch in batches.items() if path.startswith(f"{block}.")]
    return inside[0] if inside else max(batches.values(), default=0)
