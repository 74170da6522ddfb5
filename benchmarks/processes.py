"""One training by two processes with one thread each, beside one process with one thread. Writes docs/results/processes.md.

The same training both times: a shared-bottom network on the flights, the same batches (each process takes half of every one), the
same number of steps, no evaluation inside the timed part. Wall-clock seconds of the slower process are what one waits for; on a
busy machine they tell how many cores were free. The CPU seconds of the busier process are what one would wait for with a core for
each, but for the messages. Processes start anew for each pair.
"""

from __future__ import annotations

import datetime
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.ratio import RESULTS, machine

BATCH, WIDTH, DEPTH, STEPS, PAIRS = 2048, 512, 3, 40, 7
TARGET = 1.6


def training(rank: int, size: int, folder: str) -> None:
    """Timed steps of this process; its seconds go into a file."""
    from benchmarks.trainer import epoch_of, prepared
    from pluribus.tabular.network import build
    from pluribus.tabular.settings import DEFAULTS, encoder_settings
    from pluribus.training import Stage, Trainer

    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    data = prepared()
    torch.manual_seed(0)
    settings = encoder_settings({**DEFAULTS, "width": WIDTH, "depth": DEPTH}, data)
    sharing = {"name": "shared_bottom", "settings": {"tower": 128}}
    config = {"encoder": {"name": "tabular_mlp", "settings": settings}, "sharing": sharing}
    model = build(data.tasks, data.columns, config)
    stage = Stage(epochs=1, batch_size=BATCH, patience=None)
    trainer = Trainer(model, [stage])
    model.heads.start(data.batch(torch.from_numpy(data.parts["train"])).labels)
    epoch = epoch_of(trainer, data)
    epochs = max(1, STEPS // max(1, len(data.parts["train"]) // BATCH))
    epoch()
    if size > 1:
        dist.barrier()
    began, spent = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        epoch()
    found = [time.perf_counter() - began, time.process_time() - spent, sum(p.numel() for p in model.parameters())]
    torch.save(found, Path(folder) / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


def measured(size: int) -> list[float]:
    """[wall seconds of the slowest, CPU seconds of the busiest, of all, parameters]."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(training, (size, folder), nprocs=size)
        each: list[Any] = [torch.load(Path(folder) / f"{size}-{rank}.pt") for rank in range(size)]
    return [max(one[0] for one in each), max(one[1] for one in each), sum(one[1] for one in each), each[0][2]]


def run(full: bool) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    ones, twos = [], []
    for pair in range(PAIRS):
        for size in (1, 2) if pair % 2 else (2, 1):
            (ones if size == 1 else twos).append(measured(size))
        wall, cpu = (ones[-1][at] / twos[-1][at] for at in (0, 1))
        print(f"pair {pair + 1}: wall {wall:.2f}x, CPU {cpu:.2f}x, load {os.getloadavg()[0]:.1f}", flush=True)
    rows = []
    for name, at in (("wall clock", 0), ("CPU of the busier process", 1)):
        ratios = sorted(one[at] / two[at] for one, two in zip(ones, twos))
        low, middle, high = statistics.quantiles(ratios, n=4)
        sides = [statistics.median(each[at] for each in side) for side in (ones, twos)]
        figures = f"{sides[0]:.2f} | {sides[1]:.2f} | {middle:.2f} | {low:.2f}–{high:.2f} | {ratios[-1]:.2f}"
        rows.append(f"| {name} | {figures} | {f'≥ {TARGET}' if at == 0 else ''} |")
    cores = statistics.median(two[2] / one[2] for one, two in zip(ones, twos))
    page = [
        "# Two processes on one training",
        "",
        (__doc__ or "").split("\n\n", 1)[1].strip(),
        "",
        f"{machine()}; {datetime.date.today()}; `make bench ONLY=processes`; {int(ones[0][3]):,} parameters, batch {BATCH}; "
        f"medians of {PAIRS} interleaved pairs; load at the end {os.getloadavg()[0]:.1f}, of which two are the benchmark's. The "
        f"two processes together spend {cores:.2f} times the core-seconds of the one.",
        "",
        "| seconds by | one process | two processes | faster by | quartiles | best pair | target |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    (RESULTS / "processes.md").write_text("\n".join(page), "utf-8")
    print("\n".join(rows))
