"""Encoders and architectures of texts keep the protocols of those of tables: features row by row, requested cells only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.conformance.entries import entries_for

from pluribus.catalog import Entry
from pluribus.data import Table, prepare, split
from pluribus.data.prepared import Prepared
from pluribus.modeling import MultiTaskModel

pytest.importorskip("transformers")

ENCODERS = entries_for(__name__, "encoder", "text")
MODELS = entries_for(__name__, "architecture", "text")
SMALL = {"backbone": "small", "layers": 1, "width": 16, "heads": 2, "vocabulary": 200, "max_length": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def ready(mixed_frame: Any) -> Any:
    """200 tokenised texts beside a number, three tasks with holes, and what a model for them is made of."""
    from pluribus.text.candidates import Ready, TextFull

    frame = mixed_frame[["x3", "default", "loss", "grade"]].head(200)
    rng = np.random.default_rng(3)
    frame = frame.assign(body=[" ".join(rng.choice(["so", "and", "it", "was"], rng.integers(1, 9))) for _ in range(200)])
    table = Table(frame, ["default:binary", "loss:regression", "grade:multiclass"], split="random", text=["body"])
    return Ready.of(prepare(table, split(table, 0)), {**TextFull.defaults, **SMALL})


def _inputs(data: Prepared, rows: Any) -> Any:
    return data.batch(torch.as_tensor(rows), tasks=()).inputs


@pytest.mark.parametrize("entry", ENCODERS, ids=lambda e: e.name)
def test_features_row_by_row(entry: Entry, ready: Any) -> None:
    """Finite features of the declared width that do not depend on the other rows; the same after a round trip of the state."""
    torch.manual_seed(0)
    encoder = entry.resolve().of(ready.data.columns, **ready.settings).eval()
    together = encoder(_inputs(ready.data, range(16)), {}).main
    assert together.shape == (16, encoder.width)
    assert together.isfinite().all()
    torch.testing.assert_close(encoder(_inputs(ready.data, [3]), {}).main[0], together[3])
    again = entry.resolve().of(ready.data.columns, **ready.settings).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(_inputs(ready.data, range(16)), {}).main, together)


@pytest.mark.parametrize("entry", MODELS, ids=lambda e: e.name)
def test_requested_cells_only(entry: Entry, ready: Any) -> None:
    """A subset answers what the whole answers, at the rows asked for, in their order; a share without labels answers nothing."""
    torch.manual_seed(0)
    model: MultiTaskModel = entry.resolve().of(ready.data.tasks, ready.data.columns, **ready.settings).eval()
    inputs = _inputs(ready.data, range(32))
    everything = model(inputs)
    assert set(everything) == set(model.tasks)
    names = list(model.tasks)
    rows = {names[2]: torch.tensor([5, 1, 20]), names[0]: None}
    some = model(inputs, rows)
    assert set(some) == set(rows)
    torch.testing.assert_close(some[names[0]], everything[names[0]])
    torch.testing.assert_close(some[names[2]], everything[names[2]][[5, 1, 20]])
    assert not model(inputs, {})
    assert all(bool(value.isfinite().all()) for value in everything.values())
