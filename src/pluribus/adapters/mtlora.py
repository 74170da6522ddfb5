"""MTLoRA: task-agnostic low-rank updates everywhere, task-specific ones in the blocks where the trunk forks.

Agiza, Neseem, Reda, "MTLoRA: A Low-Rank Adaptation Approach for Efficient Multi-Task Learning", CVPR 2024, §3:
https://arxiv.org/abs/2403.20320

    y = W x + b + s_sh B_sh A_sh x,      y_t = W x + b + s_t B_t A_t x_t  (`matrix`; `matrixv2` adds s_sh B_sh A_sh x)

The frozen term of y_t is that of the shared stream x; x_t is the task's stream, or x where none has split off yet. Under
`fork(tasks)` a forking block (the last of each stage) sends out the shared stream, which goes on, and one stream per task, which
leaves through `route.streams[task]`, after the stage's downsampling where `forks` says so. Scales multiply directly (no α/r).
MTLoRA trains the downsampling maps, MTLoRA+ freezes them and gives them task-agnostic updates.

Under `route(rows)`, where each row has one task, a row's stream is its task's: y = W x + b + s_sh B_sh A_sh x (+ s_t B_t A_t x
in the forking blocks).

How it forks: the block's input is repeated, stream after stream; maps with task-specific updates compute their frozen term for
the shared rows only; attention, whose inputs are equal, is computed for every copy: in the forking blocks alone, and whatever the
architecture does inside (windows, shifts). The authors' `addition` and `lora_only` modes are not offered.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pluribus.adapters.adapter import LinearAdapters, back, key_of, rows_first
from pluribus.adapters.lora import LowRank, check_rank
from pluribus.adapters.route import Route
from pluribus.adapters.sites import Site, blocks, linears
from pluribus.errors import BadInput, unknown
from pluribus.linalg.low_rank import Pick, per_row

MODES = ("matrix", "matrixv2")
SPECIFIC = ("o", "fc1", "gate", "fc2")


class MTLoRA(LinearAdapters):
    """where: the adapted maps. forks: paths of the forking blocks (default: the last block of every list of blocks), or block →
    the module after it where its task streams leave (its stage's downsampling). rank, task_rank: r_sh and r_t. scale,
    task_scale: s_sh and s_t. dropout: on the inputs of the updates, not on streams that have split off. mode: "matrix" or
    "matrixv2". downsampling: pattern of the maps between stages. train: globs of the model's own parameters that stay trainable
    (norms, say); `base_parameters()` are these, saved with the model and not here."""

    name = "mtlora"
    common = ("shared.*",)
    plus: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        where: str | Sequence[str] = "all",
        forks: Sequence[str] | Mapping[str, str] | None = None,
        rank: int = 16,
        task_rank: int = 4,
        scale: float = 4.0,
        task_scale: float = 4.0,
        dropout: float = 0.05,
        mode: str = "matrix",
        downsampling: str | None = None,
        train: Sequence[str] = (),
        freeze: bool = True,
    ) -> None:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        found = {block.path: block for block in blocks(model)}
        if forks is None:  # the last of each ModuleList
            last = {path.rpartition(".")[0]: path for path in found}
            forks = list(last.values())
        leaves = dict(forks) if isinstance(forks, Mapping) else {path: path for path in forks}
        for path in leaves:
            if path not in found:
                raise unknown("block", path, found, where="forks")
        settings = {
            "forks": leaves,
            "rank": rank,
            "task_rank": task_rank,
            "scale": scale,
            "task_scale": task_scale,
            "dropout": dropout,
            "mode": mode,
            "downsampling": downsampling,
            "train": list(train),
        }
        super().__init__(model, tasks, where, settings, freeze=freeze)
        between = {site.path: site for site in linears(model, downsampling)} if downsampling else {}
        if self.plus:
            self.places |= between
        self.forks, self.mode, self.dropout = leaves, mode, dropout
        self.scale, self.task_scale = scale, task_scale
        self.specific: dict[str, Site] = {}
        for path in leaves:
            mine = [found[path].roles[role] for role in SPECIFIC if role in found[path].roles]
            self.specific |= {p: self.places[p] for p in mine if p in self.places}
        check_rank(rank, list(self.places.values()))
        check_rank(task_rank, list(self.specific.values()))
        self.shared = nn.ModuleDict()
        for path, site in self.places.items():
            self.shared[key_of(path)] = LowRank(1, rank, site.inputs, site.outputs)
        for path, site in self.specific.items():
            self.sites[key_of(path)] = LowRank(self.capacity, task_rank, site.inputs, site.outputs)
        if not self.sites:
            raise BadInput("no adapted map lies in a forking block", where="forks", remedy="adapt o, fc1 or fc2 of these blocks")
        self.trained = [*train, *([f"{path}.*" for path in between] if not self.plus else [])]
        self.start()

    def start(self) -> None:
        super().start()
        for p in self.base_parameters():
            p.requires_grad_(True)

    def base_parameters(self) -> list[nn.Parameter]:
        """The model's own parameters that stay trainable."""
        named = self.model.named_parameters()
        return [p for name, p in named if any(fnmatch.fnmatchcase(name, glob) for glob in self.trained)]

    def hooks(self) -> Iterator[tuple[str, str, Any]]:
        for path in self.forks:
            yield path, "enter", path
        for path in self.specific:
            yield path, "before", path
        yield from super().hooks()
        for path, exit_ in self.forks.items():
            yield exit_, "leave", path

    # -- forking -----------------------------------------------------------------------------------------------------------

    def enter(self, at: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], route: Route) -> Any:
        if not route.forks:
            return args, kwargs
        self._picks(route)
        rows = len(next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))

        def repeat(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == rows:
                return leaf.repeat(1 + len(route.forks), *(1,) * (leaf.ndim - 1))
            return leaf

        route.memo[id(self), "forked"] = rows
        return pytree.tree_map(repeat, (args, kwargs))

    def leave(self, at: Any, module: nn.Module, output: Any, route: Route) -> Any:
        rows = route.memo.pop((id(self), "forked"), None)
        if rows is None:
            return output
        whole = rows * (1 + len(route.forks))
        first = next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and len(leaf) == whole)
        place = list(self.forks).index(at)
        for task, stream in zip(route.forks, first.chunk(1 + len(route.forks))[1:]):
            del route.streams[task][place:]  # a layer that is computed again, or a second forward
            route.streams[task].append(stream)
        return pytree.tree_map(
            lambda leaf: leaf[:rows] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == whole else leaf, output
        )

    def _picks(self, route: Route) -> list[Pick]:
        for task in route.forks:
            self.slot(task)
        return [Pick([self.slots[task]], None) for task in route.forks]

    def before(self, at: Any, module: nn.Module, x: Tensor, route: Route) -> Tensor:
        if (id(self), "forked") not in route.memo:
            return x
        route.memo[id(self), at] = x.chunk(1 + len(route.forks))
        return route.memo[id(self), at][0]  # type: ignore[no-any-return]

    def after(self, at: Any, module: nn.Module, x: Tensor, y: Tensor, route: Route) -> Tensor:
        if not route.forks:
            return super().after(at, module, x, y, route)
        batch, streams = self.places[at].batch, route.memo.pop((id(self), at), None)
        every = Pick([0], None)

        def three(t: Tensor) -> Tensor:
            return rows_first(t, every, batch)

        shared = self._agnostic(at, F.dropout(three(x), self.dropout, module.training))
        common = back(three(y) + shared, y, batch)
        if streams is None:
            return common
        start = y if self.mode == "matrix" else common
        role_splits = not any(path != at and path in self.specific for path in self._earlier(at))
        outs = [common]
        for pick, z in zip(self._picks(route), streams[1:]):
            z = F.dropout(three(z), self.dropout, module.training) if role_splits else three(z)
            bank: Any = self.sites[key_of(at)]
            outs.append(back(per_row(z, bank.A, bank.B, pick, three(start), scale=self.task_scale), y, batch))
        return torch.cat(outs)

    def _earlier(self, at: str) -> list[str]:
        """The specific maps before this one in its block."""
        fork = next(path for path in self.forks if at.startswith(f"{path}." if path else ""))
        mine = [path for path in self.specific if path.startswith(f"{fork}." if fork else "")]
        return mine[: mine.index(at)]

    # -- rows --------------------------------------------------------------------------------------------------------------

    def _agnostic(self, path: str, x: Tensor) -> Tensor:
        bank: Any = self.shared[key_of(path)]
        return per_row(x, bank.A, bank.B, Pick([0], None), scale=self.scale)

    def updated(self, path: str, module: nn.Module, x: Tensor, y: Tensor, pick: Pick, route: Route) -> Tensor:
        x = F.dropout(x, self.dropout, module.training)
        y = y + self._agnostic(path, x)
        if path in self.specific:
            bank = self.site(path)
            y = per_row(x, bank.A, bank.B, pick, y, scale=self.task_scale)
        return y

    def merged_parameters(self, task: str) -> dict[str, Tensor]:
        slot, found = self.slot(task), {}
        for path in self.places:
            bank: Any = self.shared[key_of(path)]
            change = self.scale * (bank.B[0] @ bank.A[0])
            if path in self.specific:
                change = change + self.task_scale * (self.site(path).B[slot] @ self.site(path).A[slot])
            found[f"{path}.weight"] = self.with_change(path, change)
        return found


class MTLoRAPlus(MTLoRA):
    """`downsampling` maps are frozen and have task-agnostic updates."""

    name = "mtlora_plus"
    plus = True
