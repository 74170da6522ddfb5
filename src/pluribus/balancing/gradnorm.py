"""GradNorm: task weights learnt so that weighted gradient norms follow the tasks' training rates.

Source: Chen, Badrinarayanan, Lee, Rabinovich (2018), GradNorm, eq. 1–2, Alg. 1: at the last shared layer n_t = ‖∇(v_t ℓ_t)‖,
n̄ = mean n, r_t = (ℓ_t/ℓ_t(0)) / mean; one step on v of Σ |n_t − n̄ r_t^α| with the target constant; then Σ v = T.
∂/∂v_t = sign(n_t − n̄ r_t^α) ‖∇ℓ_t‖.

Where public codes differ: LibMTL takes v = T softmax(s), norms over the whole encoder and the first epoch's mean for ℓ(0).
Here ℓ_t(0) is the task's first loss, v is kept positive (1e-3 at least) and has its own Adam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive
from pluribus.balancing.state import PerTask, Scalars
from pluribus.errors import BadInput


@dataclass(eq=False)
class GradNorm(Balancer):
    """w_t = v_t, summing to T, learnt. Needs the squared gradient norms (at the last shared layer) and the losses.

    alpha: α, the strength of the pull towards a common rate (default 1.5; the paper: 1.5 on NYUv2, 0.12 on its toy).
    lr: of the inner Adam (default 0.025).
    """

    alpha: float = 1.5
    lr: float = 0.025
    needs: ClassVar[frozenset[str]] = frozenset({"norms", "losses"})
    source: ClassVar[str] = "last"  # where the doors measure the norms unless told otherwise
    mutable: ClassVar[tuple[str, ...]] = ("v", "first")

    def validate(self) -> None:
        check_positive(self, lr=self.lr)
        if self.alpha < 0:
            raise BadInput(f"alpha is {self.alpha}", where="GradNorm", remedy="give 0 or more")

    def reset(self) -> None:
        self.v = Scalars(1.0, self.lr)
        self.first = PerTask()  # ℓ(0); 0 where the task is new

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        assert losses is not None
        first = self.first.rows(tasks, losses)
        first = torch.where(first == 0, losses, first)
        self.first.put(tasks, first)
        w = self.v.rows(tasks, signal)
        mass = w.sum()
        v = self.v.descend(tasks, self.gradient(signal.clamp_min(0).sqrt(), w, losses / first)).clamp_min(1e-3)
        self.v.value.put(tasks, v * (mass / v.sum()))  # the tasks present keep the mass they had: Σ v = T over all
        return w * (len(tasks) / mass)

    def gradient(self, norms: Tensor, v: Tensor, relative: Tensor) -> Tensor:
        """∂/∂v [T] of Σ |n_t − n̄ r_t^α| at n = v·norms, for relative losses ℓ/ℓ(0)."""
        relative = torch.nan_to_num(relative, nan=1.0, posinf=1.0, neginf=1.0).clamp_min(0)
        n = v * norms
        r = relative / relative.mean().clamp_min(1e-30)
        return torch.sign(n - n.mean() * r.pow(self.alpha)) * norms
