"""A bank of low-rank updates, mixed per row or per token: one formula with many gates.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, for one update; Chen et al., "Punica: Multi-Tenant
LoRA Serving", 2023, for many in one batch (their BGMV is plan `gather`, their SGMV plan `grouped`).

The bank of one linear map: A [E, r, in], B [E, out, r], a scale s (one number, or one per expert [E]). Two places to mix, which
are not the same function (the second has cross terms w_i w_j B_i A_j):

    outputs:      y + Σ_e w_e s_e B_e A_e x                       `per_row` (w one-hot by row) and `mix_outputs` (any w)
    parameters:   y + s (Σ_e w_e B_e) (Σ_e w_e A_e) x             `mix_parameters`

`per_row` has four evaluation plans that give the same numbers; `choose` takes one by shape:

    gather    A[ids], B[ids] and two batched products; copies rows · r · (in + out) weights
    grouped   rows sorted by expert, two grouped products (float32 and bfloat16, sizes in multiples of 16 bytes)
    dense     all experts at once, masked: two plain products; a NaN in one expert reaches every row, so only on request
    loop      expert by expert; the fallback, also where every row has the same expert
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.errors import BadInput, unknown

PLANS = ("gather", "grouped", "dense", "loop")
Scale = float | Tensor
Between = Callable[[Tensor], Tensor]


class Pick:
    """Which expert every row uses, known on the host: row b uses `experts[index[b]]`.

    experts: the distinct experts (slots of the bank) that occur. index: int64 [rows] into `experts`, or None where every row,
    however many there are, uses the one expert there is.
    """

    def __init__(self, experts: Sequence[int], index: Tensor | None) -> None:
        self.experts = tuple(experts)
        self.index = index
        self.one = self.experts[0] if len(self.experts) == 1 else None
        self.unique = torch.tensor(self.experts, dtype=torch.int64, device=None if index is None else index.device)
        self.ids = self.unique[index] if index is not None else self.unique  # [rows], or [1] where rows are not counted

    @property
    def rows(self) -> int | None:
        return None if self.index is None else len(self.index)

    def to(self, device: torch.device) -> Pick:
        """The same on `device`."""
        return self if self.ids.device == device else Pick(self.experts, None if self.index is None else self.index.to(device))

    def local(self) -> Pick:
        """The same rows over a bank that holds only `experts`, in their order."""
        return Pick(range(len(self.experts)), self.index)

    def counted(self, rows: int) -> Tensor:
        """The expert of each of `rows` rows, int64 [rows]."""
        return self.ids if self.index is not None else self.unique.expand(rows)

    @cached_property
    def stretch(self) -> slice | None:
        """The slots of the bank in the order of the rows, where that is a stretch of it: a view then does for a copy."""
        if self.index is None or self.index.device.type != "cpu" or not len(self.ids):
            return None
        ids = self.ids.tolist()
        return slice(ids[0], ids[-1] + 1) if ids == list(range(ids[0], ids[0] + len(ids))) else None

    def rows_of(self, bank: Tensor, rows: int) -> Tensor:
        """The bank's entry of each of `rows` rows, [rows, …]: a view where it can be, else a copy."""
        if not torch.compiler.is_compiling() and self.stretch is not None:
            return bank[self.stretch]
        return bank.index_select(0, self.counted(rows))

    @cached_property
    def order(self) -> Tensor:
        """Rows sorted by expert; rows of one expert keep their order."""
        return torch.argsort(self.ids, stable=True)

    @cached_property
    def is_sorted(self) -> bool:
        return bool((self.ids[1:] >= self.ids[:-1]).all())

    @cached_property
    def groups(self) -> list[tuple[int, Tensor]]:
        """(expert, its rows), for experts that have any."""
        found = [(expert, (self.ids == expert).nonzero()[:, 0]) for expert in self.experts]
        return [(expert, rows) for expert, rows in found if len(rows)]

    def offsets(self, size: int, rows: int, tokens: int) -> Tensor:
        """Where each of `size` experts' tokens end in the sorted order, int32 [size]."""
        return (torch.bincount(self.counted(rows), minlength=size).cumsum(0) * tokens).int()


def choose(x: Tensor, A: Tensor, B: Tensor, pick: Pick) -> str:
    """The plan for these shapes: `loop` for one expert, `gather` unless its copies outweigh the product, then `grouped`.

    Never `dense`: it is no faster for one expert a row, and 0 · NaN would let a broken expert into other experts' rows.
    """
    rows, tokens, _ = x.shape
    if torch.compiler.is_compiling():
        return "gather"
    if pick.one is not None:
        return "loop"
    if tokens >= 64 and rows >= 4 * len(pick.experts) and groupable(x, A, B):
        return "grouped"
    return "gather"


def groupable(x: Tensor, A: Tensor, B: Tensor) -> bool:
    """Whether torch's grouped product takes these: its dtypes, and strides in multiples of 16 bytes."""
    each = 16 // A.element_size()
    sizes = (A.shape[1], A.shape[2], B.shape[1])
    usable = x.dtype == A.dtype == B.dtype and x.dtype in (torch.float32, torch.bfloat16)
    return usable and all(size % each == 0 for size in sizes) and hasattr(F, "grouped_mm")


def per_row(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    pick: Pick,
    y: Tensor | None = None,
    *,
    scale: Scale = 1.0,
    between: Between | None = None,
    plan: str | None = None,
    write: bool = False,
) -> Tensor:
    """y + s_e B_e f(A_e x) with e the expert of each row.

    x [rows, tokens, in]; A [E, r, in]; B [E, out, r]; y [rows, tokens, out], zero by default.
    scale: one number or [E]. between: f, applied to the r latent numbers (default none): called with [tokens in all, r] or
    [rows, tokens, r], so it has to act on each number alone. plan: one of `PLANS`, by shape unless given.
    write: whether y may be written to, which saves its copy.
    """
    plan = plan or choose(x, A, B, pick)
    if plan not in PLANS:
        raise unknown("plan", plan, PLANS)
    if pick.rows is not None and pick.rows != len(x):
        raise BadInput(f"the route has {pick.rows} rows, the input {len(x)}", where="route", remedy="name one task per row")
    if plan == "gather":
        return _gather(x, A, B, pick, y, scale, between, write)
    return {"grouped": _grouped, "dense": _dense, "loop": _loop}[plan](x, A, B, pick, y, scale, between)


def _gather(
    x: Tensor, A: Tensor, B: Tensor, pick: Pick, y: Tensor | None, scale: Scale, between: Between | None, write: bool
) -> Tensor:
    rows = len(x)
    h = torch.bmm(pick.rows_of(A, rows), x.transpose(1, 2)).transpose(1, 2)  # A xᵀ: about twice as fast as x Aᵀ
    if between:
        h = between(h)
    right = pick.rows_of(B, rows).transpose(1, 2)
    if isinstance(scale, Tensor):
        h, scale = h * scale[pick.counted(rows)][:, None, None].to(h.dtype), 1.0
    if y is None:
        return torch.bmm(h, right) * scale
    return y.baddbmm_(h, right, alpha=scale) if write else torch.baddbmm(y, h, right, alpha=scale)


def frozen_per_row(x: Tensor, A: Tensor, B: Tensor, pick: Pick, y: Tensor, W: Tensor, *, scale: Scale = 1.0) -> Tensor:
    """`per_row` for training on y = W x + b with W and b frozen: the gradient of both terms in one go.

    y, whose own graph is left aside, is written to; so nothing of the size of an activation is copied, and the gradient of x is
    summed in place. x [rows, tokens, in]; W [out, in]; the rest as in `per_row`.
    """
    flat = y.shape
    if pick.one is not None:  # all rows as one
        x, y, pick = x.reshape(1, -1, x.shape[-1]), y.reshape(1, -1, flat[-1]), Pick(pick.experts, pick.unique.new_zeros(1))
    found: Tensor = _FrozenPerRow.apply(x, A, B, y.data, W, pick, scale)  # type: ignore[no-untyped-call]
    return found.view(flat)


class _FrozenPerRow(torch.autograd.Function):
    """y = W x + s B_e A_e x. With g the gradient of y, h = s A_e x, k = s B_eᵀ g, that of x is Wᵀ g + A_eᵀ k, that of A_e k xᵀ,
    that of B_e g hᵀ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, y: Tensor, W: Tensor, pick: Pick, scale: Scale) -> Tensor:
        rows = len(x)
        each = scale[pick.counted(rows)][:, None, None].to(x.dtype) if isinstance(scale, Tensor) else scale
        h = torch.bmm(pick.rows_of(A, rows), x.transpose(1, 2)).mul_(each)  # [rows, r, tokens], s A x
        y.baddbmm_(h.transpose(1, 2), pick.rows_of(B, rows).transpose(1, 2))
        ctx.save_for_backward(x, A, B, W, h)
        ctx.pick, ctx.each = pick, each
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, A, B, W, h = ctx.saved_tensors
        pick, each, rows = ctx.pick, ctx.each, len(x)
        left = pick.rows_of(A, rows)
        if torch.is_grad_enabled():  # the gradient is to be differentiated: h has to know what it came from
            h = torch.bmm(left, x.transpose(1, 2)) * each
        k = torch.bmm(pick.rows_of(B, rows).transpose(1, 2), g.transpose(1, 2)) * each  # [rows, r, tokens]
        gx = gA = gB = None
        if ctx.needs_input_grad[0]:
            gx = (g @ W).baddbmm_(k.transpose(1, 2), left)
        if ctx.needs_input_grad[1]:
            gA = _scattered(A, pick, torch.bmm(k, x))
        if ctx.needs_input_grad[2]:  # as its transpose, which is several times as fast
            gB = _scattered(B.transpose(1, 2), pick, torch.bmm(h, g)).transpose(1, 2)
        return gx, gA, gB, None, None, None, None


def _scattered(bank: Tensor, pick: Pick, gradients: Tensor) -> Tensor:
    """The rows' gradients [rows, …] as one of the bank: those of the same expert added up."""
    if pick.stretch == slice(0, len(bank)):
        return gradients
    return torch.zeros_like(bank).index_add(0, pick.ids, gradients)


def _materialised(x: Tensor) -> Tensor:
    made: Tensor = _Materialised.apply(x)  # type: ignore[no-untyped-call]
    return made


class _Materialised(torch.autograd.Function):
    """The identity; its gradient is laid out in memory, as the grouped product needs it (an expanded one has no strides)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.contiguous()


def _grouped(x: Tensor, A: Tensor, B: Tensor, pick: Pick, y: Tensor | None, scale: Scale, between: Between | None) -> Tensor:
    if not groupable(x, A, B):
        raise BadInput(f"grouped products do not take {x.dtype} or these sizes", where="plan", remedy="use the plan gather")
    rows, tokens, width = x.shape
    ids = pick.counted(rows)
    ordered = pick.index is None or pick.is_sorted
    x = x if ordered else x[pick.order]
    offsets = pick.offsets(len(A), rows, tokens)
    h = _materialised(F.grouped_mm(x.reshape(-1, width), A.transpose(1, 2), offs=offsets))
    h = between(h) if between else h
    if isinstance(scale, Tensor):
        scaled = scale[ids if ordered else ids[pick.order]].to(h.dtype)
        h = h * scaled.repeat_interleave(tokens)[:, None]
    elif scale != 1:
        h = h * scale
    out = _materialised(F.grouped_mm(h, B.transpose(1, 2), offs=offsets)).view(rows, tokens, -1)
    if ordered:
        return out if y is None else y + out
    return torch.empty_like(out).index_copy(0, pick.order, out) if y is None else y.index_add(0, pick.order, out)


def _dense(x: Tensor, A: Tensor, B: Tensor, pick: Pick, y: Tensor | None, scale: Scale, between: Between | None) -> Tensor:
    ids = pick.counted(len(x))
    gate = F.one_hot(ids, len(A)).to(x.dtype) * scale
    return mix_outputs(x, A, B, gate.to(x.dtype), y, between=between)


def _loop(x: Tensor, A: Tensor, B: Tensor, pick: Pick, y: Tensor | None, scale: Scale, between: Between | None) -> Tensor:
    rows, tokens, width = x.shape

    def one(e: int, x: Tensor, y: Tensor | None) -> Tensor:
        s = scale[e].to(x.dtype) if isinstance(scale, Tensor) else scale
        h = x.reshape(-1, width) @ A[e].T
        h = between(h) if between else h
        if y is None or isinstance(s, Tensor):
            out = (h @ B[e].T * s).view(len(x), tokens, -1)
            return out if y is None else y + out
        return torch.addmm(y.reshape(-1, y.shape[-1]), h, B[e].T, alpha=s).view(y.shape)

    if pick.one is not None:
        return one(pick.one, x, y)
    out = x.new_zeros(rows, tokens, B.shape[1]) if y is None else y
    for e, mine in pick.groups:
        out = out.index_add(0, mine, one(e, x[mine], None).to(out.dtype))
    return out


def mix_outputs(
    x: Tensor, A: Tensor, B: Tensor, gate: Tensor, y: Tensor | None = None, *, scale: Scale = 1.0, between: Between | None = None
) -> Tensor:
    """y + Σ_e w_e s_e B_e f(A_e x), every expert at once: two plain products, differentiable in the gate.

    x [rows, tokens, in]; gate [rows, E] or, by token, [rows, tokens, E]; the rest as in `per_row`.
    """
    (rows, tokens, width), (size, rank) = x.shape, A.shape[:2]
    h = x.reshape(-1, width) @ A.reshape(size * rank, width).T
    h = between(h) if between else h
    w = (gate if gate.ndim == 3 else gate[:, None]) * (scale if isinstance(scale, float) else scale.to(gate.dtype))
    h = (h.view(rows, tokens, size, rank) * w[..., None]).view(rows * tokens, size * rank)
    right = B.transpose(1, 2).reshape(size * rank, -1)
    if y is None:
        return (h @ right).view(rows, tokens, -1)
    return torch.addmm(y.reshape(rows * tokens, -1), h, right).view(rows, tokens, -1)


def mixed_parameters(A: Tensor, B: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Each gate's own update: A_u = Σ_e w_e A_e and B_u likewise, block by block.

    A [E, r, in]; B [E, out, r]; gate [U, E] or [U, h, E], where block q of h owns the q-th stretch of the inputs (of A) and of
    the outputs (of B), and the r latent numbers are common. → A [U, r, in], B [U, out, r].
    """
    if gate.ndim == 2:
        gate = gate[:, None]
    (U, h, E), (r, d_in), d_out = gate.shape, A.shape[1:], B.shape[1]
    if d_in % h or d_out % h:
        raise BadInput(f"{h} heads do not divide {d_in} inputs and {d_out} outputs", where="heads", remedy="choose a divisor")
    left = torch.einsum("uhe,erhd->urhd", gate, A.view(E, r, h, d_in // h)).reshape(U, r, d_in)
    right = torch.einsum("uhe,ehdr->uhdr", gate, B.view(E, h, d_out // h, r)).reshape(U, d_out, r)
    return left, right


def mix_parameters(
    x: Tensor, A: Tensor, B: Tensor, gate: Tensor, pick: Pick, y: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    """y + s (Σ_e w_e B_e)(Σ_e w_e A_e) x, with w the gate of each row's expert: gate[u] belongs to `pick.experts[u]`."""
    left, right = mixed_parameters(A, B, gate)
    return per_row(x, left, right, pick.local(), y, scale=scale)


def per_row_perceptron(
    x: Tensor, D: Tensor, b_D: Tensor, U: Tensor, b_U: Tensor, act: Between, pick: Pick, *, scale: float = 1.0
) -> Tensor:
    """s (U_e act(D_e x + b_D,e) + b_U,e) with e the expert of each row: x [rows, tokens, d]; D [E, m, d]; U [E, out, m]."""
    if pick.one is not None and not torch.compiler.is_compiling():
        e = pick.one
        return F.linear(act(F.linear(x, D[e], b_D[e])), U[e], b_U[e]) * scale
    ids = pick.counted(len(x))
    h = act(torch.baddbmm(b_D[ids][:, None], x, D[ids].transpose(1, 2)))
    return torch.baddbmm(b_U[ids][:, None], h, U[ids].transpose(1, 2)) * scale
