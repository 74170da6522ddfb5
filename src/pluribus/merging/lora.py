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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput, unknown
from pluribus.files.peft_folder import Factors, read_adapter, refuse_variants, write_adapter
from pluribus.merging.source import Source, accumulator

__all__ = ["COMBINATIONS", "Factors", "Lora", "combine", "read_adapter", "squeeze", "write_adapter"]

ROWS = 256  # products are taken in blocks of rows at fixed places, so that no bit depends on who asks for which rows


class Lora:
    """An adapter over `base`, read as the full checkpoint it stands for. Adapted tensors come in the accumulator's dtype."""

    def __init__(self, base: Source, folder: str | Path, base_path: str | Path | None = None) -> None:
        self.base, self.where = base, str(folder)
        self.notes: list[str] = []
        about, updates, whole = read_adapter(folder)
        refuse_variants(about, self.where, known=("use_dora", "bias"))  # trained biases come whole
        self.files = [*getattr(base, "files", []), *sorted(Path(folder).glob("adapter_model.*"))]
        names = set(base.names())
        shift = _shift([f"{m}.weight" for m in updates], names, self.where)
        self.updates = {shift(f"{m}.weight"): f for m, f in updates.items()}
        self.whole = {shift(n) if shift(n) in names else n: t for n, t in whole.items()}
        for name, f in self.updates.items():
            shape = base.shape(name)
            if (shape[0], math.prod(shape[1:])) != (f.left.shape[0], f.right.shape[1]):
                what = f"updates {name!r} by {f.left.shape[0]} × {f.right.shape[1]}, in the base it is {tuple(shape)}"
                raise BadInput(what, where=self.where, remedy="name the base the adapter was trained on")
            if f.magnitude is not None and (f.magnitude.numel() != shape[0] or about.get("fan_in_fan_out")):
                what = f"has a DoRA magnitude of another layout for {name!r}"
                raise BadInput(what, where=self.where, remedy="merge it with PEFT first")
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
            return accumulator((self.base.dtype(name), self.updates[name].left.dtype))
        return self.whole[name].dtype if name in self.whole else self.base.dtype(name)

    def read(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        if name in self.whole:
            part = self.whole[name].reshape(-1)[start:stop]
        elif name not in self.updates:
            return self.base.read(name, start, stop, out)
        else:
            part = self._rows(name, start, stop)
        return part if out is None else out.copy_(part)

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        f, kind = self.updates[name], self.dtype(name)
        width = f.right.shape[1]
        first = start // width // ROWS * ROWS
        last = min(f.left.shape[0], -(-stop // (width * ROWS)) * ROWS)
        parts = []
        for row in range(first, last, ROWS):
            end = min(row + ROWS, last)
            weight = self.base.read(name, row * width, end * width).to(kind).view(-1, width)
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
    raise BadInput(f"adapts {missing!r}, which the base does not have", where=place, remedy="name the base it was trained on")


def squeeze(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors of `rank` of left [out, R] @ right [R, in], by QR of both and an SVD of the R × R core."""
    kind = left.dtype
    q, a = torch.linalg.qr(left.double())
    p, b = torch.linalg.qr(right.double().T)
    u, s, v = torch.linalg.svd(a @ b.T, full_matrices=False)  # R may exceed out or in
    root = s[:rank].sqrt()
    return ((q @ u[:, :rank]) * root).to(kind), (root[:, None] * (p @ v[:rank].T).T).to(kind)


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
