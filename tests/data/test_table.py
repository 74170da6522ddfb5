"""Roles, kinds, holes, and every refusal of a table that cannot be studied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pluribus.data import Table
from pluribus.data.table.targets import parse_target
from pluribus.errors import BadInput
from pluribus.tasks import Task

N = 120


def frame(**more: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "colour": rng.choice(["red", "green", "blue"], N),
            "bought": rng.integers(0, 2, N),
            "amount": rng.normal(10, 3, N),
            **more,
        }
    )


def test_targets_split_at_a_known_kind_only() -> None:
    assert parse_target("a:b:count") == ("a:b", "count")
    assert parse_target("a:b") == ("a:b", None)
    assert parse_target("loss:regression") == ("loss", "regression")
    assert parse_target(":count") == (":count", None)


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        ([True, False] * 60, "binary", ("False", "True")),
        ([1.0, 0.0] * 60, "binary", ("0", "1")),
        (["yes", "no"] * 60, "binary", ("no", "yes")),
        ([2.5, 1.5] * 60, "binary", ("1.5", "2.5")),
        (["c", "a", "b"] * 40, "multiclass", ("a", "b", "c")),
        ([0, 1, 5] * 40, "count", ()),
        ([0.0, 1.0, np.nan, 7.0] * 30, "count", ()),
        ([2, 3, 5] * 40, "regression", ()),
        ([0, 1, 5000] * 40, "regression", ()),
        ([0, 1, -1] * 40, "regression", ()),
        ([0.5, 1.0, 2.0] * 40, "regression", ()),
        (pd.Categorical(["lo", "mid", "hi"] * 40, ["lo", "mid", "hi"], ordered=True), "ordinal", ("lo", "mid", "hi")),
        (pd.Categorical(["u", "w", "v"] * 40), "multiclass", ("u", "v", "w")),
    ],
)
def test_kinds_and_classes_are_inferred(values: Any, kind: str, classes: tuple[str, ...]) -> None:
    table = Table(frame(y=values), ["y"])
    assert table.tasks[0].kind == kind
    assert table.tasks[0].classes == classes
    assert any("'y' is " + kind in note for note in table.notes), "the inference is printable"


def test_declared_kinds_and_classes_win() -> None:
    table = Table(frame(grade=[0, 1, 2] * 40), ["grade:multiclass", Task("bought", "binary", classes=("1", "0"))])
    assert table.tasks[0].classes == ("0", "1", "2")
    values = table.cells["bought"].values
    assert np.array_equal(values, 1 - table.frame["bought"].to_numpy()), "classes name negative, positive in this order"
    assert Table(frame(g=[1, 2, 10] * 40), ["g:ordinal"]).tasks[0].classes == ("1", "2", "10"), "sorted as numbers"


def test_inputs_are_what_has_no_role() -> None:
    table = Table(
        frame(key=range(N), w=1.0, who=["a", "b"] * 60, junk="j"), ["bought"], id="key", weight="w", group="who", ignore=["junk"]
    )
    assert table.inputs == ("x", "colour", "amount")
    assert table.cells["bought"].weight is not None


def test_holes_have_kinds() -> None:
    """Missing by default; not applicable below a parent that is 0 or where a column says so; delayed where a column says so."""
    data = frame(
        click=[1, 0, 1, 0] * 30,
        buy=[1.0, 0.0, np.nan, np.nan] * 30,
        spend=[1.5, 2.0, np.nan, 3.0] * 30,
        diverted=[0, 1, 0, 0] * 30,
        late=[0, 0, 0, 1] * 30,
    )
    data.loc[0, ["buy", "spend"]] = 0
    data.loc[4, "spend"] = 9.5
    tasks = ["click", Task("buy", "binary", after="click"), Task("spend", "regression")]
    table = Table(data, tasks, not_applicable={"spend": "diverted"}, delayed={"spend": "late"})
    assert table.holes["click"] == {"labelled": 120, "missing": 0, "not_applicable": 0, "delayed": 0}
    assert table.holes["buy"] == {"labelled": 30, "missing": 30, "not_applicable": 60, "delayed": 0}
    assert table.holes["spend"] == {"labelled": 30, "missing": 30, "not_applicable": 30, "delayed": 30}
    assert table.cells["spend"].rows.tolist() == list(range(0, N, 4)), "a value where the cell is no cell is no label"
    assert not {"diverted", "late"} & set(table.inputs), "what says why a label is absent is not known beforehand"
    chain = [Task("buy", "binary", after="click"), "click", Task("spend", "regression", after="buy")]
    below = Table(data, chain, ignore=["diverted", "late"])
    assert below.holes["spend"]["not_applicable"] == 61, "where the parent does not apply, or is 0, the child does not apply"
    assert list(below.cells) == ["buy", "click", "spend"]
    by_task = Table(frame(y=[1.5, 2.5, 3.5, np.nan] * 30), [Task("y", absent="delayed")])
    assert by_task.holes["y"]["delayed"] == 30


def test_long_layout() -> None:
    data = frame(school=np.repeat(["s1", "s2", "s3"], 40))
    table = Table(data, ["amount:regression"], task_column="school")
    assert table.names == ("s1", "s2", "s3")
    assert table.cells["s2"].rows.tolist() == list(range(40, 80))
    assert np.array_equal(table.cells["s2"].values, data["amount"].to_numpy()[40:80])
    assert table.task_index.tolist() == [0] * 40 + [1] * 40 + [2] * 40
    assert "school" not in table.inputs


def test_dates_in_text_become_dates_and_split_by_time() -> None:
    table = Table(frame(when=pd.date_range("2020-01-01", periods=N).strftime("%Y-%m-%d")), ["bought"])
    assert table.split == "time:when"
    assert any("split by time" in note for note in table.notes)
    assert Table(frame(), ["bought"]).split == "random"


def test_read(tmp_path: Path) -> None:
    frame(key=[f"{i:03d}" for i in range(N)]).to_csv(tmp_path / "t.csv", index=False)
    table = Table.read(tmp_path / "t.csv", ["bought", "amount:regression"], id="key")
    assert table.frame["key"].iloc[7] == "007"
    assert table.source.endswith("t.csv")


WORDS = ["the quick brown fox number", "a lazy dog that sleeps near", "many words in a long sentence about"]
ODD = {
    "unknown target": (lambda: Table(frame(), ["boght"]), r"unknown target 'boght'.*did you mean 'bought'"),
    "misspelt kind": (lambda: Table(frame(), ["bought:binray"]), r"unknown kind 'binray'.*binary"),
    "no target": (lambda: Table(frame(), []), "no target is named"),
    "all missing": (lambda: Table(frame(y=np.nan), ["y"]), "'y': the target has no value at all"),
    "one class": (lambda: Table(frame(y="only"), ["y"]), "one class only"),
    "one class of booleans": (lambda: Table(frame(y=True), ["y"]), "one class only"),
    "constant": (lambda: Table(frame(y=3.5), ["y:regression"]), r"is constant \(3.5 in all 120 labels\)"),
    "one class among declared": (lambda: Table(frame(y=1), [Task("y", "binary", classes=("0", "1"))]), "one class only"),
    "binary of three": (lambda: Table(frame(y=[1, 2, 3] * 40), ["y:binary"]), "kind binary does not fit: 3 distinct"),
    "count of fractions": (lambda: Table(frame(), ["amount:count"]), "kind count does not fit"),
    "count of negatives": (lambda: Table(frame(y=[-1, 0, 2] * 40), ["y:count"]), "kind count does not fit: it holds -1"),
    "regression of words": (lambda: Table(frame(), ["colour:regression"]), "kind regression does not fit: it holds"),
    "ordinal of words": (lambda: Table(frame(), ["colour:ordinal"]), "order of the classes is not known"),
    "class unknown": (
        lambda: Table(frame(), [Task("colour", "multiclass", classes=("red", "green"))]),
        "holds 'blue', which is none of",
    ),
    "many words": (lambda: Table(frame(y=[f"w{i % 60}" for i in range(N)]), ["y"]), "60 different words; no kind fits"),
    "target is a date": (lambda: Table(frame(y=pd.date_range("2020", periods=N)), ["y"]), "a date cannot be a target"),
    "infinite input": (lambda: Table(frame(z=[np.inf] + [0.0] * (N - 1)), ["bought"]), "column 'z'.*infinite number in row 1"),
    "infinite target": (lambda: Table(frame(z=[0.0] * (N - 1) + [-np.inf]), ["z:regression"]), "infinite number in row 120"),
    "time is no date": (
        lambda: Table(frame(t=["2020-01-01"] * (N - 1) + ["soon"]), ["bought"], split="time:t"),
        "'soon' in row 120 is not a date",
    ),
    "date that does not parse": (
        lambda: Table(frame(t=["2020-01-01"] * (N - 1) + ["2020-13-45"]), ["bought"]),
        "'2020-13-45' in row 120 is not a date",
    ),
    "time is empty": (
        lambda: Table(frame(t=[None, *pd.date_range("2020", periods=N - 1)]), ["bought"], split="time:t"),
        "the time is empty in row 1",
    ),
    "id twice": (lambda: Table(frame(k=[1, 1, *range(2, N)]), ["bought"], id="k"), "distinct, but '1' stands in 2 rows"),
    "id empty": (lambda: Table(frame(k=[None, *map(str, range(N - 1))]), ["bought"], id="k"), "the id is empty in row 1"),
    "mixed types": (lambda: Table(frame(m=[1, "a"] * 60), ["bought"]), "'m'.*several or unknown types"),
    "target is the id": (lambda: Table(frame(), ["bought"], id="bought"), "is named as id and as target"),
    "target is the weight": (lambda: Table(frame(), ["bought"], weight="bought"), "is named as weight and as target"),
    "target is the group": (lambda: Table(frame(), ["bought"], group="bought"), "is named as group and as target"),
    "target is ignored": (lambda: Table(frame(), ["bought"], ignore=["bought"]), "is named as ignore and as target"),
    "target twice": (lambda: Table(frame(), ["bought", "bought"]), "is named as target and as target"),
    "target decides the split": (lambda: Table(frame(), ["bought"], split="column:bought"), "is named as split and as target"),
    "negative weight": (lambda: Table(frame(w=-1.0), ["bought"], weight="w"), "weights must be"),
    "unknown id": (lambda: Table(frame(), ["bought"], id="ide"), "unknown id column 'ide'"),
    "unknown ignore": (lambda: Table(frame(), ["bought"], ignore=["colur"]), "did you mean 'colour'"),
    "unknown split": (lambda: Table(frame(), ["bought"], split="tim:x"), r"unknown kind of split 'tim'.*did you mean 'time'"),
    "split without column": (lambda: Table(frame(), ["bought"], split="time"), "names no column"),
    "split at random by column": (lambda: Table(frame(), ["bought"], split="random:x"), "names a column"),
    "no rows": (lambda: Table(frame().iloc[:0], ["bought"]), "has no rows"),
    "double names": (lambda: Table(pd.concat([frame(), frame()[["x"]]], axis=1), ["bought"]), "several columns called 'x'"),
    "no input": (lambda: Table(frame()[["bought", "x"]], ["bought"], ignore=["x"]), "no input column left"),
    "unknown input of a task": (
        lambda: Table(frame(), [Task("bought", "binary", inputs=("x", "coulour"))]),
        "task 'bought', inputs: unknown input column 'coulour'; did you mean 'colour'",
    ),
    "a target as an input": (
        lambda: Table(frame(), [Task("bought", "binary", inputs=("amount",)), "amount:regression"]),
        "task 'bought', inputs: unknown input column 'amount'",
    ),
    "unknown parent": (lambda: Table(frame(), [Task("bought", "binary", after="clicked")]), "unknown parent task 'clicked'"),
    "parent that is a number": (
        lambda: Table(frame(), [Task("bought", "binary", after="amount"), "amount:regression"]),
        "comes after 'amount', which is regression",
    ),
    "unknown task of a hole": (
        lambda: Table(frame(h=0), ["bought"], not_applicable={"boght": "h"}),
        "unknown task 'boght'.*did you mean 'bought'",
    ),
    "a child without its parent": (
        lambda: Table(frame(click=[1, 0] * 60, buy=[1, 1, 0, 0] * 30), ["click:binary", Task("buy", "binary", after="click")]),
        r"task 'buy': is '1' in row 2, where 'click' is '0'; mend the rows \(30 in all\), or leave `after` out",
    ),
    "hole of words": (lambda: Table(frame(), ["bought"], delayed={"bought": "colour"}), "must hold true and false"),
    "two targets in the long layout": (lambda: Table(frame(), ["bought", "amount"], task_column="colour"), "one target column"),
    "task column of numbers": (lambda: Table(frame(), ["bought"], task_column="x"), "names 120 tasks in 120 rows"),
}


@pytest.mark.parametrize("case", ODD)
def test_refused_in_one_line(case: str) -> None:
    make, message = ODD[case]
    with pytest.raises(BadInput, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_categories_of_many_short_words_are_no_free_text() -> None:
    table = Table(frame(plane=[f"N{i}" for i in range(N)]), ["bought"])
    assert "plane" in table.inputs
    assert any("another value in every row" in note for note in table.notes)


def test_the_callers_frame_is_left_alone() -> None:
    data = frame(when=pd.date_range("2020-01-01", periods=N).strftime("%Y-%m-%d"))
    before = data.copy()
    Table(data, ["bought"])
    pd.testing.assert_frame_equal(data, before)


def test_targets_whose_predictions_would_stand_in_one_column_are_refused() -> None:
    """Otherwise the label of `bought__p` silently takes the place of the chance of `bought`."""
    data = frame(bought__p=[0, 1] * 60)
    with pytest.raises(BadInput, match="tasks 'bought' and 'bought__p' would both be predicted in a column 'bought__p'; rename"):
        Table(data, ["bought", "bought__p"])
    assert Table(frame(bought_p=[0, 1] * 60), ["bought", "bought_p"]).names == ("bought", "bought_p")


def test_tags_belong_to_the_first_text_that_their_task_reads() -> None:
    """Of several texts the one that `inputs` names first in the table's order; without it there must be one only."""
    rng = np.random.default_rng(0)
    texts = {name: [" ".join(rng.choice(["a", "b"], rng.integers(1, 9)).tolist()) for _ in range(N)] for name in ("one", "two")}
    tags = [[str(tag) for tag in rng.choice(["X", "Y"], len(text.split()))] for text in texts["two"]]
    data, declared = frame(**texts, tags=tags), Task("tags", "tagging", inputs=("x", "two"))
    table = Table(data, [declared, "bought"], text=["one", "two"], split="random")
    assert table.tasks[0].size == max(len(text.split()) for text in texts["two"])
    assert (
        table.cells["tags"].values.nbytes
        == Table(  # the same as if the other text were not there
            data.drop(columns="one"), ["tags", "bought"], text=["two"], split="random"
        )
        .cells["tags"]
        .values.nbytes
    )
    with pytest.raises(BadInput, match="there are 2; name it"):
        Table(data, ["tags:tagging", "bought"], text=["one", "two"], split="random")
    with pytest.raises(BadInput, match=r"has \d+ tags in row \d+, where the text has"):
        Table(data, [declared.with_(inputs=("one", "two")), "bought"], text=["one", "two"], split="random")
