"""MultiTab-Net against one nn.TransformerEncoder of its size, TabM against its plain MLP, RealMLP against a loop by hand. Writes
docs/results/tables_speed.md.

A training step is forward, the sum of the tasks' losses, backward and torch's fused AdamW, in float32, on one thread, without
dropout on both sides. Both sides read the same rows through modules of the same shape:

- MultiTab-Net (column layers only, mask T↛T) and the same network with `nn.TransformerEncoder` (pre-norm, GELU, the same mask) in
  place of its column layers: same tokens, towers and heads;
- TabM with 32 members and the same perceptron once: same embeddings, layers and heads, trained by the same loss.

RealMLP is measured by the epoch, as the trainer runs it, against a loop in plain torch for a table of numbers without holes: same
network, batches, rates, dropout, Adam (torch's fused one), validation error and best weights every epoch; and T networks side by
side (`realmlp_single`) against T trainings one after another (`realmlp` on one task).

What a user waits for is more than that: the candidates `tabm` and `shared_bottom_equal` (the MLP) at their defaults on adult, by
the trainer, with its batches, losses of two tasks, dropout, clipping and optimizer, are measured too.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.ratio import RESULTS, Ratio, machine, ratio, table


def encoder_of(tokens: int, columns: int, depth: int, width: int, heads: int, hidden: int) -> Any:
    from pluribus.tabular import MultiTabEncoder

    torch.manual_seed(0)
    edges = [np.linspace(-3, 3, 9)] * columns
    return MultiTabEncoder(edges, [], width=width, depth=depth, heads=heads, hidden=hidden, tokens=tokens, tower=0)


def tasks_of(count: int) -> Any:
    from pluribus.tasks import Task

    return [Task(f"y{t}") for t in range(count)]


def same_size(net: Any, depth: int, width: int, heads: int, hidden: int) -> nn.Module:
    """The network with torch's encoder in place of its column layers; it starts from the same weights."""
    layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True)
    stack = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    own = net.encoder
    with torch.no_grad():
        for block, theirs in zip(own.columns, stack.layers):
            for name, part in (
                ("self_attn.in_proj_", block.attention.qkv),
                ("self_attn.out_proj.", block.attention.out),
                ("linear1.", block.feed_forward.first),
                ("linear2.", block.feed_forward.second),
            ):
                theirs.get_parameter(f"{name}weight").copy_(part.weight[0].T)
                theirs.get_parameter(f"{name}bias").copy_(part.bias[0])
    forbidden = None if own.may is None else ~own.may

    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.special, self.stack, self.count = own.tokens, own.special, stack, own.count
            self.sharing, self.heads = net.sharing, net.heads

        def forward(self, inputs: dict[str, Tensor]) -> Any:
            from pluribus.modeling import Features

            t = self.tokens(inputs["numeric"][None], inputs["categorical"][None])[0]
            t = torch.cat((self.special.expand(len(t), -1, -1), t), 1)
            rows = dict.fromkeys(net.tasks)
            shared = self.sharing(Features(self.stack(t, mask=forbidden)[:, : self.count]), rows)
            return self.heads(shared.tasks, rows)

    return Theirs()


def stepper(net: Any, heads: Any, inputs: dict[str, Tensor], labels: dict[str, Any]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        outputs = net(inputs)
        total = torch.stack([heads.loss(name, outputs[name], one).mean() for name, one in labels.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    return step


def rows_of(batch: int, columns: int, tasks: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from pluribus.data import Labels

    torch.manual_seed(1)
    inputs = {"numeric": torch.randn(batch, columns), "categorical": torch.zeros(batch, 0, dtype=torch.int32)}
    return inputs, {f"y{t}": Labels(torch.randn(batch), torch.arange(batch)) for t in range(tasks)}


def multitab(batch: int, depth: int, width: int) -> Ratio:
    import copy

    from pluribus.tabular import MultiTabNet

    tasks, columns, heads, hidden = 8, 32, 4, 256
    ours = MultiTabNet(tasks_of(tasks), encoder_of(tasks, columns, depth, width, heads, hidden))
    theirs = same_size(copy.deepcopy(ours), depth, width, heads, hidden)
    inputs, labels = rows_of(batch, columns, tasks)
    a, b = ours(inputs), theirs(inputs)
    for name in labels:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
    name = f"MultiTab-Net, {depth} layer{'s' * (depth > 1)} of width {width}, {tasks} tasks, {columns} columns, batch {batch}"
    return ratio(
        name,
        stepper(ours, ours.heads, inputs, labels),
        stepper(theirs, ours.heads, inputs, labels),
        target="time ≤ 1.11 (speed ≥ 0.9)",
    )


def tabm(batch: int, width: int, depth: int, columns: int = 14, tasks: int = 2) -> Ratio:
    from pluribus.tabular import TabM, TabMEncoder

    edges = [np.linspace(-3, 3, 9)] * columns
    sides = []
    inputs, labels = rows_of(batch, columns, tasks)
    for members in (32, 1):
        torch.manual_seed(0)
        settings: dict[str, Any] = {"width": width, "depth": depth, "embedding": "piecewise_linear", "dropout": 0.0}
        net = TabM(tasks_of(tasks), TabMEncoder(edges, [], members=members, **settings))
        if members == 1:
            net = plain(net)
        sides.append(stepper(net, net.heads, inputs, labels))
    name = f"TabM, 32 members, {depth} layers of width {width}, batch {batch}"
    return ratio(name, *sides, target="≤ 4")


def plain(net: Any) -> Any:
    """The perceptron without adapters: nn.Linear layers on the same embeddings, one plain head a task."""
    from pluribus.modeling import Features, Heads

    layers = [nn.Linear(layer.weight.shape[1], layer.weight.shape[2]) for layer in net.encoder.layers]
    numeric, rows = net.encoder.numeric, dict.fromkeys(net.tasks)

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.numeric, self.layers = numeric, nn.ModuleList(layers)
            self.heads = Heads(list(net.tasks.values()), net.encoder.width)

        def forward(self, inputs: dict[str, Tensor]) -> Any:
            h = self.numeric(inputs["numeric"][None])[0]
            for layer in self.layers:
                h = torch.relu(layer(h))
            return self.heads(dict.fromkeys(rows, Features(h)), rows)

    return MLP()


def looped(batch: int, width: int, depth: int, columns: int = 14) -> Ratio:
    """The members side by side against one after another: what the stacked axis buys."""
    from pluribus.tabular import TabM, TabMEncoder

    edges = [np.linspace(-3, 3, 9)] * columns
    inputs, labels = rows_of(batch, columns, 2)
    made = []
    for members in (32, *[1] * 32):
        torch.manual_seed(0)
        settings: dict[str, Any] = {"width": width, "depth": depth, "embedding": "piecewise_linear", "dropout": 0.0}
        net = TabM(tasks_of(2), TabMEncoder(edges, [], members=members, **settings))
        made.append(stepper(net, net.heads, inputs, labels))

    def one_by_one() -> None:
        for step in made[1:]:
            step()

    return ratio(f"TabM, 32 members stacked / one by one, width {width}, batch {batch}", made[0], one_by_one, target="—")


def trained(name: str, data: Any, epochs: int) -> tuple[Callable[[], None], int, int]:
    """So many epochs of a candidate at its defaults, as the trainer runs them; its width and rows a step."""
    from pluribus import catalog
    from pluribus.tabular.network import build
    from pluribus.tabular.settings import batch_of, width_of
    from pluribus.training import Stage, Trainer

    candidate: Any = catalog.get("candidate", name).resolve()()
    settings, batch = candidate.settings, batch_of(candidate.settings, len(data.parts["train"]))

    def run() -> None:
        torch.manual_seed(0)
        stage = Stage(
            balancer=candidate.balancer(data),
            objective=candidate.objective(data),
            epochs=epochs,
            batch_size=batch,
            lr=settings["lr"],
            weight_decay=settings["weight_decay"],
            patience=epochs,
            listen=True,
        )
        Trainer(build(data.tasks, data.columns, candidate.config(data)), [stage], seed=0).fit(data)

    return run, width_of(data), batch


class ByHand(nn.Module):
    """RealMLP for numbers without holes, written down once: no tasks, no kinds, no categories."""

    def __init__(self, columns: int, targets: int, width: int = 256) -> None:
        super().__init__()

        def several(*shapes: tuple[int, ...]) -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(torch.randn(*shape)) for shape in shapes)

        self.periodic = several((columns, 16), (columns, 16), (columns, 16, 3), (columns, 1, 3))
        self.scale = nn.Parameter(torch.ones(4 * columns))
        self.weights = several((4 * columns, width), (width, width), (width, width), (width, targets))
        self.biases = several((width,), (width,), (width,), (targets,))
        self.alphas = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        w, b, v, c = self.periodic
        u = torch.cos(2 * torch.pi * x[:, :, None] * w + b)
        e = torch.baddbmm(c, u.transpose(0, 1), v).transpose(0, 1)
        h = torch.cat((e, x[:, :, None]), -1).flatten(1) * self.scale
        for weight, bias, alpha in zip(self.weights, self.biases, self.alphas):
            z = torch.addmm(bias, h, weight, alpha=len(weight) ** -0.5)
            h = torch.dropout(torch.lerp(z, nn.functional.mish(z), alpha), 0.15, self.training)
        return torch.addmm(self.biases[-1], h, self.weights[-1], alpha=len(self.weights[-1]) ** -0.5)


def by_hand(data: Any, epochs: int, batch: int) -> Callable[[], None]:
    """So many epochs of RealMLP on regression tasks with a label in every cell."""

    def part(name: str) -> tuple[Tensor, Tensor]:
        y = [torch.from_numpy(data.labelled(task.name, name).values).float() for task in data.tasks]
        return torch.from_numpy(data.numeric[data.parts[name]]), torch.stack(y, 1)

    (x, y), (x_valid, y_valid) = part("train"), part("valid")
    mean, deviation = y.mean(0), y.std(0)

    def run() -> None:
        torch.manual_seed(0)
        net = ByHand(x.shape[1], y.shape[1])
        groups = [
            {"params": [net.scale], "lr": 1.2},
            {"params": [*net.periodic, *net.alphas, *net.biases], "lr": 0.02},
            {"params": [*net.weights], "lr": 0.2},
        ]
        optimizer, best, kept = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.02, fused=True), float("inf"), {}
        steps, step = epochs * (len(x) // batch), 0
        for _ in range(epochs):
            net.train()
            order = torch.randperm(len(x))
            for start in range(0, len(x) // batch * batch, batch):
                rows = order[start : start + batch]
                for group, rate in zip(optimizer.param_groups, (1.2, 0.02, 0.2)):
                    group["lr"] = rate * 0.5 * (1 - np.cos(2 * np.pi * np.log2(1 + 15 * step / steps)))
                error = (net(x[rows]) - (y[rows] - mean) / deviation).square().mean(0).sum()
                optimizer.zero_grad(set_to_none=True)
                error.backward()
                optimizer.step()
                step += 1
            net.eval()
            with torch.no_grad():
                found = float((net(x_valid) * deviation + mean - y_valid).square().mean(0).sqrt().sum())
            if found <= best:
                best, kept = found, {name: value.clone() for name, value in net.state_dict().items()}
        net.load_state_dict(kept)

    return run


def numbers(rows: int, columns: int, tasks: int) -> Any:
    """A table of numbers with regression tasks, no holes."""
    from pluribus.data import Table, prepare, split
    from pluribus.tabular import multitab_bench

    frame = multitab_bench(rows, tasks=tasks, features=columns, correlation=0.5, seed=3)
    made = Table(frame, [f"y{t}:regression" for t in range(tasks)], split="random")
    return prepare(made, split(made, 0))


def realmlp(rows: int, columns: int, tasks: int, epochs: int) -> Ratio:
    from pluribus.modeling import Budget
    from pluribus.tabular.realmlp_candidates import RealMLPNetwork, rows_of_a_step

    data = numbers(rows, columns, tasks)
    batch = rows_of_a_step(len(data.parts["train"]))
    ours = RealMLPNetwork(recipe="td", epochs=epochs)
    name = f"{len(data.parts['train']):,} training rows, {columns} columns, {tasks} tasks, batch {batch}, {epochs} epochs"
    theirs = by_hand(data, epochs, batch)
    return ratio(name, lambda: ours.fit(data, Budget(1e6), 0), theirs, target="≤ 1.1", pairs=5)


def twins(rows: int, columns: int, tasks: int, epochs: int) -> Ratio:
    from pluribus.modeling import Budget
    from pluribus.tabular.realmlp_candidates import RealMLPNetwork, RealMLPSingle

    data = numbers(rows, columns, tasks)
    side_by_side, alone = RealMLPSingle(recipe="td", epochs=epochs), RealMLPNetwork(recipe="td", epochs=epochs)

    def loop() -> None:
        for task in data.tasks:
            alone.fit(data.only([task.name]), Budget(1e6), 0)

    name = f"{tasks} networks, {len(data.parts['train']):,} training rows, {epochs} epochs"
    return ratio(name, lambda: side_by_side.fit(data, Budget(1e6), 0), loop, target="≤ .33 (3 × faster)", pairs=3)


def candidates(rows: int) -> Ratio:
    from benchmarks.tables import adult
    from pluribus.data import Table, prepare, split

    frame, targets = adult(rows)
    table_ = Table(frame, targets, split="random")
    data = prepare(table_, split(table_, 0))
    data = data.with_parts(train=data.parts["train"], valid=data.parts["valid"][:64])  # steps are measured, not validation
    epochs = 4 if rows < 10_000 else 1
    (ours, width, batch), (theirs, _, _) = trained("tabm", data, epochs), trained("shared_bottom_equal", data, epochs)
    name = f"adult, {rows:,} rows: width {width}, batch {batch}, {epochs} epoch{'s' * (epochs > 1)}"
    return ratio(name, ours, theirs, target="≤ 4", pairs=5)


def run(full: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        multi = [multitab(2048, 1, 16), multitab(2048, 2, 16), multitab(256, 1, 16), multitab(512, 3, 32)]
        users = [candidates(rows) for rows in (1_600, 8_000, 16_000, 40_000)]
        members = [tabm(b, w, d) for b, w, d in ((16, 32, 2), (64, 64, 2), (128, 64, 2), (256, 128, 2), (256, 256, 3))]
        members += [tabm(256, 512, 3)] if full else []
        epochs = [realmlp(770, 8, 2, 40), realmlp(8000, 20, 4, 6), realmlp(30_000, 20, 4, 2)]
        banks = [twins(770, 8, 4, 20), twins(1000, 16, 14, 10), twins(4000, 16, 8, 4)]
        loops = [looped(64, 64, 2), looped(256, 128, 2)]
    finally:
        torch.set_num_threads(before)
    write(multi, users, members, loops, epochs, banks)


def write(
    multi: list[Ratio], users: list[Ratio], members: list[Ratio], loops: list[Ratio], epochs: list[Ratio], banks: list[Ratio]
) -> None:
    met = [r.name.split(", ", 2)[2] for r in members if r.value <= 4]
    missed = [r.name.split(", ", 2)[2] for r in members if r.value > 4]
    text = [
        "# Speed of the encoders of tables",
        "",
        "Written by `make bench ONLY=tabular_speed`. CPU seconds of one training step, medians of 7 interleaved pairs, one",
        "thread, float32; forward, backward and fused AdamW on both sides. A ratio below 1 is faster than the other side.",
        "",
        "## MultiTab-Net against `nn.TransformerEncoder`",
        "",
        "The other side is the same network with `nn.TransformerEncoder` (pre-norm, GELU, same mask, same start) in place of the",
        "column layers; outputs are compared first. What is saved: the last layer answers for the task tokens alone, which are",
        "all that the heads read; with 8 tasks and 32 columns that is a fifth of the queries and of the feed-forward.",
        "",
        table(multi),
        "",
        "## TabM against its plain MLP",
        "",
        "What a user waits for: the candidate `tabm` (32 members) against the MLP candidate `shared_bottom_equal`, both at their",
        "defaults, by the trainer: batches, the losses of two tasks, dropout, clipping, optimiser.",
        "",
        table(users),
        "",
        "The bare networks, without dropout, on random numbers. 32 members do 32 times the arithmetic of the plain perceptron,",
        "and no part of it can be shared exactly: each member scales the inputs of a product before it is summed. So 32 is what",
        "the ratio goes to on one CPU thread as layers and batches grow, and 4 can only be met where the plain step is mostly",
        "fixed cost (calls, optimiser). "
        + (f"It is met for: {'; '.join(met)}. " if met else "It is met at none of these sizes. ")
        + (f"Not met for: {'; '.join(missed)}. " if missed else "")
        + "No accelerator, whose idle units the members could fill, was at hand for this page.",
        "",
        table(members),
        "",
        "The same 32 members one after another, 32 steps of one member each, for comparison:",
        "",
        table(loops),
        "",
        "## RealMLP",
        "",
        "Fits of the candidate `realmlp` against the same training by hand, evaluation and best weights included:",
        "",
        table(epochs),
        "",
        "One network per task, side by side (`realmlp_single`), against one training after another (`realmlp` on each task):",
        "",
        table(banks),
        "",
        f"{machine()}; {datetime.date.today().isoformat()}.",
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "tables_speed.md").write_text("\n".join(text), "utf-8")
