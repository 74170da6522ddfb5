"""Vector leaves and R-MTGB as candidates keep the protocol that every candidate of the catalog keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.conformance import test_candidates as protocol
from tests.conformance.entries import entries_for
from tests.conformance.test_candidates import (  # noqa: F401  each is collected here and run with the cases below
    long_table,
    test_a_subset_of_tasks_and_rows,
    test_declares_itself,
    test_never_looks_at_test_rows,
    test_no_rows,
    test_out_of_budget_is_said,
    test_predictions_have_the_shape_of_their_kind,
    test_record_says_how_it_went,
    test_same_seed_same_model,
    test_save_and_load,
)

from pluribus.boosting.candidates import RMTGBCandidate, VectorLeafCandidate
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget

BUDGET = Budget(120.0)
_made: dict[str, Any] = {}


@pytest.fixture(params=entries_for(__name__, "candidate", "table", "long", extras=("boost",)), ids=lambda entry: entry.name)
def case(request: pytest.FixtureRequest, mixed: Prepared, long_table: Prepared) -> Any:  # noqa: F811
    entry = request.param
    if entry.name not in _made:
        _made[entry.name] = protocol._Case(entry, {"table": mixed, "long": long_table}[str(entry.fixture)])
    return _made[entry.name]


def test_masked_labels_are_not_zeros(mixed: Prepared) -> None:
    """Half of the labels of `calls` and a third of `loss` are missing; the mean prediction is the labelled mean."""
    fitted = VectorLeafCandidate(rounds=60).fit(mixed, BUDGET, 0)
    for name, values in fitted.scores(mixed, mixed.parts["valid"], ["calls", "loss"]).items():
        assert values.mean() == pytest.approx(mixed.labelled(name, "train").values.mean(), rel=0.15), name


def test_rmtgb_predicts_on_the_labels_scale(long_table: Prepared) -> None:  # noqa: F811
    """Labels near 1000 are centred and scaled for the fit and brought back for predictions."""
    fitted = RMTGBCandidate(rounds=60).fit(long_table, BUDGET, 0)
    for task in long_table.tasks:
        cells = long_table.labelled(task.name, "valid")
        found = fitted.scores(long_table, cells.rows, [task.name])[task.name]
        assert np.mean((found - cells.values) ** 2) < 0.6 * np.var(cells.values)


def test_what_they_cannot_do_is_said(mixed: Prepared) -> None:
    assert "long layout" in (RMTGBCandidate().unfit(mixed) or "")
    with pytest.raises(BadInput, match="long layout"):
        RMTGBCandidate().fit(mixed, BUDGET, 0)
