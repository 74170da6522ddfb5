"""Tasks: declared once, checked at once, the same after a round trip."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.errors import BadInput
from pluribus.tasks import KINDS, METRICS, Task
from pluribus.tasks.task import check_graph


@given(
    st.sampled_from(sorted(KINDS)),
    st.floats(0.1, 10),
    st.sampled_from(["main", "auxiliary"]),
    st.sampled_from(["missing", "not_applicable", "delayed"]),
    st.none() | st.floats(0, 1),
)
def test_round_trip(kind: str, weight: float, role: Any, absent: Any, tolerance: float | None) -> None:
    """If this fails, a saved model forgets what its tasks were."""
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "ordinal": ("low", "mid", "high")}.get(kind, ())
    task = Task("t", kind, classes, weight=weight, role=role, absent=absent, tolerance=tolerance, after=("p",))
    assert Task.from_dict(task.to_dict()) == task
    assert task.main_metric.direction == METRICS[task.main_metric.name].direction


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"kind": "binry"}, "did you mean 'binary'"),
        ({"kind": "binary", "classes": ("a", "b", "c")}, "has 2 classes, not 3"),
        ({"kind": "multiclass", "classes": ("a", "a")}, "names a class twice"),
        ({"metrics": ("rmsee",)}, "did you mean 'rmse'"),
        ({"metrics": ("auc",)}, "does not fit kind 'regression'; auc judges binary tasks"),
        ({"weight": 0.0}, "weight must be positive"),
        ({"role": "mian"}, "did you mean 'main'"),
        ({"absent": "mising"}, "did you mean 'missing'"),
        ({"tolerance": -0.1}, "must not be negative"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Task(**{"name": "t", **fields})


def test_unknown_field_in_a_file() -> None:
    with pytest.raises(BadInput, match="unknown field 'wieght'; did you mean 'weight'"):
        Task.from_dict({"name": "t", "wieght": 2.0})


def test_columns_of_prediction_files() -> None:
    assert Task("d", "binary").columns == ("d__p",)
    assert Task("g", "multiclass", ("a", "b")).columns == ("g__p_a", "g__p_b")
    assert Task("v").columns == ("v",)


def test_graph_order_and_its_errors() -> None:
    """Parents stand before children; cycles, unknown parents and double names are refused."""
    assert check_graph([Task("c", after=("b",)), Task("b", after=("a",)), Task("a")]) == ("a", "b", "c")
    with pytest.raises(BadInput, match="cycle through 'a'"):
        check_graph([Task("a", after=("b",)), Task("b", after=("a",))])
    with pytest.raises(BadInput, match="unknown parent task 'bb'; did you mean"):
        check_graph([Task("bbb"), Task("a", after=("bb",))])
    with pytest.raises(BadInput, match="two tasks are called 'a'"):
        check_graph([Task("a"), Task("a")])
