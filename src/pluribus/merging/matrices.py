"""What methods on whole matrices share: which tensors are matrices, the nearest orthonormal matrix, the mean of the others."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.merging.algebra import MergeStage, Need, Span, mean


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(out, in) of a tensor with at least two dimensions (kernels: in × height × width), else None."""
    if len(shape) < 2 or not math.prod(shape) or shape[0] == 1 or math.prod(shape[1:]) == 1:
        return None
    return shape[0], math.prod(shape[1:])


def polar(x: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows, if wider than tall): P Q of the decomposition X = P Σ Q."""
    p, _, q = svd(x)
    return p @ q


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin decomposition X = U diag(S) V, V with orthonormal rows."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    return u, s, v


class MatrixStage(MergeStage):
    """A consensus that works on matrices; every other tensor gets the mean of the task vectors, and so does a lone expert."""

    needs: ClassVar[Need] = "tensor"

    def merge(self, tau: Tensor, span: Span) -> Tensor:
        """[T, out, in] → [out, in]."""
        raise NotImplementedError

    def __call__(self, tau: Tensor, span: Span, seen: object) -> Tensor:
        shape = matrix_shape(span.shape)
        if shape is None or len(tau) == 1 or not tau.any():
            return mean(tau, [1.0] * len(tau))
        return self.merge(tau.view(-1, *shape), span).reshape(-1)
