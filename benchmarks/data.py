"""Batches against a DataLoader, and reading with encoding against `pandas.read_csv` alone: docs/results/data.md."""

from __future__ import annotations

import datetime
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.ratio import RESULTS, machine, ratio, table
from pluribus.data import Cells, FittedColumns, Prepared, Table, prepare, split
from pluribus.data.flights import data_file, flights
from pluribus.data.ingest import read_table
from pluribus.tasks import Task

BATCH = 1024
AFTERWARDS = ("dep_time", "arr_time", "arr_delay")


def _flights_csv(folder: Path) -> Path:
    with zipfile.ZipFile(data_file("flights.csv.zip")) as archive:
        return Path(archive.extract("flights.csv", folder))


def _read_and_encode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a study does with the file before training: read, check, find kinds and holes, fit the columns, encode."""
    found = Table(read_table(path), ["dep_delay:regression", "air_time:regression"], ignore=AFTERWARDS, split="time:time_hour")
    return FittedColumns.fit(found).encode_table(found)


def _dataset(data: Prepared) -> TensorDataset:
    """The same table as a hand-written pipeline holds it: targets with NaN for holes."""
    targets = torch.full((data.n_rows, len(data.tasks)), torch.nan)
    for position, task in enumerate(data.tasks):
        cells = data.cells[task.name]
        targets[torch.from_numpy(cells.rows), position] = torch.from_numpy(cells.values.astype(np.float32))
    rows = torch.from_numpy(data.parts["train"])
    parts = (torch.from_numpy(data.numeric), torch.from_numpy(data.categorical), targets)
    return TensorDataset(*(part[rows] for part in parts))


def _many(tasks: int, rows_each: int) -> Prepared:
    """A block-diagonal table: each row labelled for one of many tasks."""
    rng = np.random.default_rng(0)
    n = tasks * rows_each
    order = rng.permutation(n)
    cells = {
        f"t{t}": Cells(np.sort(order[t * rows_each : (t + 1) * rows_each]), rng.normal(size=rows_each)) for t in range(tasks)
    }
    frame = pd.DataFrame({f"x{i}": rng.normal(size=n) for i in range(20)} | {"y": rng.normal(size=n)})
    columns = FittedColumns.fit(Table(frame, ["y:regression"], split="random"))
    numeric, categorical = columns.encode(frame)
    tasks_ = tuple(Task(name) for name in cells)
    return Prepared(tasks_, columns, numeric, categorical, cells, {"train": np.arange(n)}, np.arange(n))


def run(full: bool) -> None:
    torch.set_num_threads(1)
    pairs = 15 if full else 7
    found = flights(None if full else 60_000)
    data = prepare(found, split(found))
    dataset = _dataset(data)
    n = len(dataset)
    generator = torch.Generator().manual_seed(0)

    def ours(prepared: Prepared = data) -> int:
        return sum(batch.n_rows for batch in prepared.batches("train", BATCH, generator=generator))

    def loader(source: TensorDataset = dataset) -> int:
        return sum(len(x) for x, _, _ in DataLoader(source, BATCH, shuffle=True, generator=generator))

    def batch_loader() -> int:
        sampler = BatchSampler(RandomSampler(dataset, generator=generator), BATCH, drop_last=False)
        return sum(len(x) for x, _, _ in DataLoader(dataset, sampler=sampler, batch_size=None))

    assert ours() == loader() == batch_loader() == n
    rows = [
        ratio(
            "batches of 1024, 4 tasks with holes, against DataLoader(TensorDataset)", ours, loader, target="≤ 0.10", pairs=pairs
        ),
        ratio("the same against a DataLoader that fetches whole batches", ours, batch_loader, target="none", pairs=pairs),
    ]
    speeds = [f"{n / rows[0].ours:,.0f} rows/s against {n / rows[0].theirs:,.0f}"]
    many = _many(139, 110)
    wide = _dataset(many)
    rows.append(
        ratio(
            "batches of 1024, 139 tasks, one label a row, against DataLoader(TensorDataset)",
            lambda: ours(many),
            lambda: loader(wide),
            target="none",
            pairs=pairs,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        path = _flights_csv(Path(folder))
        for name, clock in (("CPU", time.process_time), ("wall clock", time.perf_counter)):
            rows.append(
                ratio(
                    f"read, check, fit and encode 336,776 flights, against pandas.read_csv alone ({name})",
                    lambda: _read_and_encode(path),
                    lambda: pd.read_csv(path),
                    target="≤ 3",
                    pairs=pairs,
                    clock=clock,
                )
            )
    today = datetime.date.today().isoformat()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "data.md").write_text(
        f"""# Reading, encoding and batching

`make bench ONLY=data`{" (FULL=1)" if full else ""}, {today}, on {machine()}, pandas {pd.__version__}, one thread in torch.
Medians of {pairs} interleaved pairs after a warm-up; seconds of the process's CPU unless the line says wall clock. Below 1 we are
faster.

{table(rows)}

First line: {speeds[0]} ({n:,} training rows of the flights, {data.numeric.shape[1]} numeric and {data.categorical.shape[1]}
categorical features).

What is compared:

- *Batches*: an epoch in random order. Ours gives inputs and, for each task, its labelled cells; the DataLoader's gives inputs
  and a target matrix with NaN in the holes, which the training loop would still have to mask. No worker processes on either side.
- *A DataLoader that fetches whole batches* (a `BatchSampler` as the sampler, `batch_size=None`) is what a careful user writes; it
  spares the row-by-row collating that costs the plain one its time.
- *Reading*: ours ends with float32 and int32 arrays, having found holes and kinds, checked infinities and free text, and fitted
  the columns (means, quantiles, categories); `pandas.read_csv` ends with the raw frame. Both run with their
  defaults: pyarrow reads with several threads, which the wall clock shows and the CPU clock does not forgive.
""",
        "utf-8",
    )
