"""Prompt tuning: per task, M vectors in the sequence that the first block reads.

Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021, §2:
https://arxiv.org/abs/2104.08691
Jia et al., "Visual Prompt Tuning" (shallow), ECCV 2022, for encoders with a class token: https://arxiv.org/abs/2203.12119

    [x_1, …, x_L] → blocks([P_t; x_1, …, x_L]) without the first M outputs

The prompt enters behind the embeddings, so the tokens keep their positions and the prompt has none of its own (rotary positions:
the prompt stands at -M … -1), the masks are extended, and the output has the length it always had: pooling, heads and losses stay
as they are. With M = 0 nothing changes; otherwise the prompt acts from the start (std 0.02), as in the paper.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.adapters.adapter import Adapters
from pluribus.adapters.route import Route
from pluribus.adapters.sites import every_linear, some_blocks
from pluribus.errors import BadInput


class Vectors(nn.Module):
    """P [E, M, d]."""

    def __init__(self, size: int, length: int, width: int) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.empty(size, length, width))
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        self.P[slot].normal_(0, 0.02)


class PromptTuning(Adapters):
    """length: M."""

    name = "prompt"

    def __init__(self, model: nn.Module, tasks: Sequence[Any], *, length: int = 8, freeze: bool = True) -> None:
        super().__init__(model, tasks, {"length": length}, freeze=freeze)
        if length < 0:
            raise BadInput(f"is {length}", where="length", remedy="choose 0 or more")
        self.blocks = [block.path for block in some_blocks(model, self.name)]
        first = some_blocks(model, self.name)[0]
        if first.family.startswith("t5"):
            raise BadInput("T5's position biases do not know a prompt", where="prompt", remedy="use LoRA")
        if len({path.rpartition(".")[0] for path in self.blocks}) > 1:
            raise BadInput("the model has several stages of blocks", where="prompt", remedy="use a model with one list of blocks")
        self.length, self.batch, self.torch_masks = length, first.batch, first.family == "torch"
        inner = None if self.torch_masks else model.get_submodule(first.roles["attention"])
        self.causal = bool(getattr(inner, "is_causal", False))
        width = every_linear(model)[first.roles.get("q", first.roles.get("qkv", ""))][0]
        self.sites["prompt"] = Vectors(self.capacity, length, width)
        self.start()

    def hooks(self) -> Iterator[tuple[str, str, Any]]:
        for i, path in enumerate(self.blocks):
            yield path, "enter", i
        yield self.blocks[-1], "leave", None

    def enter(self, at: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], route: Route) -> Any:
        args, kwargs = list(args), dict(kwargs)  # type: ignore[assignment]
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if at == 0:
            pick = route.pick(self, x.device)
            rows = x.shape[self.batch]
            if pick.rows is not None and pick.rows != rows:
                raise BadInput(f"the route names {pick.rows} rows, the first block got {rows}", where="route")
            P: Tensor = self.sites["prompt"].P[pick.counted(rows)].to(x.dtype)  # type: ignore[index]
            longer = torch.cat((P.transpose(0, 1) if self.batch else P, x), 1 - self.batch)
            if args:
                args[0] = longer  # type: ignore[index]
            else:
                kwargs[next(iter(kwargs))] = longer
            x = longer
        total = x.shape[1 - self.batch]

        def extend(name: str, value: Any) -> Any:
            if "mask" in name and isinstance(value, Tensor) and value.shape[-1] == total - self.length:
                return self._mask(value, square=value.ndim > 2 or name == "src_mask")
            if name == "position_embeddings" and value[0].shape[-2] != total:
                return self._rotary(x)
            return value

        names = list(inspect.signature(module.forward).parameters)
        args = tuple(arg if i == 0 else extend(names[i], arg) for i, arg in enumerate(args))
        return args, {name: extend(name, value) for name, value in kwargs.items()}

    def leave(self, at: Any, module: nn.Module, output: Any, route: Route) -> Any:
        def shorten(x: Tensor) -> Tensor:
            return x.narrow(1 - self.batch, self.length, x.shape[1 - self.batch] - self.length)

        return shorten(output) if isinstance(output, Tensor) else (shorten(output[0]), *output[1:])

    def _mask(self, mask: Tensor, square: bool) -> Tensor:
        """A mask over keys with M columns in front that everybody sees; square ones get M rows as well. Boolean masks of torch's
        layers hide where True, those of transformers show."""
        shown: Any = 0 if mask.is_floating_point() else not self.torch_masks
        longer = F.pad(mask, (self.length, 0), value=shown)
        if not square or mask.shape[-2] != mask.shape[-1]:
            return longer
        if self.causal:  # each of the prompt's vectors sees those before it, as without a mask
            total = longer.shape[-1]
            sees = torch.ones(self.length, total, dtype=torch.bool, device=mask.device).tril()
            rows = sees
            if mask.is_floating_point():
                rows = mask.new_zeros(sees.shape).masked_fill(~sees, torch.finfo(mask.dtype).min)
        elif mask.is_floating_point():  # the prompt sees what every token sees
            rows = longer.amin(-2, keepdim=True)
        else:
            rows = longer.any(-2, keepdim=True) if self.torch_masks else longer.all(-2, keepdim=True)
        return torch.cat((rows.expand(*longer.shape[:-2], self.length, -1), longer), -2)

    def _rotary(self, x: Tensor) -> Any:
        rotary = next(m for name, m in self.model.named_modules() if name.endswith("rotary_emb"))
        length = x.shape[1]
        return rotary(x, torch.arange(-self.length, length - self.length, device=x.device)[None])
