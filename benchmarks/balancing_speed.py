"""What balancing costs: CPU ms of a training step beside a plain step, TorchJD, and LibMTL's algorithm plainly rewritten.

An MLP trunk of 1.07 M parameters, batch 128, T = 3, 10, 40 separate scalar heads, SGD, one thread. Writes
docs/results/balancing_speed.md. Memory is measured in a process of its own for each way (`python -m benchmarks.balancing_speed`).
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ratio import RESULTS, Ratio, machine, ratio, table
from pluribus.balancing import IMTLG, MGDA, AlignedMTL, Balancer, EqualWeighting, PCGrad, UPGrad, backward, combine

TASKS = (3, 10, 40)
COMBINE = {3: "<= 1.15", 10: "<= 1.25", 40: "<= 1.5"}
FULL = {3: "", 10: "<= 0.83 (1.2x faster)", 40: "<= 0.71 (1.4x faster)"}


class Norms(Balancer):
    """w = 1/‖g_t‖: a method whose own cost is nothing, to time the engine alone."""

    needs = frozenset({"gram"})

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        return signal.diagonal().rsqrt()


class Problem:
    """One network, one batch; every row labelled for all tasks (`full`) or for one task (`holes`)."""

    def __init__(self, T: int) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(32, 512), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Linear(512, 512), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(512, 1) for _ in range(T))
        self.x, self.y = torch.randn(128, 32), torch.randn(128, T)
        self.rows = {str(t): torch.arange(t, 128, T) for t in range(T)}
        self.optimiser = torch.optim.SGD([*self.trunk.parameters(), *self.heads.parameters()], lr=1e-4)

    def losses(self, holes: bool) -> tuple[dict[str, Tensor], Tensor]:
        z = self.trunk(self.x)
        if not holes:
            return {str(t): (h(z)[:, 0] - self.y[:, t]).square().mean() for t, h in enumerate(self.heads)}, z
        return {
            str(t): (h(z[self.rows[str(t)]])[:, 0] - self.y[self.rows[str(t)], t]).square().mean()
            for t, h in enumerate(self.heads)
        }, z

    def step(self, write: Callable[[dict[str, Tensor], Tensor], object], holes: bool = False) -> Callable[[], None]:
        """A training step whose gradients `write` leaves."""

        def run() -> None:
            self.optimiser.zero_grad()
            write(*self.losses(holes))
            self.optimiser.step()

        return run

    def plain(self, holes: bool = False) -> Callable[[], None]:
        return self.step(lambda losses, z: sum(losses.values()).backward(), holes)  # type: ignore[union-attr]

    def torchjd(self, aggregator: Any, holes: bool = False) -> Callable[[], None]:
        from torchjd.autojac import jac_to_grad, mtl_backward

        def write(losses: dict[str, Tensor], z: Tensor) -> None:
            mtl_backward(list(losses.values()), features=z)
            jac_to_grad(list(self.trunk.parameters()), aggregator)

        return self.step(write, holes)

    def libmtl(self, method: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        """LibMTL's way: one backward of the whole network a task, flat copies in a T × P matrix, the method on vectors."""
        shared = list(self.trunk.parameters())

        def write(losses: dict[str, Tensor], z: Tensor) -> None:
            rows = torch.zeros(len(losses), sum(p.numel() for p in shared))
            for t, loss in enumerate(losses.values()):
                loss.backward(retain_graph=True)
                rows[t] = torch.cat([p.grad.flatten() for p in shared])  # type: ignore[union-attr]
                for p in shared:
                    p.grad = None
            d, at = method(rows), 0
            for p in shared:
                p.grad = d[at : at + p.numel()].view_as(p).clone()
                at += p.numel()

        return self.step(write)


def libmtl_pcgrad(rows: Tensor) -> Tensor:
    """Every pair projected as vectors of length P."""
    projected = rows.clone()
    for i in range(len(rows)):
        for j in torch.randperm(len(rows)).tolist():
            dot = projected[i] @ rows[j]
            if dot < 0:
                projected[i] -= dot * rows[j] / (rows[j].norm() ** 2 + 1e-8)
    return projected.sum(0)


def libmtl_mgda(rows: Tensor) -> Tensor:
    """Frank–Wolfe in numbers, products of vectors formed one by one."""
    T = len(rows)
    G = [[float(rows[i] @ rows[j]) for j in range(T)] for i in range(T)]
    w = [1 / T] * T
    for _ in range(250):
        ahead = [sum(G[i][j] * w[j] for j in range(T)) for i in range(T)]
        best = min(range(T), key=ahead.__getitem__)
        now = sum(a * b for a, b in zip(w, ahead))
        denominator = now + G[best][best] - 2 * ahead[best]
        gamma = min(max((now - ahead[best]) / denominator, 0.0), 1.0) if denominator > 0 else 0.0
        w = [(1 - gamma) * a + gamma * (i == best) for i, a in enumerate(w)]
        if gamma < 1e-6:
            break
    return torch.tensor(w) @ rows


def _combine(pairs: int) -> list[Ratio]:
    found = []
    for T in TASKS:
        p = Problem(T)
        for balancer in (Norms(), MGDA(), EqualWeighting()):
            name = {"Norms": "engine alone"}.get(type(balancer).__name__, type(balancer).__name__)
            ours = p.step(lambda losses, z, b=balancer: combine(losses, b, features=z).backward())  # type: ignore[misc]
            found.append(ratio(f"combine, features, {name}, T={T} / plain step", ours, p.plain(), target=COMBINE[T], pairs=pairs))
    return found


def _grouped(pairs: int) -> list[Ratio]:
    found = []
    for T in TASKS:
        p, balancer = Problem(T), Norms()

        def write(losses: dict[str, Tensor], z: Tensor, p: Problem = p, balancer: Balancer = balancer) -> object:
            return backward(losses, balancer, features=z, cells=p.rows, gram="grouped")

        ours = p.step(write, True)
        target = "<= 1.4" if T == 40 else ""
        found.append(ratio(f"grouped, engine alone, T={T} / plain step", ours, p.plain(True), target=target, pairs=pairs))
        peer = _peer("MGDA")
        if peer is not None:
            target = "<= 0.05 (20x faster)" if T == 40 else ""
            found.append(ratio(f"grouped, engine alone, T={T} / TorchJD, MGDA", ours, p.torchjd(peer, True), target=target))
    return found


def _full(pairs: int) -> list[Ratio]:
    found = []
    for T in TASKS:
        p = Problem(T)
        for method in (MGDA, PCGrad, IMTLG, AlignedMTL, UPGrad):
            peer = _peer(method.__name__)
            if peer is None:
                continue
            balancer = method()
            ours = p.step(lambda losses, z, b=balancer: backward(losses, b, features=z, gram="full"))  # type: ignore[misc]
            name = f"full, {method.__name__}, T={T} / TorchJD"
            found.append(ratio(name, ours, p.torchjd(peer), target=FULL[T], pairs=pairs))
    return found


def _libmtl(pairs: int) -> list[Ratio]:
    found = []
    for T in TASKS:
        p = Problem(T)
        for balancer, method in ((MGDA(), libmtl_mgda), (PCGrad(), libmtl_pcgrad)):
            name = f"{type(balancer).__name__}, T={T} / LibMTL's algorithm"
            for way in ("full", "features"):
                ours = p.step(lambda losses, z, b=balancer, w=way: backward(losses, b, features=z, gram=w))  # type: ignore[misc]
                found.append(ratio(f"{way}, {name}", ours, p.libmtl(method), target="", pairs=pairs))
    return found


def _peer(name: str) -> Any:
    try:
        from torchjd import aggregation

        return getattr(aggregation, name)()
    except ImportError as error:
        print(f"TorchJD's {name} is not at hand: {error}")
        return None


WAYS = ("plain", "features", "last", "grouped", "full", "torchjd")


def _memory() -> list[str]:
    """Peak resident memory of three steps at T = 40, over that of a process that only built the network."""
    T = 40
    size = T * sum(q.numel() for q in Problem(1).trunk.parameters()) * 4 / 2**20
    rows = [f"| way, T={T} | peak above the built network, MiB | a T×P matrix would take, MiB |", "|---|---|---|"]
    base = _child("none")
    for way in WAYS:
        rows.append(f"| {way} | {_child(way) - base:.0f} | {size:.0f} |")
        print(rows[-1], flush=True)
    return rows


def _child(way: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.balancing_speed", way],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0"},
    )
    return float(done.stdout.split()[-1])


def _measure(way: str) -> None:
    """In a child: run the steps, print the peak in MiB."""
    import resource

    torch.set_num_threads(1)
    p, balancer = Problem(40), Norms()
    if way == "torchjd":
        run = p.torchjd(_peer("MGDA"))
    elif way == "grouped":
        run = p.step(lambda losses, z: backward(losses, balancer, features=z, cells=p.rows, gram="grouped"), True)
    elif way == "plain":
        run = p.plain()
    else:
        run = p.step(lambda losses, z: backward(losses, balancer, features=z, gram=way))  # type: ignore[arg-type]
    if way != "none":
        for _ in range(3):
            run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def run(full: bool) -> None:
    """Default: medians of 7 pairs; full: of 21."""
    threads, pairs = torch.get_num_threads(), 21 if full else 7
    torch.set_num_threads(1)
    try:
        parts = {
            "One scalar at the features, beside a plain step": _combine(3 * pairs),
            "Grouped Gram and gradient (each row labelled for one task)": _grouped(pairs),
            "Exact full Gram, beside TorchJD (mtl_backward + jac_to_grad) with the same method": _full(pairs),
            "Beside LibMTL's algorithm, plainly rewritten": _libmtl(pairs),
        }
    finally:
        torch.set_num_threads(threads)
    page(parts, _memory())


def page(parts: dict[str, list[Ratio]], memory: list[str]) -> None:
    """Write docs/results/balancing_speed.md."""
    text = [
        "# Balancing: what a step costs",
        "",
        f"`make bench ONLY=balancing_speed`; {datetime.date.today().isoformat()}, {machine()}; one thread; CPU time, medians of",
        f"interleaved pairs; load at the end: {os.getloadavg()[0]:.1f} (other work ran beside, see the quartiles).",
        "MLP trunk of 1.07 M parameters, batch 128, T separate scalar heads, SGD; a step is forward, gradients and update.",
        "A ratio below 1 means that ours is the faster. *Engine alone*: the weights cost nothing (w = 1/‖g‖); the solvers' own",
        "times are in balancing_solvers.md. Scalar linear heads let `combine` take one pass for all heads; heads that begin",
        "otherwise (a convolution, a selection of rows) cost a pass each.",
    ]
    for title, ratios in parts.items():
        text += ["", f"## {title}", "", table(ratios)]
    text += ["", "## Memory (peak of a process of its own)", "", *memory, ""]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "balancing_speed.md").write_text("\n".join(text), "utf-8")


if __name__ == "__main__":
    _measure(sys.argv[1])
