"""Weights only, the Gram matrix given: CPU ms a call of every Gram method, beside TorchJD's, at T = 3, 10, 40."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.ratio import RESULTS, machine
from pluribus.balancing import IMTLG, MGDA, AlignedMTL, CAGrad, ConFIG, DualProj, FairGrad, GradVac, NashMTL, PCGrad, UPGrad

TARGET = {"NashMTL": 1.0, "FairGrad": 1.0, "PCGrad": 1.0, "MGDA": 5.0, "UPGrad": 5.0}  # ms at T = 40
OURS = (NashMTL, FairGrad, PCGrad, GradVac, MGDA, UPGrad, DualProj, CAGrad, IMTLG, ConFIG, AlignedMTL)
SIZES = (3, 10, 40)


def grams(size: int, count: int) -> list[Tensor]:
    """Changing Gram matrices, as in training: random gradients of different lengths with a common part."""
    source = torch.Generator().manual_seed(size)
    found = []
    for _ in range(count):
        j = torch.randn(size, 2000, generator=source) + 0.5 * torch.randn(1, 2000, generator=source)
        j = j * 10 ** (torch.rand(size, 1, generator=source) - 0.5)
        found.append(j @ j.T)
    return found


def milliseconds(call: Callable[[Tensor], object], given: list[Tensor]) -> tuple[float, float]:
    """Median and lower quartile of CPU ms a call, each on another matrix."""
    call(given[0])
    times = []
    for gram in given:
        start = time.process_time()
        call(gram)
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times), statistics.quantiles(times, n=4)[0]


def peers(size: int) -> dict[str, Callable[[Tensor], object]]:
    """TorchJD's weightings on a Gram matrix, as far as it and its solvers are installed."""
    try:
        import torchjd.aggregation as a
    except ImportError:
        return {}
    made: dict[str, Callable[[], Any]] = {
        "FairGrad": lambda: a.FairGradWeighting(alpha=2.0),
        "PCGrad": a.PCGradWeighting,
        "GradVac": a.GradVacWeighting,
        "MGDA": a.MGDAWeighting,
        "UPGrad": a.UPGradWeighting,
        "DualProj": a.DualProjWeighting,
        "CAGrad": lambda: a.CAGradWeighting(c=0.4),
        "IMTLG": a.IMTLGWeighting,
        "AlignedMTL": a.AlignedMTLWeighting,
    }
    found: dict[str, Callable[[Tensor], object]] = {}
    for name, make in made.items():
        try:
            found[name] = make()
        except ImportError:
            continue
    return found


def run(full: bool) -> None:
    """Time all, print, and write docs/results/balancing_solvers.md."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    count = 200 if full else 40
    ours: dict[str, dict[int, tuple[float, float]]] = {}
    theirs: dict[str, dict[int, tuple[float, float]]] = {}
    for size in SIZES:
        given = grams(size, count)
        other = peers(size)
        for method in OURS:
            name = method.__name__
            ours.setdefault(name, {})[size] = milliseconds(method().weights, given)
            if name in other:
                theirs.setdefault(name, {})[size] = milliseconds(other[name], given)
    lines = [
        "# Solvers: weights only, the Gram matrix given",
        "",
        f"CPU milliseconds a call, median (lower quartile) of {count} calls, each on another float32 matrix; one thread;",
        f"{machine()}, {time.strftime('%Y-%m-%d')}. `python -m benchmarks --only balancing_solvers` writes this page.",
        "Nash-MTL of TorchJD is left out: it takes the T × P matrix and solves convex programmes (seconds at T = 40).",
        "",
        " | ".join(["| method", *(f"T = {n}" for n in SIZES), "target at 40", *(f"TorchJD, {n}" for n in SIZES)]) + " |",
        "|---|" + "---|" * (2 * len(SIZES) + 1),
    ]
    for name, row in ours.items():
        mine = [f"{row[size][0]:.2f} ({row[size][1]:.2f})" for size in SIZES]
        peer = [f"{theirs[name][size][0]:.2f}" if name in theirs else "–" for size in SIZES]
        goal = f"≤ {TARGET[name]:g}{' ✓' if row[40][0] <= TARGET[name] else ' missed'}" if name in TARGET else "–"
        lines.append(f"| {name} | {' | '.join(mine)} | {goal} | {' | '.join(peer)} |")
        print(lines[-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "balancing_solvers.md").write_text("\n".join(lines) + "\n", "utf-8")
