"""Rows of different tasks in one forward: the same numbers as task by task, and no forward too many."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.modeling.pieces import pieces
from pluribus.serving.bodies import BodyReader, Limits
from pluribus.serving.cells import Answerer


@settings(max_examples=25)
@given(
    asked=st.lists(st.sets(st.sampled_from(["default", "loss", "calls", "grade", "rating"]), min_size=1), min_size=1, max_size=20)
)
def test_mixed_tasks_equal_per_task_ones(asked: list[set[str]], mixed: Any, network_of: Any) -> None:
    """Whatever each row asks for, one forward answers what a forward a task does, to 1e-6 of its scale."""
    network = network_of(mixed)
    wanted = {task.name: np.array([i for i, names in enumerate(asked) if task.name in names], np.int64) for task in mixed.tasks}
    wanted = {name: rows for name, rows in wanted.items() if len(rows)}
    forwards: list[int] = []
    network.model.register_forward_hook(lambda *_: forwards.append(1))
    together = network.answer(mixed, wanted)
    assert len(forwards) == 1
    for name, rows in wanted.items():
        alone = network.scores(mixed, rows, [name])[name]
        np.testing.assert_allclose(together[name], alone, rtol=0, atol=1e-6 * max(1, np.abs(alone).max()))


def test_scores_alone_answer_mixed_tasks(mixed: Any) -> None:
    """An artefact written for the first edition, which knows `scores` alone: each task gets its own rows."""
    from pluribus.modeling import Costs, Fitted

    class Sums(Fitted):
        artefact = "sums"
        calls = 0

        def scores(self, data: Any, rows: Any, tasks: Any) -> Any:
            Sums.calls += 1
            return {name: data.numeric[rows].astype(float).sum(1) for name in tasks}

        def costs(self) -> Costs:
            raise NotImplementedError

        def write(self, folder: Any) -> Any:
            raise NotImplementedError

        @classmethod
        def read(cls, *_: Any) -> Any:
            raise NotImplementedError

    fitted = Sums(mixed.tasks, mixed.columns)
    rows = {"loss": np.array([0, 2]), "calls": np.array([0, 2]), "default": np.array([1])}
    found = fitted.answer(mixed, rows)
    assert Sums.calls == 2  # loss and calls ask for the same rows
    np.testing.assert_array_equal(found["loss"], mixed.numeric[[0, 2]].astype(float).sum(1))
    np.testing.assert_array_equal(found["default"], mixed.numeric[[1]].astype(float).sum(1))


def test_long_batches_are_cut(mixed: Any, network_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a forward takes: cut into several, nothing lost or out of order, also where a task is in some cuts only."""
    network = network_of(mixed)
    monkeypatch.setattr("pluribus.tabular.network.pieces", partial(pieces, most=7))
    rows = {"loss": np.arange(0, 40, 3), "grade": np.arange(25, 60)}
    found = network.answer(mixed, rows)
    for name, own in rows.items():
        np.testing.assert_allclose(found[name], network.scores(mixed, own, [name])[name], rtol=1e-5)


@settings(max_examples=15)
@given(data=st.data())
def test_any_order_of_rows_is_kept(data: st.DataObject, mixed: Any, network_of: Any) -> None:
    """Rows in any order, twice or not at all, each task its own: if this fails, an answer stands beside another row's inputs."""
    network, size = network_of(mixed), mixed.n_rows
    whole = network.scores(mixed, np.arange(size), ["default", "grade", "loss"])
    rows = st.lists(st.integers(0, size - 1), max_size=9).map(lambda drawn: np.array(drawn, np.int64))
    wanted = {name: data.draw(rows) for name in whole}
    found = network.answer(mixed, wanted)
    assert list(found) == list(wanted)
    for name, own in wanted.items():
        assert found[name].shape == (len(own), *whole[name].shape[1:])
        np.testing.assert_allclose(found[name], whole[name][own], rtol=0, atol=1e-6 * np.abs(whole[name]).max())


@settings(max_examples=15)
@given(bad=st.sets(st.integers(0, 30), max_size=6))
def test_rows_that_cannot_be_encoded_are_found(bad: set[int], mixed: Any, network_of: Any) -> None:
    """A row that passes every check and yet breaks the encoding (here: words for a number) takes no other row down."""
    network = network_of(mixed)
    reader = BodyReader(network.columns, Limits())
    answerer = Answerer(network, reader.names)
    rows = [["?" if i in bad else 1.0, 2.0, 3.0, 4.0, "a"] for i in range(31)]
    slots = answerer(rows, [["loss"]] * 31)
    assert {i for i, slot in enumerate(slots) if "error" in slot} == bad
    assert all("values" in slot for i, slot in enumerate(slots) if i not in bad)
