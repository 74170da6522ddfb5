"""Non-negative quadratic programmes min_{x ≥ 0} ½ xᵀ C x + qᵀ x, many at once.

KKT: x ≥ 0, y = C x + q ≥ 0, x·y = 0. Two ways to the same point:

*Block principal pivoting* (Portugal, Júdice, Vicente 1994; backup rule of Kim and Park 2011), exact and quick on a CPU: on a
guess F of the free set, x_F = −C_FF⁻¹ q_F and y follows; whoever has the wrong sign changes sides, all together while that
lowers their number, else the largest index alone. It may wander when C is nearly singular.

*Primal–dual interior point* (Mehrotra 1992): predictor, corrector, always some fifteen to forty rounds. It finishes what
pivoting leaves, and serves accelerators, where a fixed number of rounds means that nothing waits for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pluribus.linalg.cosine import settled


def nonnegative_qp(matrix: Tensor, linear: Tensor, free: Tensor | None = None) -> Tensor:
    """Solutions x [..., T] of min_{x ≥ 0} ½ xᵀ C x + qᵀ x for a positive definite C [..., T, T] and q [..., T].

    matrix: broadcast against the leading dimensions of `linear`, so that many problems may share one C. Add a ridge to a
    singular one. free: a first guess of the support (bool [..., T]).
    Residual on return: y ≥ −1e-12·(|C| x + |q|) entry by entry and x·y = 0 where the active set was found (always seen
    but for nearly singular C with far more tasks than dimensions; there x·y ≤ 1e-8·(x·|q|)).
    """
    size = linear.shape[-1]
    shape = (matrix[..., 0] + linear).shape[:-1]
    linear = linear.expand(*shape, size).reshape(-1, size)
    matrix = matrix.expand(*shape, size, size).reshape(-1, size, size)
    if linear.device.type != "cpu":
        return _interior_point(matrix, linear, 40).reshape(*shape, size)
    guess = torch.zeros_like(linear, dtype=torch.bool) if free is None else free.expand(*shape, size).reshape(-1, size)
    x, open_ = _pivoting(matrix, linear, guess)
    if len(open_):
        x[open_] = _interior_point(matrix[open_], linear[open_], 60)
    return x.reshape(*shape, size)


def _restricted(matrix: Tensor, linear: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """x with C_FF x_F = −q_F on the free set F and 0 elsewhere; and who has the wrong sign in x or y."""
    eye = torch.eye(linear.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, _ = torch.linalg.cholesky_ex(torch.where(inside.unsqueeze(-1) & inside.unsqueeze(-2), matrix, eye))
    x = torch.cholesky_solve(torch.where(inside, -linear, 0.0).unsqueeze(-1), factor)
    slack = 1e-12 * ((matrix.abs() @ x.abs()).squeeze(-1) + linear.abs())
    y = (matrix @ x).squeeze(-1) + linear
    x = x.squeeze(-1)
    return x, torch.where(inside, ~(x >= 0), ~(y >= -slack))  # a NaN is wrong too


def _pivoting(matrix: Tensor, linear: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, T], and the indices of the problems still open after 12 + T/2 rounds. Solved problems leave the batch."""
    count, size = linear.shape
    answer = torch.zeros_like(linear)
    open_ = torch.arange(count)
    index = torch.arange(size)
    fewest = torch.full((count, 1), size + 1)
    patience = torch.full((count, 1), 3)
    for _ in range(12 + size // 2):
        x, wrong = _restricted(matrix, linear, inside)
        number = wrong.sum(-1, keepdim=True)
        left = number.squeeze(-1) > 0
        if not bool(left.all()):
            answer[open_[~left]] = x[~left].clamp_min(0)
            open_ = open_[left]
            if not len(open_):
                break
            matrix, linear, inside, wrong = matrix[left], linear[left], inside[left], wrong[left]
            number, fewest, patience = number[left], fewest[left], patience[left]
        better = number < fewest
        block = better | (patience > 0)
        patience = torch.where(better, 3, patience - block.long())
        fewest = torch.minimum(fewest, number)
        inside = inside ^ (wrong & (block | (index == torch.where(wrong, index, -1).amax(-1, keepdim=True))))
    return answer, open_


def _interior_point(matrix: Tensor, linear: Tensor, rounds: int) -> Tensor:
    """Mehrotra's predictor–corrector from x = y = max|q|, then one exact solve on the support it found."""
    x = y = linear.abs().amax(-1, keepdim=True).clamp_min(1e-30).expand_as(linear)
    tiny = torch.finfo(x.dtype).tiny
    for _ in range(rounds):
        product = x * y
        mu = product.mean(-1, keepdim=True)
        if settled(product > 1e-20 * (x.square() + y.square())):
            break
        off = (matrix @ x.unsqueeze(-1)).squeeze(-1) + linear - y
        factor, _ = torch.linalg.cholesky_ex(matrix + torch.diag_embed(y / x))

        dx, dy = _newton(factor, x, y, off, product)
        length = _longest(x, y, dx, dy)
        ahead = ((x + length * dx) * (y + length * dy)).mean(-1, keepdim=True)
        dx, dy = _newton(factor, x, y, off, product + dx * dy - (ahead / mu).pow(3) * mu)
        length = 0.995 * _longest(x, y, dx, dy)
        x, y = (x + length * dx).clamp_min(tiny**0.5), (y + length * dy).clamp_min(tiny**0.5)
    exact, wrong = _restricted(matrix, linear, x > y)
    return torch.where(wrong.any(-1, keepdim=True), x, exact).clamp_min(0)


def _newton(factor: Tensor, x: Tensor, y: Tensor, off: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """The step that removes the infeasibility `off` and the products `product`, to first order."""
    dx = torch.nan_to_num(torch.cholesky_solve((-off - product / x).unsqueeze(-1), factor).squeeze(-1))
    return dx, -(product + y * dx) / x


def _longest(x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """The longest step up to 1 that keeps x and y positive."""
    v, dv = torch.cat((x, y), -1), torch.cat((dx, dy), -1)
    return torch.where(dv < 0, -v / dv, torch.inf).amin(-1, keepdim=True).clamp_max(1.0)
