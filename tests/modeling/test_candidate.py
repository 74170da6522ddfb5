"""Search spaces, budgets, and what every fitted artefact answers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.boosting.baselines import LightGBMPerTask
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.modeling import Budget, Choice, Fitted, IntRange, LogUniform, SearchSpace, Uniform
from pluribus.modeling.budget import in_turn
from pluribus.modeling.pieces import pieces
from pluribus.tasks.metrics import Additive


@given(seed=st.integers(0, 1000), count=st.integers(1, 20))
def test_draws_stay_within_their_ranges_and_repeat(seed: int, count: int) -> None:
    space = SearchSpace({"a": Choice(("x", "y")), "b": Uniform(-1, 2), "c": LogUniform(1e-4, 10), "d": IntRange(3, 5)})
    drawn = space.sample(seed, count)
    assert drawn[0] == {}
    assert len(drawn) == count
    for one in drawn[1:]:
        assert one["a"] in ("x", "y")
        assert -1 <= one["b"] <= 2
        assert 1e-4 <= one["c"] <= 10
        assert one["d"] in (3, 4, 5)
    assert drawn == space.sample(seed, count)
    assert space.sample(seed, count + 3)[:count] == drawn


def test_log_uniform_is_uniform_in_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    drawn = np.log10([LogUniform(1e-4, 1.0).sample(rng) for _ in range(4000)])
    assert np.histogram(drawn, bins=4, range=(-4, 0))[0] == pytest.approx(1000, abs=120)


def test_nothing_to_search_is_one_configuration() -> None:
    assert SearchSpace().sample(0, 10) == [{}]


@pytest.fixture(scope="module")
def fitted(mixed: Prepared) -> Fitted:
    return LightGBMPerTask(rounds=20).fit(mixed, Budget(60.0), 0)


def test_predict_keeps_order_and_index(fitted: Fitted, mixed_frame: Any) -> None:
    """Row order and index are the table's; extra columns do not matter; labels follow from the probabilities."""
    shuffled = mixed_frame.sample(60, random_state=0).assign(extra=1)
    found = fitted.predict(shuffled)
    assert found.index.equals(shuffled.index)
    whole = fitted.predict(mixed_frame)
    pd.testing.assert_frame_equal(found, whole.loc[shuffled.index])
    columns = [c for c in found if str(c).startswith("grade__p_")]
    assert columns == ["grade__p_u", "grade__p_v", "grade__p_w"]
    assert (found["grade"] == found[columns].idxmax(axis=1).str.removeprefix("grade__p_")).all()
    assert list(fitted.predict(shuffled, tasks=["loss"]).columns) == ["loss"]


def test_terms_are_what_metrics_are_made_of(fitted: Fitted, mixed: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms of rows that went through in pieces give the metric of the predictions, and halves add up; if this fails, a study of
    maps, which keeps terms alone, judges other models than it trained."""
    monkeypatch.setattr("pluribus.modeling.artefact.fitted.pieces", partial(pieces, most=13))
    cells = {task.name: mixed.labelled(task.name, "valid") for task in mixed.tasks}
    found = fitted.terms(mixed, cells)
    assert set(found) == set(cells)
    additive = 0
    for task in mixed.tasks:
        own = cells[task.name]
        prediction = fitted.scores(mixed, own.rows, [task.name])[task.name]
        assert set(found[task.name]) == {metric.name for metric in task.metrics if isinstance(metric, Additive)}
        for metric in task.metrics:
            if isinstance(metric, Additive):
                additive += 1
                terms = found[task.name][metric.name]
                assert len(terms) == len(own)
                value = metrics.compute(metric, prediction, own.values)
                assert metric.finished(terms.sum(0)[None])[0] == pytest.approx(value)
                halves = [fitted.terms(mixed, {task.name: own[some]}) for some in (slice(0, None, 2), slice(1, None, 2))]
                total = sum(half[task.name][metric.name].sum(0) for half in halves)
                np.testing.assert_allclose(total, terms.sum(0))
    assert additive >= 3
    empty = mixed.labelled("loss", "valid")[:0]
    assert fitted.terms(mixed, {"loss": empty}) == {"loss": {}}


def test_thresholds_move_labels_not_probabilities(fitted: Fitted, mixed_frame: Any) -> None:
    name, p = "default", "default__p"
    before = fitted.predict(mixed_frame, tasks=[name])
    classes = next(task for task in fitted.tasks if task.name == name).classes
    fitted.thresholds[name] = 0.8
    try:
        after = fitted.predict(mixed_frame, tasks=[name])
    finally:
        del fitted.thresholds[name]
    assert (after[p] == before[p]).all()
    assert (after[name] == np.asarray(classes)[(after[p] >= 0.8).astype(int)]).all()
    assert (before[name] == np.asarray(classes)[(before[p] >= 0.5).astype(int)]).all()


def test_bad_requests_name_what_is_wrong(fitted: Fitted, mixed_frame: Any) -> None:
    with pytest.raises(BadInput, match="unknown task 'los'; did you mean 'loss'"):
        fitted.predict(mixed_frame, tasks=["los"])
    with pytest.raises(BadInput, match="lacks 1 input column: 'x2'"):
        fitted.predict(mixed_frame.drop(columns="x2"))


def test_only_keeps_the_named_tasks(mixed: Prepared) -> None:
    """`Prepared.only` hands a per-task road its own labels and nobody else's."""
    assert set(mixed.only(["loss"]).cells) == {"loss"}
    assert replace(mixed).n_rows == mixed.n_rows


def test_parts_in_turn_leave_no_second_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: parts whose share was too short stay cut although others ended early, or one part takes what others were given."""
    now = [0.0]
    monkeypatch.setattr("pluribus.modeling.budget.time.process_time", lambda: now[0])
    needs, first = [8.0, 1.0, 1.0], []

    def go_on(i: int, deadline: float) -> bool:
        first.append((i, deadline - now[0]))
        spent = min(needs[i], deadline - now[0])
        now[0] += spent
        needs[i] -= spent
        return needs[i] <= 1e-9

    in_turn([1.0, 1.0, 2.0], go_on, 12.0)
    assert first[:3] == [(0, 3.0), (1, 3.0), (2, 8.0)], "shares by size of what is left"
    assert max(needs) <= 1e-9
    assert now[0] == pytest.approx(10.0)


def test_parts_in_turn_end_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a part that never ends is tried for ever."""
    now = [0.0]
    monkeypatch.setattr("pluribus.modeling.budget.time.process_time", lambda: now[0])

    def go_on(i: int, deadline: float) -> bool:
        now[0] = max(deadline, now[0] + 0.1)
        return False

    in_turn([1.0, 3.0], go_on, 4.0)
    assert now[0] == pytest.approx(4.0)
