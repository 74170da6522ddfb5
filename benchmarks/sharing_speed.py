"""MMoE and PLE on stacked banks against the same networks as lists of modules. Writes docs/results/sharing_speed.md.

Both sides hold the same weights (outputs are compared first), take the same batches and the same optimiser (torch's fused
AdamW), in float32 on one thread. 4 tasks, towers of 32 units; inputs and experts as named; "+ norm": a batch norm after every
layer of an expert, for predictions folded into the weights on our side. PLE has 2 levels; "8 experts" there means 8 a level: 1
for each of the 4 tasks and 4 shared; 32: 4 each and 16 shared. For predictions ours are packed, as a fitted network is.
torch-rechub (where it is installed): its MMoE and PLE, with the batch norms that it always has, in gates and towers too.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ratio import RESULTS, Ratio, machine, ratio, table

TASKS, TOWER = 4, 32
Shape = tuple[int, tuple[int, ...], bool]  # inputs, units of an expert's layers, batch norms
SMALL: Shape = (128, (64,), False)  # the candidates' defaults
LARGE: Shape = (320, (128,), False)  # a recommender's 20 fields of 16
DEEP: Shape = (320, (128, 64), True)  # the same with the usual two layers and batch norms


def named(shape: Shape) -> str:
    return " → ".join(map(str, (shape[0], *shape[1]))) + (" + norm" if shape[2] else "")


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


def listed_experts(experts: Any) -> nn.ModuleList:
    """Experts as they are usually written: Linear, (BatchNorm1d), ReLU for every layer, in a list."""

    def one(e: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for i, layer in enumerate(experts.layers):
            parts.append(linear(layer, e))
            if experts.norms is not None:
                norm, ours = nn.BatchNorm1d(layer.outputs), experts.norms[i]
                with torch.no_grad():
                    norm.weight.copy_(ours.weight[e])
                    norm.bias.copy_(ours.bias[e])
                    norm.running_mean.copy_(ours.mean[e])  # type: ignore[union-attr]
                    norm.running_var.copy_(ours.variance[e])  # type: ignore[union-attr]
                parts.append(norm)
            parts.append(nn.ReLU())
        return nn.Sequential(*parts)

    return nn.ModuleList(one(e) for e in range(experts.size))


class ListedMMoE(nn.Module):
    """MMoE as it is usually written."""

    def __init__(self, stacked: Any) -> None:
        super().__init__()
        self.experts = listed_experts(stacked.experts)
        self.gates = listed(stacked.gates)
        self.towers = listed(stacked.towers.bank.layers[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
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
        self.own = nn.ModuleList(listed_experts(level.own) for level in stacked.levels)
        self.shared = nn.ModuleList(listed_experts(level.shared) for level in stacked.levels)
        self.gates = nn.ModuleList(listed(level.gates) for level in stacked.levels)
        self.shared_gate = linear(stacked.levels[0].shared_gate, 0)
        self.towers = listed(stacked.towers.bank.layers[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        paths, common = [x] * TASKS, x
        for level in range(2):
            shared = [expert(common) for expert in self.shared[level]]  # type: ignore[union-attr, operator]
            own = [
                [e(paths[t]) for e in self.own[level][t * self.m : (t + 1) * self.m]]  # type: ignore[index, operator]
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


def pair(kind: str, experts: int, shape: Shape) -> tuple[Run, Run, Any, nn.Module]:
    """(stacked, listed) as functions x → one output a task, and what holds their weights."""
    from pluribus.modeling import Features
    from pluribus.sharing import PLE, MMoE
    from pluribus.tasks import Task

    torch.manual_seed(0)
    tasks, (width, units, norm) = [Task(name) for name in "abcd"], shape
    stacked: Any
    other: nn.Module
    if kind == "MMoE":
        stacked = MMoE(tasks, width, experts=experts, expert=units, tower=TOWER, norm=norm)
        other = ListedMMoE(stacked)
    else:
        stacked = PLE(tasks, width, own=experts // 8, shared=experts // 2, expert=units, tower=TOWER, norm=norm)
        other = ListedPLE(stacked)
    rows = dict.fromkeys("abcd")

    def run(x: Tensor) -> list[Tensor]:
        return [found.main for found in stacked(Features(x), rows).tasks.values()]

    x = torch.randn(64, width)
    for mine, theirs in zip(run(x), other(x)):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    return run, other, stacked, other


def ready(stacked: Any) -> None:
    """As a fitted network is kept: norms folded, packed."""
    from pluribus.modeling.experts import pack

    stacked.eval().fold()
    pack(stacked)


def repeated(run: Callable[[Tensor], Any], x: Tensor, times: int = 50) -> Callable[[], None]:
    def many() -> None:
        with torch.inference_mode():
            for _ in range(times):
                run(x)

    return many


def inference(kind: str, experts: int, shape: Shape) -> Ratio:
    stacked, other, ours, theirs = pair(kind, experts, shape)
    ready(ours)
    theirs.eval()
    x = torch.randn(1, shape[0])
    for a, b in zip(stacked(x), other(x)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    name = f"{kind}, {experts} experts {named(shape)}, batch 1, inference ×50"
    return ratio(name, repeated(other, x), repeated(stacked, x), target="≥ 4", pairs=15)


def product(experts: int, shape: Shape) -> float:
    """CPU milliseconds, ×50, of the one product that MMoE's first layers and gates are for one row: no plan goes below it."""
    columns = experts * shape[1][0] + TASKS * experts
    x, weight = torch.randn(1, shape[0]), torch.randn(shape[0], columns)
    run = repeated(lambda row: torch.mm(row, weight), x)
    found = []
    for _ in range(15):
        start = time.process_time()
        run()
        found.append(1e3 * (time.process_time() - start))
    return statistics.median(found)


def stepper(run: Callable[[Tensor], Any], holder: nn.Module, x: Tensor, steps: int) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(holder.parameters(), lr=1e-3, fused=True)

    def train() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            outputs = run(x)
            parts = outputs if isinstance(outputs, list) else [outputs]
            torch.stack([h.square().mean() for h in parts]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return train


def training(kind: str, experts: int, batch: int, target: str, pairs: int, shape: Shape) -> Ratio:
    stacked, other, ours, theirs = pair(kind, experts, shape)
    x, steps = torch.randn(batch, shape[0]), max(1, 1024 // batch)
    name = f"{kind}, {experts} experts {named(shape)}, batch {batch}, {steps} training step{'s' if steps > 1 else ''}"
    sides = stepper(other, theirs, x, steps), stepper(stacked, ours, x, steps)
    return ratio(name, *sides, target=target, pairs=pairs)


def rechub(kind: str, batch: int, pairs: int) -> Ratio | None:
    """torch-rechub's model against ours of the same sizes, heads included on both sides; None where it is not installed."""
    try:
        from torch_rechub.basic.features import DenseFeature
        from torch_rechub.models import multi_task
    except ImportError:
        return None
    from pluribus.modeling import Features, Heads
    from pluribus.sharing import PLE, MMoE
    from pluribus.tasks import Task

    torch.manual_seed(0)
    tasks, (width, units, _) = [Task(name, "binary", classes=("0", "1")) for name in "abcd"], DEEP
    kinds, expert, towers = ["classification"] * TASKS, {"dims": list(units)}, [{"dims": [TOWER]}] * TASKS
    features = [DenseFeature("x", embed_dim=width)]
    ours: Any
    theirs: Any
    if kind == "MMoE":
        theirs = multi_task.MMOE(features, kinds, 8, expert, towers)
        ours = MMoE(tasks, width, experts=8, expert=units, tower=TOWER, norm=True)
    else:
        theirs = multi_task.PLE(features, kinds, 2, 1, 4, expert, towers)
        ours = PLE(tasks, width, own=1, shared=4, expert=units, tower=TOWER, norm=True)
    heads, rows = Heads(tasks, TOWER), dict.fromkeys("abcd")
    both = nn.ModuleList((ours, heads))

    def mine(x: Tensor) -> Tensor:
        return torch.cat([torch.sigmoid(h)[:, None] for h in heads(ours(Features(x), rows).tasks, rows).values()], 1)

    theirs.embedding = nn.Identity()  # dense inputs go straight in
    theirs.embedding.forward = lambda x, *_, **__: x["x"]

    def peer(x: Tensor) -> Tensor:
        found: Tensor = theirs({"x": x})
        return found

    x = torch.randn(batch, width)
    assert peer(torch.randn(8, width)).shape == (8, TASKS)
    if batch == 1:
        ready(ours)
        both.eval()
        theirs.eval()
        name = f"torch-rechub: {kind}, 8 experts {named(DEEP)}, batch 1, inference ×50"
        return ratio(name, repeated(peer, x), repeated(mine, x), target="≥ 4", pairs=15)
    steps = max(1, 1024 // batch)
    name = f"torch-rechub: {kind}, 8 experts {named(DEEP)}, batch {batch}, {steps} training step{'s' if steps > 1 else ''}"
    target = "≥ 1.05" if batch == 256 else "≥ 0.95"
    return ratio(name, stepper(peer, theirs, x, steps), stepper(mine, both, x, steps), target=target, pairs=pairs)


def plans() -> list[str]:
    """Every plan of a stacked layer on a grid of shapes, forward and backward, and a loop over the slices; ms, best of 5."""
    from pluribus.modeling.experts import PLANS, plan

    def loop(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        return torch.stack([torch.addmm(b, x, w) for w, b in zip(weight.unbind(), bias.unbind())])

    lines = ["| slices | rows | stacked, ms | wide, ms | loop, ms | chosen |", "|---|---|---|---|---|---|"]
    inputs, outputs = 320, 128
    for size in (2, 8, 32):
        for rows in (64, 256, 1024, 4096):
            weight, bias = torch.randn(size, inputs, outputs, requires_grad=True), torch.randn(size, outputs, requires_grad=True)
            x, gate = torch.randn(rows, inputs, requires_grad=True), torch.softmax(torch.randn(rows, TASKS, size), -1)
            best: dict[str, float] = {}
            for _ in range(5):
                for name, run in (("stacked", PLANS["stacked"]), ("wide", PLANS["wide"]), ("loop", loop)):
                    weight.grad = bias.grad = x.grad = None
                    start = time.process_time()
                    h = torch.relu(run(x, weight, bias))
                    torch.bmm(gate, h.transpose(0, 1)).square().mean().backward()  # type: ignore[no-untyped-call]
                    best[name] = min(best.get(name, 9e9), 1e3 * (time.process_time() - start))
            chosen = plan(size, rows, common=True, cpu=True)
            lines.append(f"| {size} | {rows} | {best['stacked']:.1f} | {best['wide']:.1f} | {best['loop']:.1f} | {chosen} |")
    return lines


def one_of_eight(kind: str, own: int = 1, shape: Shape = LARGE) -> tuple[Ratio, float]:
    """Time of one requested task over the time of all eight, batch 1024, as a fitted network is kept; and the share of the
    weights that the one task's path reads, which no request can go below where arithmetic is all."""
    from pluribus.modeling import Features
    from pluribus.sharing import HoME, MMoE
    from pluribus.tasks import Task

    torch.manual_seed(0)
    tasks = [Task(name, "binary") for name in "abcdefgh"]
    categories = {"one": list("abcd"), "two": list("efgh")}
    width, (expert,), _ = shape
    sharing: Any = (
        MMoE(tasks, width, experts=8, expert=expert, tower=TOWER, top_k=1)
        if kind == "MMoE top-1"
        else HoME(tasks, width, categories=categories, own=own, expert=expert, tower=TOWER)
    )
    ready(sharing)
    features = Features(torch.randn(1024, width))

    def ask(names: str) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for _ in range(5):
                    sharing(features, dict.fromkeys(names))

        return run

    what = f"{kind}, {own} own expert{'s' if own > 1 else ''} a task" if kind == "HoME" else kind
    name = f"{what}, {named(shape)}: one task of eight over all eight, batch 1024"
    return ratio(name, ask("c"), ask("abcdefgh"), target="≤ 0.4", pairs=9), path_share(sharing, "c")


def path_share(sharing: Any, task: str) -> float:
    """Weights of the layers that outputs of one task depend on, over the weights of all."""
    own, parts = sharing.slices(task), sharing.reads(task)
    sizes = {name: (p[own[name]] if name in own else p).numel() for name, p in sharing.named_parameters() if p.ndim > 2}
    every = sum(p.numel() for p in sharing.parameters() if p.ndim > 2)
    return float(sum(size for name, size in sizes.items() if name.split(".")[0] in parts) / every)


def run(full: bool) -> None:
    torch.set_num_threads(1)
    pairs = 7
    found: list[Ratio] = []
    for kind in ("MMoE", "PLE"):
        found += [inference(kind, experts, shape) for shape in (SMALL, LARGE, DEEP) for experts in (8, 32)]
        for batch, target in ((256, {8: "≥ 1.05", 32: "≥ 1.15"}), (4096, {8: "≥ 0.95", 32: "≥ 0.95"})):
            found += [training(kind, n, batch, target[n], pairs, shape) for shape in (LARGE, DEEP) for n in (8, 32)]
        found += [one for batch in (1, 256, 4096) if (one := rechub(kind, batch, pairs)) is not None]
    requests = [
        one_of_eight("MMoE top-1", shape=SMALL),
        one_of_eight("MMoE top-1"),
        one_of_eight("HoME", shape=SMALL),
        one_of_eight("HoME", own=2, shape=SMALL),
        one_of_eight("HoME"),
        one_of_eight("HoME", own=2),
    ]
    asked, path = [r for r, _ in requests], [f"{share:.2f}" for r, share in requests if r.name.startswith("HoME")]
    missed = [r.name for r in found if r.value < float(r.target.split()[1])]
    missed += [r.name for r in asked if r.value > 0.4]
    lines = [
        "# Stacked banks against lists of modules",
        "",
        f"CPU time of the list over CPU time of the bank, medians of {pairs} (inference: 15) interleaved pairs; the weights are",
        "the same on both sides and so are the outputs (against torch-rechub: the same sizes). The gain is in the calls: large",
        "with few rows, small where arithmetic rules. With one row, ours are packed (`pluribus.modeling.experts.Packed`), as a",
        "fitted network is: what reads the same rows is one product, at the cost of reading the weights once.",
        "",
        table(found).replace("| ours, ms | other, ms |", "| list, ms | bank, ms |"),
        "",
        f"For one row, the product alone of MMoE with 8 experts takes {product(8, SMALL):.2f} ms (×50) at {named(SMALL)} and",
        f"{product(8, LARGE):.2f} ms at {named(LARGE)}, whose weights outgrow a core's cache: there the gain from fewer calls is",
        "smaller.",
        "",
        "What a request for one task costs, as a share of the cost of all eight:",
        "",
        table(asked).replace("| ours, ms | other, ms |", "| one, ms | eight, ms |"),
        "",
        f"{named(SMALL)} are the candidates' defaults. In HoME every request runs level 1 whole, because the shared meta",
        "representation mixes the meta experts of all categories, and level 1 alone reads the wide input. Of all weights, the",
        f"path of one task reads {', '.join(path)} in HoME's four shapes: where that is above 0.4, so is the time. Narrower",
        "inputs or more experts of a task's own bring it down.",
        "",
        f"Missed on this run: {'; '.join(missed) if missed else 'none'}.",
        "",
        "## Plans of one stacked layer",
        "",
        "Forward and backward through a layer 320 → 128 whose slices all read the same rows, with ReLU and the mixture of four",
        "gates behind it. The rule (`pluribus.modeling.experts.plan`) takes `wide` from 4 slices and 4096 slice-rows on.",
        "",
        *plans(),
        "",
        f"{machine()}; {datetime.date.today().isoformat()}; {'full' if full else 'default'} set of cells.",
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "sharing_speed.md").write_text("\n".join(lines), "utf-8")
