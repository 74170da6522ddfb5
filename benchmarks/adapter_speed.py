"""Many adapters in one batch against the bare model and against PEFT. Writes docs/results/adapter_speed.md.

A BERT of 4 layers (width 256, FFN 1024, 4 heads), 32 rows of 32 tokens, LoRA of rank 8 on all six linear maps of every layer, the
same weights on all sides (outputs are compared first), float32, one thread. PEFT forward: its mixed batch (`adapter_names`). PEFT
training: a loop over the tasks (`set_adapter`), since it refuses mixed batches there; gradients are added up and one step of
torch's fused AdamW is taken, as on our side.
"""

from __future__ import annotations

import datetime
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ratio import RESULTS, Ratio, machine, ratio, table

ROWS, TOKENS, WIDTH, RANK = 32, 32, 256, 8
PARTS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def backbone() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def both(tasks: int) -> tuple[Any, Any, Any, list[str]]:
    """(our model with its adapters attached, the adapters, PEFT's model, the rows' tasks): equal outputs."""
    import peft

    from pluribus.adapters import LoRA, route

    names = [f"t{i}" for i in range(tasks)]
    rows = [names[i % tasks] for i in range(ROWS)]
    random.Random(0).shuffle(rows)  # a batch comes in no order
    model = backbone()
    lora = LoRA(model, names, where="all", rank=RANK, alpha=RANK)
    with torch.no_grad():
        for p in lora.parameters():
            p.normal_(0, 0.02)
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PARTS)
    theirs = peft.get_peft_model(backbone(), config, adapter_name=names[0])
    for name in names[1:]:
        theirs.add_adapter(name, config)
    modules = dict(theirs.base_model.model.named_modules())
    with torch.no_grad():
        for path in lora.places:
            for i, name in enumerate(names):
                modules[path].lora_A[name].weight.copy_(lora.site(path).A[i])
                modules[path].lora_B[name].weight.copy_(lora.site(path).B[i])
        theirs.eval()
        ids = inputs()
        with route(rows):
            mine = model(ids).last_hidden_state
        torch.testing.assert_close(mine, theirs(ids, adapter_names=rows).last_hidden_state, rtol=1e-3, atol=1e-4)
    return model, lora, theirs, rows


def inputs() -> Tensor:
    return torch.randint(0, 1000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))


def forward(tasks: int, pairs: int) -> list[Ratio]:
    from pluribus.adapters import route

    model, _, theirs, rows = both(tasks)
    bare, ids = backbone(), inputs()

    def inference(run: Callable[[], Any]) -> Callable[[], None]:
        def many() -> None:
            with torch.inference_mode():
                for _ in range(3):
                    run()

        return many

    def ours() -> Any:
        with route(rows):
            return model(ids)

    mine = inference(ours)
    other = inference(lambda: theirs(ids, adapter_names=rows))
    return [
        ratio(
            f"forward, {tasks} adapters, over the bare model",
            mine,
            inference(lambda: bare(ids)),
            pairs=pairs,
            target="≤ 1.15" if tasks == 32 else "–",
        ),
        ratio(
            f"forward, PEFT's mixed batch over ours, {tasks} adapters",
            other,
            mine,
            pairs=pairs,
            target="≥ 1.6" if tasks == 32 else "≥ 1.1",
        ),
    ]


def training(tasks: int, pairs: int) -> Ratio:
    from pluribus.adapters import route

    model, lora, theirs, rows = both(tasks)
    ids = inputs()
    names = list(dict.fromkeys(rows))
    groups = [(name, torch.tensor([i for i, row in enumerate(rows) if row == name])) for name in names]
    model.train()
    theirs.train()
    mine = torch.optim.AdamW(lora.parameters(), lr=1e-4, fused=True)
    weights = [p for n, p in theirs.named_parameters() if "lora_" in n]
    for p in weights:
        p.requires_grad_(True)
    their = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def ours() -> None:
        with route(rows):
            loss = model(ids).last_hidden_state.square().mean((1, 2)).sum()
        mine.zero_grad(set_to_none=True)
        loss.backward()
        mine.step()

    def loop() -> None:
        their.zero_grad(set_to_none=True)
        for name, places in groups:
            theirs.set_adapter(name)
            theirs(ids[places]).last_hidden_state.square().mean((1, 2)).sum().backward()
        for p in weights:
            p.requires_grad_(True)
        their.step()

    return ratio(
        f"training step, PEFT's loop over ours, {tasks} adapters",
        loop,
        ours,
        pairs=pairs,
        target="≥ 3.5" if tasks == 32 else "≥ 1.1",
    )


def resident() -> int:
    """Bytes of memory this process holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def bank() -> None:
    """In a process of its own: what 1,000 adapters take, and how long adding and switching last as the bank fills."""
    from pluribus.adapters import LoRA, Pool, route

    torch.set_num_threads(1)
    model = backbone()
    lora = LoRA(model, ["t0"], where="all", rank=RANK)
    each = sum(t[0].nbytes for t in lora.stacked().values())
    state = lora.task_state("t0")
    with torch.inference_mode(), route("t0"):
        model(inputs())  # what a forward needs is not the bank's
    start = resident() - each
    pool = Pool(lora, budget=1000 * each)
    pool.put("warm", state)

    def switch(name: str) -> float:
        start = time.process_time()
        for _ in range(200):
            with pool.route(name):
                pass
        return (time.process_time() - start) / 200

    seconds = []
    for i in range(998):
        begin = time.process_time()
        pool.put(f"n{i}", state)
        seconds.append(time.process_time() - begin)
    taken = resident() - start
    few, many = sorted(seconds[:100])[50], sorted(seconds[-100:])[50]
    print(each, taken, few, many, switch("warm"), switch("n900"))


def page(found: list[Ratio], held: list[str], full: bool) -> None:
    each, taken, few, many, first, late = (float(x) for x in held)
    lines = [
        "# Many adapters in one batch, against the bare model and PEFT",
        "",
        "A BERT of 4 layers (width 256), 32 rows of 32 tokens, LoRA of rank 8 on all six linear maps of every layer; the same",
        "weights on all sides, outputs compared first. CPU time on one thread, medians of interleaved pairs. PEFT trains its",
        "adapters one after another (it refuses mixed batches in training); both sides take one step of the same optimiser.",
        "",
        table(found).replace("| ours, ms | other, ms |", "| first named, ms | second, ms |"),
        "",
        "## A bank of 1,000 adapters",
        "",
        "| what | measured | target |",
        "|---|---|---|",
        f"| parameters of 1,000 rank-8 adapters | {1000 * each / 2**20:.1f} MiB | |",
        f"| memory that filling it took | {taken / 2**20:.1f} MiB, {taken / (1000 * each):.3f} of the parameters | ≤ 1.10 |",
        f"| adding one, while the bank is nearly empty / nearly full | {1e3 * few:.2f} / {1e3 * many:.2f} ms | constant |",
        f"| switching to one, an early / a late one | {1e6 * first:.0f} / {1e6 * late:.0f} µs | constant |",
        "",
        f"{machine()}; {datetime.date.today().isoformat()}; {'full' if full else 'default'} set of cells. Load of the machine at",
        f"the end: {Path('/proc/loadavg').read_text().split()[0]} (two cores).",
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "adapter_speed.md").write_text("\n".join(lines), "utf-8")


def run(full: bool) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    pairs = 15 if full else 9
    found: list[Ratio] = []
    for tasks in (4, 8, 16, 32) if full else (4, 32):
        found += forward(tasks, pairs)
        found.append(training(tasks, pairs))
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.adapter_speed import bank; bank()"], capture_output=True, text=True, check=True
    )
    print(done.stdout)
    page(found, done.stdout.split()[-6:], full)
