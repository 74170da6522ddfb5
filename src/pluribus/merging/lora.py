"""LoRA adapters of PEFT as sources, and their exact or fixed-rank combination.

Hu, Shen, Wallis, et al. "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685.

    W_t = W_0 + s_t B_t A_t,    s = α/r, or α/√r where rank-stabilised; rank and α may differ by module (`rank_pattern`, …)

`Lora` reads an adapter folder as if it were the full checkpoint, in rows, so that adapters and full checkpoints mix.
`combine` gives an adapter again: "cat" is exact, A = [A_t], B = [w_t s_t B_t], rank Σ r_t; "svd" is the best of a given rank, by
QR of both stacks and an SVD of the small core, never forming out × in; "linear" adds the A's and the B's with √w each, as PEFT
offers it: it is not the weighted update, for cross terms B_i A_j appear.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput, unknown
from pluribus.files.peft_folder import RESIDUAL, Factors, over_base, read_adapter, refuse_variants, residual_of, write_adapter
from pluribus.merging.checkpoints import EMBEDDING
from pluribus.merging.source import Source, accumulator

__all__ = ["COMBINATIONS", "Factors", "Lora", "combine", "read_adapter", "squeeze", "write_adapter"]

OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.weight$")
ROWS = 256  # products are taken in blocks of rows at fixed places, so that no bit depends on who asks for which rows


class Lora:
    """An adapter over `base`, read as the full checkpoint it stands for. Adapted tensors come in the accumulator's dtype.

    A tensor that the folder holds whole stands in the place of the base's; where it is adapted too, the update is added to it.
    """

    residual: str | None = None  # of PiSSA and OLoRA: how A and B began

    def __init__(self, base: Source, folder: str | Path, base_path: str | Path | None = None) -> None:
        self.base, self.where = base, str(folder)
        self.notes: list[str] = []
        about, updates, whole = read_adapter(folder)
        refuse_variants(about, self.where, known=("use_dora", "bias", *RESIDUAL))  # trained biases come whole
        self.residual = residual_of(about)
        self._rebuilt: set[str] = set()
        self._lock = threading.Lock()
        self.files = [*getattr(base, "files", []), *sorted(Path(folder).glob("adapter_model.*"))]
        names = set(base.names())
        shift = _shift([f"{m}.weight" for m in updates], names, self.where)
        self.updates = {shift(f"{m}.weight"): f for m, f in updates.items()}
        self.whole = {shift(n) if shift(n) in names else n: t for n, t in whole.items()}
        for name, f in self.updates.items():
            shape = self.shape(name)
            if (shape[0], math.prod(shape[1:])) != (f.left.shape[0], f.right.shape[1]):
                what = f"updates {name!r} by {f.left.shape[0]} × {f.right.shape[1]}, in the base it is {tuple(shape)}"
                raise BadInput(what, where=self.where, remedy="name the base the adapter was trained on")
            if f.magnitude is not None and (f.magnitude.numel() != shape[0] or about.get("fan_in_fan_out")):
                what = f"has a DoRA magnitude of another layout for {name!r}"
                raise BadInput(what, where=self.where, remedy="merge it with PEFT first")
        if any(EMBEDDING.search(n) for n in self.updates) and not any(OUTPUT.search(n) for n in names):
            self.notes.append(f"adapter {Path(folder).name!r} adapts an embedding: where the model ties it, its outputs move too")
        trained = str(about.get("base_model_name_or_path") or "")
        if base_path is not None and trained and Path(trained).name != Path(base_path).resolve().name:
            self.notes.append(f"adapter {Path(folder).name!r} says it was trained on {trained!r}; the base named is {base_path}")

    def names(self) -> tuple[str, ...]:
        mine = self.base.names()
        return (*mine, *(n for n in self.whole if n not in set(mine)))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.whole[name].shape) if name in self.whole else self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        if name in self.updates:
            held = self.whole[name].dtype if name in self.whole else self.base.dtype(name)
            return accumulator((held, self.updates[name].left.dtype))
        return self.whole[name].dtype if name in self.whole else self.base.dtype(name)

    def read(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        if name not in self.updates:
            return self._origin(name, start, stop, out)
        part = self._rows(name, start, stop)
        return part if out is None else out.copy_(part)

    def _origin(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """What the update is added to."""
        if name not in self.whole:
            return self.base.read(name, start, stop, out)
        part = self.whole[name].reshape(-1)[start:stop]
        return part if out is None else out.copy_(part)

    def _update(self, name: str) -> Factors:
        """The update of a tensor; that over a residual is written over the base when it is first asked for."""
        if self.residual is None or name in self.whole or self.updates[name].embedding:
            return self.updates[name]
        with self._lock:
            if name not in self._rebuilt:
                self.updates[name] = over_base(self.updates[name], self.base.tensor(name), self.residual)
                self._rebuilt.add(name)
            return self.updates[name]

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        f, kind = self._update(name), self.dtype(name)
        width = f.right.shape[1]
        first = start // width // ROWS * ROWS
        last = min(f.left.shape[0], -(-stop // (width * ROWS)) * ROWS)
        parts = []
        for row in range(first, last, ROWS):
            end = min(row + ROWS, last)
            weight = self._origin(name, row * width, end * width).to(kind).view(-1, width)
            weight = weight + f.scale * (f.left[row:end].to(kind) @ f.right.to(kind))
            if f.magnitude is not None:
                weight = weight * (f.magnitude.to(kind).view(-1)[row:end] / weight.norm(dim=1))[:, None]
            parts.append(weight.view(-1))
        joined = torch.cat(parts) if parts else torch.empty(0, dtype=kind)
        return joined[start - first * width : stop - first * width]

    def tensor(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self.read(name, 0, math.prod(shape)).view(shape)


def _shift(wanted: Sequence[str], names: set[str], place: str) -> Any:
    """How the adapter's names become the base's: as they are, or without or with one prefix."""
    tries: list[tuple[str, str]] = [("", "")]
    head = wanted[0].split(".")
    tries += [(".".join(head[:i]) + ".", "") for i in range(1, min(4, len(head)))]
    tries += [("", n[: -len(wanted[0])]) for n in names if n.endswith("." + wanted[0])]
    for off, on in tries:
        if all((on + w.removeprefix(off) if w.startswith(off) else w) in names for w in wanted):
            return lambda name: on + name.removeprefix(off) if name.startswith(off) else name
    missing = next((w for w in wanted if w not in names), wanted[0])
    what, remedy = f"adapts {missing!r}, which the base does not have", "name the base it was trained on"
    if OUTPUT.search(missing):
        what += " (a tied model stores its embedding once, and an update of one of the two ends unties them)"
        remedy = "save the base with tie_word_embeddings=False first, or name the base it was trained on"
    raise BadInput(what, where=place, remedy=remedy)


def squeeze(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors of `rank` of left [out, R] @ right [R, in], by QR of both and an SVD of the R × R core."""
    kind = left.dtype
    q, a = torch.linalg.qr(left.double())
    p, b = torch.linalg.qr(right.double().T)
    u, s, v = torch.linalg.svd(a @ b.T, full_matrices=False)  # R may exceed out or in
    root = s[:rank].sqrt()
    return ((q @ u[:, :rank]) * root).to(kind), (root[:, None] * (p @ v[:rank].T).T).to(kind)


def held_whole(
    read: Mapping[str, tuple[Mapping[str, Factors], Mapping[str, Tensor]]],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """What adapters hold whole: what is equal in all of them, and by task what it holds.

    The weight that an update is added to is no task's own: it must be equal in all that adapt its module.

    Parameters
    ----------
    read : mapping
        By task, the updates by module and the tensors held whole by name.

    Raises
    ------
    BadInput
        Two adapters add their update to different weights of the same module.
    """
    common: dict[str, Tensor] = {}
    own: dict[str, dict[str, Tensor]] = {task: {} for task in read}
    for name in dict.fromkeys(n for _, whole in read.values() for n in whole):
        module = name.rpartition(".")[0]
        mine = {task: whole[name] for task, (_, whole) in read.items() if name in whole}
        first = next(iter(mine.values()))
        equal = all(torch.equal(tensor, first) for tensor in mine.values())
        if any(module in updates for updates, _ in read.values()):
            if not equal or any(module not in read[task][0] for task in mine):
                what = f"{module!r} is held whole by {', '.join(mine)}, and the weights that the updates are added to differ"
                raise BadInput(what, where="experts", remedy="merge the adapters in full, with the base")
            common[name] = first
            continue
        if equal and len(mine) == len(read):
            common[name] = first
        for task, tensor in mine.items():
            own[task][name] = tensor
    return common, own


COMBINATIONS = ("cat", "svd", "linear")


def combine(
    experts: Sequence[str | Path], *, weights: Sequence[float] | None = None, how: str = "cat", rank: int | None = None
) -> dict[str, Factors]:
    """Σ_t w_t s_t B_t A_t of several adapters as one: "cat" exactly, "svd" at `rank`, "linear" as PEFT's option of that name."""
    if how not in COMBINATIONS:
        raise unknown("combination", how, COMBINATIONS)
    if how == "svd" and (rank is None or rank < 1):
        raise BadInput(f"rank is {rank}", where="rank", remedy="give the rank to keep, at least 1")
    each = [1.0] * len(experts) if weights is None else list(weights)
    read = [read_adapter(folder) for folder in experts]
    for folder, (about, updates, _) in zip(experts, read):
        refuse_variants(about, str(folder), known=("use_dora",))
        if any(f.magnitude is not None for f in updates.values()):
            raise BadInput("is a DoRA adapter, whose update is not low-rank", where=str(folder), remedy="merge it in full")
    found: dict[str, Factors] = {}
    for module in dict.fromkeys(m for _, updates, _ in read for m in updates):
        mine = [(w, u[module]) for w, (_, u, _) in zip(each, read) if module in u]
        if how == "linear":
            if len({f.left.shape[1] for _, f in mine}) > 1:
                raise BadInput(f"module {module!r} has several ranks", where="linear", remedy="use cat or svd")
            if any(w < 0 for w, _ in mine):
                raise BadInput("a weight is negative", where="linear", remedy="use cat or svd")
            left = torch.stack([math.sqrt(w * f.scale) * f.left for w, f in mine]).sum(0)
            right = torch.stack([math.sqrt(w * f.scale) * f.right for w, f in mine]).sum(0)
        else:
            left = torch.cat([w * f.scale * f.left for w, f in mine], 1)
            right = torch.cat([f.right for _, f in mine], 0)
            if how == "svd" and rank is not None:
                left, right = squeeze(left, right, min(rank, left.shape[1]))
        found[module] = Factors(left, right, 1.0, None, mine[0][1].embedding, mine[0][1].kernel)
    return found
