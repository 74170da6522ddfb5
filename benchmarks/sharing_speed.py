"""MMoE and PLE on stacked banks against the same networks as lists of modules. Writes docs/results/sharing_speed.md.

Both sides hold the same weights (outputs are compared first), take the same batches and the same optimiser (torch's fused AdamW),
in float32 on one thread. 4 tasks, towers of 32 units; inputs and experts as named. PLE has 2 levels; "8 experts" there means 8 a
level: 1 for each of the 4 tasks and 4 shared; 32: 4 each and 16 shared.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ratio import RESULTS, Ratio, machine, ratio, table

TASKS, TOWER = 4, 32
SMALL, LARGE = (128, 64), (320, 128)  # (inputs, units of an expert): the candidates' defaults; a recommender's fields


def linear(layer: Any, i: int) -> nn.Linear:
    """Slice i of a stacked layer as a module."""
    one = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias is not None)
    with torch.no_grad():
        one.weight.copy_(layer.weight[i].T)
        if layer.bias is not None:
            one.bias.copy_(layer.bias[i])
    return one


def listed(layer: Any) -> nn.ModuleList:
    return nn.ModuleList(linear(layer, i) for i in range(layer.size))


class ListedMMoE(nn.Module):
    """MMoE as it is usually written."""

    def __init__(self, stacked: Any) -> None:
        super().__init__()
        self.experts = listed(stacked.experts.layers[0])
        self.gates = listed(stacked.gates)
        self.towers = listed(stacked.towers.bank.layers[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = torch.stack([torch.relu(expert(x)) for expert in self.experts], 1)
        found = []
        for gate, tower in zip(self.gates, self.towers):
            weights = torch.softmax(gate(x), -1)
            found.append(torch.relu(tower(torch.bmm(weights[:, None], outputs)[:, 0])))
        return found


class ListedPLE(nn.Module):
    """PLE as it is usually written."""

    def __init__(self, stacked: Any) -> None:
        super().__init__()
        self.m = stacked.levels[0].m
        self.own = nn.ModuleList(listed(level.own.layers[0]) for level in stacked.levels)
        self.shared = nn.ModuleList(listed(level.shared.layers[0]) for level in stacked.levels)
        self.gates = nn.ModuleList(listed(level.gates) for level in stacked.levels)
        self.shared_gate = linear(stacked.levels[0].shared_gate, 0)
        self.towers = listed(stacked.towers.bank.layers[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        paths, common = [x] * TASKS, x
        for level in range(2):
            shared = [torch.relu(expert(common)) for expert in self.shared[level]]  # type: ignore[union-attr, operator]
            own = [
                [torch.relu(e(paths[t])) for e in self.own[level][t * self.m : (t + 1) * self.m]]  # type: ignore[index, operator]
                for t in range(TASKS)
            ]
            new = []
            for t, gate in enumerate(self.gates[level]):  # type: ignore[arg-type]
                weights = torch.softmax(gate(paths[t]), -1)
                new.append(torch.bmm(weights[:, None], torch.stack(own[t] + shared, 1))[:, 0])
            if level == 0:
                everyone = torch.stack([e for each in own for e in each] + shared, 1)
                common = torch.bmm(torch.softmax(self.shared_gate(common), -1)[:, None], everyone)[:, 0]
            paths = new
        return [torch.relu(tower(path)) for tower, path in zip(self.towers, paths)]


Run = Callable[[Tensor], list[Tensor]]


def pair(kind: str, experts: int, shape: tuple[int, int]) -> tuple[Run, Run, Any, nn.Module]:
    """(stacked, listed) as functions x → one output a task, and what holds their weights."""
    from pluribus.modeling import Features
    from pluribus.sharing import PLE, MMoE
    from pluribus.tasks import Task

    torch.manual_seed(0)
    tasks, (width, expert) = [Task(name) for name in "abcd"], shape
    stacked: Any
    other: nn.Module
    if kind == "MMoE":
        stacked = MMoE(tasks, width, experts=experts, expert=expert, tower=TOWER)
        other = ListedMMoE(stacked)
    else:
        stacked = PLE(tasks, width, own=experts // 8, shared=experts // 2, expert=expert, tower=TOWER)
        other = ListedPLE(stacked)
    rows = dict.fromkeys("abcd")

    def run(x: Tensor) -> list[Tensor]:
        return [found.main for found in stacked(Features(x), rows).tasks.values()]

    x = torch.randn(64, width)
    for mine, theirs in zip(run(x), other(x)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    return run, other, stacked, other


def inference(kind: str, experts: int, shape: tuple[int, int]) -> Ratio:
    stacked, other, *_ = pair(kind, experts, shape)
    x = torch.randn(1, shape[0])

    def repeat(run: Run) -> Callable[[], None]:
        def many() -> None:
            with torch.inference_mode():
                for _ in range(50):
                    run(x)

        return many

    name = f"{kind}, {experts} experts {shape[0]} → {shape[1]}, batch 1, inference ×50"
    return ratio(name, repeat(other), repeat(stacked), target="≥ 4")


def training(kind: str, experts: int, batch: int, target: str, pairs: int) -> Ratio:
    stacked, other, *holders = pair(kind, experts, LARGE)
    x = torch.randn(batch, LARGE[0])
    steps = max(1, 1024 // batch)

    def trainer(run: Run, holder: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(holder.parameters(), lr=1e-3, fused=True)

        def train() -> None:
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                torch.stack([h.square().mean() for h in run(x)]).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        return train

    name = f"{kind}, {experts} experts {LARGE[0]} → {LARGE[1]}, batch {batch}, {steps} training step{'s' if steps > 1 else ''}"
    return ratio(name, trainer(other, holders[1]), trainer(stacked, holders[0]), target=target, pairs=pairs)


def one_of_eight(kind: str, own: int = 1) -> Ratio:
    """Time of one requested task over the time of all eight, batch 1024."""
    from pluribus.modeling import Features
    from pluribus.sharing import HoME, MMoE
    from pluribus.tasks import Task

    torch.manual_seed(0)
    tasks = [Task(name, "binary") for name in "abcdefgh"]
    categories = {"one": list("abcd"), "two": list("efgh")}
    width, expert = LARGE
    sharing: Any = (
        MMoE(tasks, width, experts=8, expert=expert, tower=TOWER, top_k=1)
        if kind == "MMoE top-1"
        else HoME(tasks, width, categories=categories, own=own, expert=expert, tower=TOWER)
    ).eval()
    features = Features(torch.randn(1024, width))

    def ask(names: str) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for _ in range(5):
                    sharing(features, dict.fromkeys(names))

        return run

    what = f"{kind}, {own} own expert{'s' if own > 1 else ''} a task" if kind == "HoME" else kind
    return ratio(f"{what}: one task of eight over all eight, batch 1024", ask("c"), ask("abcdefgh"), target="≤ 0.4")


def run(full: bool) -> None:
    torch.set_num_threads(1)
    pairs = 7
    found: list[Ratio] = []
    for kind in ("MMoE", "PLE"):
        for experts in (8, 32):
            found.append(inference(kind, experts, SMALL))
        found.append(inference(kind, 8, LARGE))
        for experts, target in ((8, "≥ 1.05"), (32, "≥ 1.15")):
            found.append(training(kind, experts, 256, target, pairs))
        for experts in (8, 32):
            found.append(training(kind, experts, 4096, "≥ 0.95", pairs))
    asked = [one_of_eight("MMoE top-1"), one_of_eight("HoME"), one_of_eight("HoME", own=2)]
    lines = [
        "# Stacked banks against lists of modules", "",
        "CPU time of the list over CPU time of the bank, medians of 7 interleaved pairs; the weights are the same on both sides",
        "and so are the outputs. The gain is in the calls: large with few rows, none where arithmetic rules.", "",
        table(found).replace("| ours, ms | other, ms |", "| list, ms | bank, ms |"), "",
        "What a request for one task costs, as a share of the cost of all eight:", "",
        table(asked).replace("| ours, ms | other, ms |", "| one, ms | eight, ms |"), "",
        f"{machine()}; {datetime.date.today().isoformat()}; {'full' if full else 'default'} set of cells.", "",
    ]  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "sharing_speed.md").write_text("\n".join(lines), "utf-8")
