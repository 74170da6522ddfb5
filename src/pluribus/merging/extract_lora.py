"""A full fine-tune as a LoRA adapter: the best low-rank approximation of each matrix's update.

    τ = θ1 − θ0 = U S V;   B = U_r √S_r, A = √S_r V_r;   relative error² = Σ_{i>r} σ_i² / Σ σ_i²   (Eckart and Young)

The rank is fixed, or the least that keeps a share of the energy ‖τ‖², or the least with at most a given relative error. What is
no matrix (biases, norms) is not in the adapter; `Extraction.left_out` says how much moved there. Heads go along whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pluribus.errors import BadInput
from pluribus.merging.algebra import fraction
from pluribus.merging.checkpoints import compare, config
from pluribus.merging.lora import Factors, write_adapter
from pluribus.merging.matrices import svd
from pluribus.merging.source import Renamed, is_statistic, open_source, task_vector
from pluribus.merging.stream import one_thread

# lookups, not maps: PEFT adapts them in another way
SKIP = ("*embed*", "*wte*", "*wpe*", "*position*", "shared.weight", "*.shared.weight", "*relative_attention_bias*")
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # model types of transformers that store [in, out]


@dataclass
class Extraction:
    """rows: (tensor, rank, relative error) of each matrix. error: of all of them. left_out: share of ‖τ‖² no adapter holds."""

    path: Path
    rows: list[tuple[str, int, float]]
    error: float
    left_out: float

    def __str__(self) -> str:
        lines = [f"{name}  rank {rank}  error {error:.4f}" for name, rank, error in self.rows]
        return "\n".join([*lines, f"all matrices  error {self.error:.4f}; outside of matrices {self.left_out:.4f} of the energy"])


def extract_lora(
    base: Any,
    expert: Any,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    skip: Sequence[str] = SKIP,
    task_type: str | None = None,
    overwrite: bool = False,
) -> Extraction:
    """Write a PEFT folder that turns `base` into (nearly) `expert`.

    Give one of rank, energy (share of ‖τ‖² to keep) and error (largest relative error of a matrix). skip: name patterns left out.
    """
    if sum(x is not None for x in (rank, energy, error)) != 1:
        raise BadInput("give one of rank, energy and error", where="extract_lora", remedy="for example rank=16")
    if rank is not None and rank < 1:
        raise BadInput(f"rank is {rank}", where="rank", remedy="use at least 1")
    share = (
        None
        if rank is not None
        else fraction("energy", energy)
        if energy is not None
        else 1 - fraction("error", error or 0.0) ** 2
    )
    plan = compare(open_source(base), {"expert": open_source(expert)})
    source = plan.experts["expert"]
    spelled = source.map if isinstance(source, Renamed) else {}
    factors: dict[str, Factors] = {}
    rows: list[tuple[str, int, float]] = []
    lost = kept = outside = 0.0
    with one_thread():
        for name in plan.merged:
            if is_statistic(name):
                continue
            shape = plan.base.shape(name)
            tau = task_vector(plan.base, source, name)
            if not torch.isfinite(tau).all():
                raise BadInput(f"tensor {name!r} holds NaN or infinity", where="expert or base", remedy="mend it")
            size = float(tau.double().square().sum())
            if len(shape) != 2 or not name.endswith(".weight") or any(fnmatch(name, pattern) for pattern in skip):
                outside += size
                continue
            if not size:
                continue
            u, s, v = svd(tau.view(shape).double())
            squares = s.square()
            if share is None:
                r = min(rank or 1, len(s))
            else:
                r = min(len(s), int((squares.cumsum(0) < share * squares.sum() * (1 - 1e-12)).sum()) + 1)
            rest = float(squares[r:].sum())
            root = s[:r].sqrt()
            module = spelled.get(name, name).removesuffix(".weight")
            factors[module] = Factors((u[:, :r] * root).float(), (root[:, None] * v[:r]).float(), 1.0)
            rows.append((name, r, math.sqrt(rest / size)))
            lost, kept = lost + rest, kept + size
    if not factors:
        raise BadInput("the expert moved no matrix", where="expert", remedy="check that it is the fine-tuned model")
    heads = {n: plan.originals["expert"].tensor(spelled.get(n, n)) for n in plan.heads["expert"]}
    name = str(base) if isinstance(base, (str, Path)) else ""
    transposed = _transposed(base)
    if transposed:
        factors = {module: replace(f, left=f.right.T, right=f.left.T) for module, f in factors.items()}
    write_adapter(out, factors, base=name, whole=heads, task_type=task_type, overwrite=overwrite, transposed=transposed)
    return Extraction(Path(out), rows, math.sqrt(lost / kept), outside / (kept + outside))


def _transposed(base: Any) -> bool:
    """Whether the model stores its maps [in, out], as transformers' Conv1D does."""
    if isinstance(base, nn.Module):
        return any(type(module).__name__ == "Conv1D" for module in base.modules())
    folder = isinstance(base, (str, Path)) and Path(base).is_dir()
    return folder and config(Path(base)).get("model_type") in CONV1D
