"""The trainer against a bare hand-written loop of the same model, on the flights, batch 1024. Writes docs/results/trainer.md.

Both sides: the default shared-bottom network, the same rows in the same order, fused AdamW, the same clipping, float32, one
thread, one epoch without evaluation. The bare loop indexes tensors and calls autograd, nothing else; where a task has holes it
uses the same compact labels.
"""

from __future__ import annotations

import datetime
from typing import Any

import torch

from benchmarks.ratio import RESULTS, machine, ratio, table

BATCH = 1024
ROWS = 40_000


def prepared() -> Any:
    from pluribus.data.flights import flights
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split

    source = flights(ROWS)
    return prepare(source, split(source))


def model_of(data: Any) -> Any:
    from pluribus.tabular.network import build
    from pluribus.tabular.settings import DEFAULTS, encoder_settings

    torch.manual_seed(0)
    config = {
        "encoder": {"name": "tabular_mlp", "settings": encoder_settings(DEFAULTS, data)},
        "sharing": {"name": "shared_bottom", "settings": {"tower": 64}},
    }
    return build(data.tasks, data.columns, config)


def bare(data: Any) -> Any:
    """One epoch, written by hand."""
    model = model_of(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    numeric, categorical = torch.from_numpy(data.numeric), torch.from_numpy(data.categorical)
    rows = torch.from_numpy(data.parts["train"])
    labels = {}
    for task in data.tasks:
        cells = data.cells[task.name]
        values = torch.full((data.n_rows,), float("nan"))
        values[torch.from_numpy(cells.rows)] = torch.from_numpy(cells.values).float()
        labels[task.name] = values
    heads = model.heads
    heads.start(data.batch(rows).labels)
    generator = torch.Generator().manual_seed(0)
    parameters = list(model.parameters())

    def epoch() -> None:
        model.train()
        order = rows[torch.randperm(len(rows), generator=generator)]
        for start in range(0, len(order), BATCH):
            picked = order[start : start + BATCH]
            outputs = model({"numeric": numeric[picked], "categorical": categorical[picked]})
            total = torch.zeros(())
            for i, task in enumerate(data.tasks):
                values = labels[task.name][picked]
                known = ~values.isnan()
                target = (values[known] - heads.mean[i]) / heads.scale[i] if task.record.standardise else values[known]
                total = total + task.record.loss(outputs[task.name][known], target).mean()
            total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def ours(data: Any) -> Any:
    """One epoch of the trainer, without its evaluation."""
    from pluribus.training import Stage, Trainer

    model = model_of(data)
    stage = Stage(epochs=1, batch_size=BATCH, lr=1e-3, patience=None)
    trainer = Trainer(model, [stage])
    model.heads.start(data.batch(torch.from_numpy(data.parts["train"])).labels)
    return epoch_of(trainer, data)


def epoch_of(trainer: Any, data: Any) -> Any:
    """One epoch of a trainer's first stage, as often as it is called."""
    from pluribus.balancing import Diagnostics
    from pluribus.training import History
    from pluribus.training.state import StageState

    stage, beside = trainer.stages[0], {"history": History(), "diagnostics": Diagnostics()}
    state = StageState.begin(0, stage, trainer.model, seed=0, **beside)
    return lambda: trainer._epoch(state, data)


def run(full: bool) -> None:
    torch.set_num_threads(1)
    data = prepared()
    found = ratio(
        f"one epoch of {len(data.parts['train'])} rows, 4 tasks with holes", ours(data), bare(data), target="≤ 1.10", pairs=9
    )
    page = [
        "# The trainer against a bare loop",
        "",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "",
        f"CPU seconds, medians of 9 interleaved pairs; {machine()}; {datetime.date.today()}; `make bench ONLY=trainer`.",
        "",
        table([found]),
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "trainer.md").write_text("\n".join(page), "utf-8")
