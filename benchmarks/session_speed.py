"""Padded batches of sessions by one gather, against collating row by row: docs/results/session_speed.md."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import torch

from benchmarks.ratio import RESULTS, machine, ratio, table
from pluribus.data import Ragged
from pluribus.tabular.sequences import next_item_rows

BATCH = 1024


def _sessions(rows: int, longest: int) -> Ragged:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(4 / longest, rows), longest)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return Ragged(rng.integers(2, 10_000, starts[-1]).astype(np.int32), starts)


def _loop(events: pd.DataFrame, longest: int) -> list[tuple[str, list[int], int]]:
    """What `next_item_rows` answers, session by session."""
    found = []
    for user, own in events.sort_values("at", kind="stable").groupby("user", sort=False):
        items = own["item"].tolist()
        found += [(user, items[max(0, i - longest) : i], items[i]) for i in range(1, len(items))]
    return found


def run(full: bool) -> None:
    torch.set_num_threads(1)
    pairs = 15 if full else 7
    ratios = []
    for longest in (20, 100):
        ragged = _sessions(200_000 if full else 50_000, longest)
        lists = [torch.from_numpy(ragged.row(i)) for i in range(len(ragged))]  # as a data set of rows holds them
        order = torch.randperm(len(ragged), generator=torch.Generator().manual_seed(0))[: 20 * BATCH]

        def ours(ragged: Ragged = ragged, order: torch.Tensor = order) -> int:
            return sum(int(ragged.padded(rows)["values"].shape[0]) for rows in torch.split(order, BATCH))

        def collate(lists: list[torch.Tensor] = lists, order: torch.Tensor = order) -> int:
            """`pad_sequence` over the rows' tensors, and a mask: what a DataLoader's collate function does."""
            count = 0
            for rows in torch.split(order, BATCH):
                each = [lists[i] for i in rows.tolist()]
                values = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)
                lengths = torch.tensor([len(row) for row in each])
                mask = torch.arange(values.shape[1]) < lengths[:, None]
                count += mask.shape[0]
            return count

        def filled(lists: list[torch.Tensor] = lists, order: torch.Tensor = order) -> int:
            """Rows written one by one into an array of zeros."""
            count = 0
            for rows in torch.split(order, BATCH):
                each = [lists[i] for i in rows.tolist()]
                values = torch.zeros(len(each), max(map(len, each)), dtype=torch.int32)
                mask = torch.zeros(values.shape, dtype=torch.bool)
                for place, row in enumerate(each):
                    values[place, : len(row)] = row
                    mask[place, : len(row)] = True
                count += len(each)
            return count

        name = f"20 batches of {BATCH} sessions, up to {longest} long"
        ratios.append(ratio(f"{name}: gather against rows written one by one", ours, filled, target="≤ 0.10", pairs=pairs))
        ratios.append(ratio(f"{name}: gather against pad_sequence", ours, collate, target="≤ 0.10", pairs=pairs))
    rng = np.random.default_rng(1)
    n = 60_000 if full else 20_000
    events = pd.DataFrame({"user": rng.integers(0, n // 8, n), "item": rng.integers(0, 500, n), "at": rng.random(n)})
    ratios.append(
        ratio(
            f"{n:,} events to sessions: `next_item_rows` against a loop over sessions",
            lambda: next_item_rows(events, "user", "item", "at", longest=20),
            lambda: _loop(events, 20),
            target="none",
            pairs=pairs,
        )
    )
    lines = [
        "# Batches of sessions",
        "",
        "CPU seconds on one thread, medians over interleaved pairs. A session's items lie in one array with all others', so that",
        "a padded batch copies windows of that array, and masks of few lengths, whatever the number of rows. `pad_sequence`",
        "loops over the rows in C++, behind a loop in Python that picks them.",
        "",
        table(ratios),
        "",
        f"{machine()}; {datetime.date.today().isoformat()}.",
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "session_speed.md").write_text("\n".join(lines), "utf-8")
