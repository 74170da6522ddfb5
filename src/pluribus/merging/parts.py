"""What a task adds to shared weights: bits over one vector of all tasks, or factors. Packing, factoring and checking them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.errors import BadInput


def pack(mask: Tensor) -> Tensor:
    """A boolean tensor as bits, 8 a byte, the first entry in the highest bit; the last byte is padded with zeros."""
    flat = mask.reshape(-1)
    flat = F.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    return (flat << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`."""
    n = torch.Size(shape).numel()
    each = (bits[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8)) & 1
    return each.view(-1)[:n].bool().view(*shape)


@dataclass
class MaskPart:
    """A task as bits over one vector v of all tasks: θ_t = θ* + s_t · (m_t ⊙ v).

    Parameters
    ----------
    masks : dict of str to Tensor
        m_t by tensor name, packed, 8 bits a byte.
    scale : float
        s_t.
    """

    masks: dict[str, Tensor]
    scale: float = 1.0


@dataclass
class FactorPart:
    """A task as factors: θ_t = θ* + U_t V_t for matrices and kernels, whole tensors where factors would not be smaller.

    Parameters
    ----------
    factors : dict of str to (Tensor, Tensor)
        (U [out, r], V [r, in]) by tensor name; kernels are flattened to [out, in·kh·kw].
    whole : dict of str to Tensor
        Tensors θ_t as they are.
    """

    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)


Part = MaskPart | FactorPart


def factored(delta: Tensor, rank: int | None, energy: float | None = None) -> tuple[Tensor, Tensor]:
    """The best rank-r (U, V) of a tensor flattened to [out, rest].

    Parameters
    ----------
    delta : Tensor
        [out, …].
    rank : int or None
        r; None: all of it.
    energy : float, optional
        Instead of `rank`: the least r that keeps this share of ‖delta‖².
    """
    matrix = delta.double().flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    if energy is not None:
        kept = s.square().cumsum(0) / s.square().sum().clamp(min=torch.finfo(s.dtype).tiny)
        r = int((kept < energy).sum()) + 1 if s[0] > 0 else 0
    else:
        r = len(s) if rank is None else rank
    r = min(r, int((s > 0).sum()))
    root = s[:r].sqrt()
    # Contiguous, as they come back from a file: the layout decides the order of a product's sums.
    return (u[:, :r] * root).to(delta.dtype).contiguous(), (root[:, None] * v[:r]).to(delta.dtype).contiguous()


def factor_part(
    shared: Mapping[str, Tensor], expert: Mapping[str, Tensor], *, rank: int | None = None, energy: float | None = None
) -> FactorPart:
    """v_t = C_r(θ_t − θ*): factors for tensors of two or more dimensions, whole tensors where those are not larger.

    Parameters
    ----------
    shared : mapping of str to Tensor
        θ* by name.
    expert : mapping of str to Tensor
        θ_t by name; it has every name of `shared`.
    rank, energy
        As in `factored`.

    Raises
    ------
    BadInput
        A tensor is missing, or the rank or the energy is out of range.
    """
    if rank is not None and rank < 0:
        raise BadInput(f"rank is {rank}", where="rank", remedy="use 0 or more, or None for all of it")
    if energy is not None and not 0 < energy <= 1:
        raise BadInput(f"energy is {energy}", where="energy", remedy="use a fraction above 0, at most 1")
    part = FactorPart()
    for name, base in shared.items():
        if name not in expert:
            raise BadInput(f"tensor {name!r} is missing in the expert", remedy="give a checkpoint of the same architecture")
        mine = expert[name].detach()
        if mine.shape != base.shape or (mine.dtype == base.dtype and torch.equal(mine, base)):
            continue  # a head, kept as such; or nothing to add
        small = base.dim() < 2 or not base.is_floating_point()
        if not small:
            out, rest = base.shape[0], base.numel() // base.shape[0]
            full = min(out, rest)
            small = energy is None and (full if rank is None else min(rank, full)) * (out + rest) >= base.numel()
        if not small:
            wide = torch.promote_types(base.dtype, torch.float32)
            u, v = factored(mine.to(wide) - base.to(wide), rank, energy)
            if u.shape[1] * (u.shape[0] + v.shape[1]) < base.numel():
                if u.shape[1]:
                    part.factors[name] = (u.to(base.dtype), v.to(base.dtype))
                continue
        part.whole[name] = mine.to(base.dtype)
    return part


def check(task: str, part: Part, shared: Mapping[str, Tensor], vector: Mapping[str, Tensor]) -> None:
    """Raise unless the names and shapes of a task's part are those of the shared weights (and of the vector that masks cut)."""
    where = f"task {task!r}"
    names = part.masks if isinstance(part, MaskPart) else {**part.factors, **part.whole}
    for name in names:
        if name not in shared:
            raise BadInput(f"tensor {name!r} is not in the shared weights", where=where, remedy="check the architecture")
    if isinstance(part, MaskPart):
        for name, bits in part.masks.items():
            if name not in vector or vector[name].shape != shared[name].shape:
                raise BadInput(f"tensor {name!r} has a mask but no vector of its shape", where=where)
            if bits.dtype != torch.uint8 or bits.shape != ((shared[name].numel() + 7) // 8,):
                raise BadInput(f"the mask of tensor {name!r} has {bits.numel()} bytes", where=where, remedy="one bit an entry")
        return
    for name, (u, v) in part.factors.items():
        shape = shared[name].shape
        rest = shape[1:].numel()
        if u.dim() != 2 or v.dim() != 2 or (u.shape[0], v.shape[1]) != (shape[0], rest) or u.shape[1] != v.shape[0]:
            raise BadInput(f"factors {tuple(u.shape)}, {tuple(v.shape)} do not fit tensor {name!r} {tuple(shape)}", where=where)
    for name, value in part.whole.items():
        if value.shape != shared[name].shape:
            raise BadInput(f"tensor {name!r} is {tuple(value.shape)}, shared {tuple(shared[name].shape)}", where=where)
