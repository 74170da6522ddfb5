"""LoRAHub: a new task is a weighted sum of the parameters of trained LoRA modules; only the weights are found.

Huang, Liu, Lin, Pang, Du, Lin, "LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition", COLM 2024, §3:
https://arxiv.org/abs/2307.13269

    m̂ = (Σ_i w_i A_i)(Σ_i w_i B_i),    min_w L(w) + 0.05 Σ_i |w_i|,   |w_i| ≤ 1.5, one w for all layers

The weights are parameters [E, N], so they can be trained by gradients (add `penalty()`), for which they start at 1/N: at zero,
where the paper starts, the product has no gradient. `search` is the paper's way without gradients, a CMA-ES (Hansen 2016) of
about 40 evaluations from zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.adapters.adapter import LinearAdapters, key_of
from pluribus.adapters.lora import LoRA, LowRank, check_rank
from pluribus.adapters.route import Route
from pluribus.errors import BadInput
from pluribus.linalg.low_rank import Pick, mix_parameters, mixed_parameters


class Weights(nn.Module):
    """w [E, N], 1/N at the start."""

    def __init__(self, size: int, modules: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((size, modules), 1 / modules))

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        self.w[slot] = 1 / self.w.shape[1]


class LoRAHub(LinearAdapters):
    """modules: a trained `LoRA` bank on the same model whose tasks are the modules (its hooks are taken out), all of its rank
    and scale; or how many untrained ones (for loading)."""

    name = "lorahub"
    common = ("*.A", "*.B", "scale")
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        modules: LoRA | int,
        where: str | Sequence[str] = "all",
        rank: int = 8,
        freeze: bool = True,
    ) -> None:
        scale = 1.0
        if isinstance(modules, LoRA):
            if modules.model is not model:
                raise BadInput("are of another model", where="modules", remedy="train them on this one")
            where, rank = modules.settings["where"], modules.rank
            scales = {float(modules.scale[slot]) for slot in modules.slots.values()}
            if len(scales) > 1:
                raise BadInput(f"have several scales {sorted(scales)}", where="modules", remedy="use modules of one scale")
            scale = scales.pop()
            modules.detach()
        count = modules if isinstance(modules, int) else len(modules.slots)
        super().__init__(model, tasks, where, {"modules": count, "rank": rank}, freeze=freeze)
        check_rank(rank, list(self.places.values()))
        self.register_buffer("scale", torch.tensor(scale))
        self.sites["all"] = Weights(self.capacity, count)
        for path, site in self.places.items():
            bank = LowRank(count, rank, site.inputs, site.outputs)
            if isinstance(modules, LoRA):
                slots = [modules.slots[task] for task in modules.tasks]
                bank.A.data.copy_(modules.site(path).A.data[slots])
                bank.B.data.copy_(modules.site(path).B.data[slots])
            self.sites[key_of(path)] = bank.requires_grad_(False)
        self.start()

    @property
    def w(self) -> nn.Parameter:
        """The weights, [E, N]."""
        found: nn.Parameter = self.sites["all"].w  # type: ignore[assignment]
        return found

    def reset(self, slot: int) -> None:
        self.sites["all"].reset(slot)  # type: ignore[operator]

    def updated(self, path: str, module: nn.Module, x: Tensor, y: Tensor, pick: Pick, route: Route) -> Tensor:
        p = self.site(path)
        return mix_parameters(x, p.A, p.B * self.scale, self.w[pick.unique], pick, y)

    def merged_parameters(self, task: str) -> dict[str, Tensor]:
        slot, found = self.slot(task), {}
        for path in self.places:
            A, B = mixed_parameters(self.site(path).A, self.site(path).B, self.w[slot : slot + 1])
            found[f"{path}.weight"] = self.with_change(path, self.scale * (B[0] @ A[0]))
        return found

    def penalty(self, task: str, weight: float = 0.05) -> Tensor:
        """0.05 Σ|w| of one task."""
        return weight * self.w[self.slot(task)].abs().sum()

    @torch.no_grad()
    def search(
        self,
        task: str,
        loss: Callable[[], float],
        *,
        evaluations: int = 40,
        bound: float = 1.5,
        penalty: float = 0.05,
        sigma: float = 0.5,
        seed: int = 0,
    ) -> float:
        """Set the task's weights without gradients; returns the best objective. loss: of the model with the weights set."""
        row = self.w[self.slot(task)]

        def objective(w: Tensor) -> float:
            row.copy_(w)
            return float(loss()) + penalty * float(w.abs().sum())

        best, value = cma_es(objective, len(row), evaluations, bound, sigma, seed)
        row.copy_(best)
        return value


def cma_es(
    objective: Callable[[Tensor], float], n: int, evaluations: int, bound: float, sigma: float, seed: int
) -> tuple[Tensor, float]:
    """Minimise over [-bound, bound]ⁿ from zero by (μ/μ_w, λ)-CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016)."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.float64
    lam = 4 + int(3 * math.log(n))
    mu = lam // 2
    weights = math.log(mu + 0.5) - torch.arange(1, mu + 1, dtype=kind).log()
    weights /= weights.sum()
    mu_eff = float(1 / weights.square().sum())
    c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)
    c_s = (mu_eff + 2) / (n + mu_eff + 5)
    c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)
    c_mu = min(1 - c_1, 2 * (mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff))
    damping = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_s
    chi = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
    mean, C = torch.zeros(n, dtype=kind), torch.eye(n, dtype=kind)
    p_s, p_c = torch.zeros(n, dtype=kind), torch.zeros(n, dtype=kind)
    best, value = mean.clone(), objective(mean)
    done, generation = 1, 0
    while done < evaluations:
        generation += 1
        scales, axes = torch.linalg.eigh(C)
        root = scales.clamp(min=1e-20).sqrt()
        steps = torch.randn(lam, n, generator=g, dtype=kind) * root @ axes.T
        points = (mean + sigma * steps).clamp(-bound, bound)
        found = torch.tensor([objective(point) for point in points[: evaluations - done]], dtype=kind)
        done += len(found)
        if float(found.min()) < value:
            value, best = float(found.min()), points[int(found.argmin())].clone()
        if len(found) < lam:
            break
        chosen = found.argsort()[:mu]
        steps = (points[chosen] - mean) / sigma
        step = weights @ steps
        mean = mean + sigma * step
        p_s = (1 - c_s) * p_s + math.sqrt(c_s * (2 - c_s) * mu_eff) * (axes @ ((axes.T @ step) / root))
        length = float(p_s.norm())
        on = length / math.sqrt(1 - (1 - c_s) ** (2 * generation)) < (1.4 + 2 / (n + 1)) * chi
        p_c = (1 - c_c) * p_c + on * math.sqrt(c_c * (2 - c_c) * mu_eff) * step
        C = (1 - c_1 - c_mu) * C + c_1 * torch.outer(p_c, p_c) + c_mu * (steps.T * weights) @ steps
        sigma *= math.exp(c_s / damping * (length / chi - 1))
    return best, value
