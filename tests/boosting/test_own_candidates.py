"""Vector leaves and R-MTGB as candidates: what they learn, and what they cannot do."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conformance.test_candidates import long_table  # noqa: F401

from pluribus.boosting.candidates import RMTGBCandidate, VectorLeafCandidate
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget

BUDGET = Budget(120.0)


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
