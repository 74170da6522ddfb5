"""Of the last batch a process may get rows without a label, or no row at all: every joint network answers nothing there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conformance.entries import entries_for

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.modeling import MultiTaskModel

SHARING = entries_for(__name__, "sharing", "table")
CASES: list[tuple[str, str, dict[str, Any]]] = [("sharing", entry.name, {}) for entry in SHARING]
CASES.append(("sharing", "shared_bottom", {"tower": 8}))
TABULAR = entries_for(__name__, "architecture", "table")
CASES += [("architecture", entry.name, {}) for entry in TABULAR]


@pytest.fixture(params=CASES, ids=lambda case: "-".join((*case[:2], *map(str, case[2].values()))))
def model(request: pytest.FixtureRequest, mixed: Prepared, sharing_of: Callable[..., MultiTaskModel]) -> MultiTaskModel:
    family, name, settings = request.param
    if family == "sharing":
        return sharing_of(name, **settings)
    torch.manual_seed(0)
    made: MultiTaskModel = catalog.get(family, name).resolve().of(mixed.tasks, mixed.columns)
    return made


@pytest.mark.parametrize("count", [48, 1, 0], ids=lambda count: f"{count} rows")
@pytest.mark.parametrize("training", [True, False], ids=["training", "predicting"])
def test_a_share_without_labels_or_rows(model: MultiTaskModel, mixed: Prepared, count: int, training: bool) -> None:
    """Broken: a training on several processes ends, or its penalties are NaN, where a share of the batch is empty."""
    model.train(training)
    inputs = mixed.batch(torch.arange(count), tasks=()).inputs
    nothing = model(inputs, {})
    assert not nothing
    assert len(nothing.shared) == len(model(inputs).shared)  # several processes listen there
    assert nothing.shared or type(model) is not MultiTaskModel
    first = next(iter(model.tasks))
    for rows in ({first: torch.arange(0)}, dict.fromkeys(model.tasks, torch.arange(0)), dict.fromkeys(model.tasks)):
        found = model(inputs, rows)
        assert {name: len(value) for name, value in found.items()} == {n: count if r is None else 0 for n, r in rows.items()}
        assert all(bool(value.isfinite().all()) for value in (*found.values(), *found.penalties.values()))
