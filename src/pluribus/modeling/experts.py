"""Banks: E small networks of one shape side by side, every layer one stacked weight and one batched product.

The layout serves accelerators, small batches and batch-one serving, where the cost of many small networks is in the calls.
An absent slice does not run, gets a zero gradient and, stepped by `pluribus.training.SliceAdamW` with `active`, keeps weight
and moments bit-identical.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """E linear maps: weight [E, in, out], bias [E, out], each drawn as `torch.nn.Linear` draws its own."""

    def __init__(self, size: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.size, self.inputs, self.outputs = size, inputs, outputs
        bound = 1 / math.sqrt(inputs) if inputs else 0.0
        self.weight = nn.Parameter(torch.empty(size, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(size, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [B, in] that all maps read, or [A, B, in] with one batch a map → [A, B, out].

        active: int64 [A], which maps run; default all (A = E).
        """
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if active is not None:
            weight, bias = weight[active], bias[active]
        if len(weight) == 1:  # a plain product is faster than a batch of one
            return torch.addmm(bias[0], x.flatten(0, -2), weight.squeeze(0)).reshape(1, -1, self.outputs)
        return torch.baddbmm(bias[:, None], x.expand(len(weight), *x.shape[-2:]), weight)

    def extra_repr(self) -> str:
        return f"{self.size} × ({self.inputs} → {self.outputs})"


class Bank(nn.Module):
    """E multilayer perceptrons of one shape: Linear, then (ReLU, dropout, Linear) for every further width.

    size: E. widths: (in, hidden, …, out), at least two. dropout: share of hidden units dropped in training.
    """

    def __init__(self, size: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.size, self.widths, self.dropout = size, tuple(widths), dropout
        self.layers = nn.ModuleList(StackedLinear(size, a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [B, in] or [A, B, in] → [A, B, out]; `active` (int64 [A]) as in `StackedLinear`."""
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else F.dropout(F.relu(x), self.dropout, self.training), active)
        return x


class StackedNorm(nn.Module):
    """Batch normalisation of E slices, each with its own scale, shift and running moments (Ioffe & Szegedy 2015).

    An absent slice keeps its moments bit for bit. A batch of one row has no variance: in training it is normalised by the
    running moments, as when predicting, and leaves them alone.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, size: int, width: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(size, width))
        self.bias = nn.Parameter(torch.zeros(size, width))
        self.register_buffer("mean", torch.zeros(size, width))
        self.register_buffer("variance", torch.ones(size, width))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [A, B, d] of the active slices → the same shape."""
        weight: Tensor = self.weight if active is None else self.weight[active]
        bias: Tensor = self.bias if active is None else self.bias[active]
        if self.training and x.shape[1] > 1:
            variance, mean = torch.var_mean(x, 1, correction=0)
            with torch.no_grad():
                rows = x.shape[1]
                for kept, new in ((self.mean, mean), (self.variance, variance * (rows / (rows - 1)))):
                    if active is None:
                        kept.lerp_(new.to(kept), self.momentum)
                    else:
                        kept.index_copy_(0, active, kept[active].lerp(new.to(kept), self.momentum))
        else:
            mean = self.mean if active is None else self.mean[active]
            variance = self.variance if active is None else self.variance[active]
        scale = weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul((bias - mean * scale)[:, None], x, scale[:, None])

    @torch.no_grad()
    def fold_into(self, layer: StackedLinear) -> None:
        """Write what this does when predicting into the linear layer before it, which then answers for both."""
        scale = self.weight * torch.rsqrt(self.variance + self.eps)
        layer.bias.copy_((layer.bias - self.mean) * scale + self.bias)
        layer.weight.mul_(scale[:, None])
