"""Fitted preprocessing: codes for missing and unseen, determinism, invariance, types at prediction, and the round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from pluribus.data import FittedColumns, Table
from pluribus.data.statistics import FIRST, MAX_BINS, MIN_COUNT, QUANTILES, _sorted
from pluribus.errors import BadInput
from pluribus.tasks import Task

N = 200


def frame(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "number": np.where(rng.random(N) < 0.1, np.nan, rng.normal(50, 7, N)),
            "whole": rng.integers(0, 5, N),
            "word": rng.choice(["a", "b", "c", None], N, p=[0.5, 0.3, 0.1, 0.1]),
            "flag": rng.random(N) < 0.3,
            "when": pd.Timestamp("2021-03-01") + pd.to_timedelta(rng.integers(0, 60 * 24 * 90, N), unit="min"),
            "y": rng.integers(0, 2, N),
        }
    )


def fit(data: pd.DataFrame | None = None, rows: Any = None, **roles: Any) -> FittedColumns:
    roles.setdefault("split", "random")
    return FittedColumns.fit(Table(frame() if data is None else data, ["y"], **roles), rows)


def test_features_of_each_type() -> None:
    columns = fit()
    assert columns.numeric_names == ("number", "whole", "when.days", "when.yearday", "when.hour")
    assert columns.categorical_names == ("word", "flag", "when.weekday", "when.month")
    assert columns.cardinalities == (5, 4, 9, 14)
    numeric, categorical = columns.encode(frame())
    assert numeric.dtype == np.float32
    assert categorical.dtype == np.int32
    assert numeric.shape == (N, 5)
    assert categorical.shape == (N, 4)
    data = frame()
    assert np.array_equal(categorical[:, 1], data["flag"].map({False: 2, True: 3}))
    assert np.array_equal(categorical[:, 2], data["when"].dt.weekday + FIRST)
    assert np.array_equal(categorical[:, 3], data["when"].dt.month - 1 + FIRST)
    days = (data["when"] - pd.Timestamp("1970-01-01")).dt.days
    hours = data["when"].dt.hour + data["when"].dt.minute / 60
    for i, raw in ((2, days), (3, data["when"].dt.dayofyear - 1), (4, hours)):
        assert np.allclose(numeric[:, i], StandardScaler().fit_transform(raw.to_numpy(float)[:, None])[:, 0], atol=1e-5)


def test_numbers_agree_with_scikit_learn() -> None:
    data = frame()
    numeric, _ = fit().encode(data)
    theirs = StandardScaler().fit_transform(data[["number"]].to_numpy())[:, 0]
    assert np.allclose(numeric[:, 0], theirs, atol=1e-6, equal_nan=True)
    assert np.array_equal(np.isnan(numeric[:, 0]), data["number"].isna())


def test_the_split_column_keeps_only_what_recurs() -> None:
    """Days and months of the test part lie beyond training: a feature that only names them cannot help there."""
    columns = fit(split="time:when")
    assert columns.numeric_names == ("number", "whole", "when.hour")
    assert columns.categorical_names == ("word", "flag", "when.weekday")


def test_missing_unseen_and_rare_have_their_codes() -> None:
    data = frame()
    data["word"] = ["a"] * 100 + ["b"] * 60 + ["rare"] * (MIN_COUNT - 1) + [None] * (N - 160 - MIN_COUNT + 1)
    columns = fit(data)
    assert columns.categories["word"].categories == ("a", "b"), "the most frequent first, rare ones dropped"
    new = data.iloc[:6].copy()
    new["word"] = ["a", "b", "rare", "never seen", None, "a"]
    assert columns.encode(new)[1][:, 0].tolist() == [2, 3, 1, 1, 0, 2]
    assert columns.categories["word"].frequency.sum() == pytest.approx(1)
    assert columns.categories["word"].frequency[1] == pytest.approx((MIN_COUNT - 1) / N)


def test_categories_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluribus.data.columns.MAX_CATEGORIES", 2)
    assert fit().categories["word"].categories == ("a", "b")


def test_only_training_rows_are_looked_at() -> None:
    data = frame()
    rows = np.arange(100)
    other = data.copy()
    other.loc[100:, "number"] = 1e9
    other.loc[100:, "word"] = "z"
    assert_same(fit(data, rows), fit(other, rows))


def assert_same(a: FittedColumns, b: FittedColumns) -> None:
    assert (a.inputs, a.time, a.task_column, a.task_names, a.roles) == (b.inputs, b.time, b.task_column, b.task_names, b.roles)
    assert a.names == b.names
    for name, number in a.numbers.items():
        other = b.numbers[name]
        assert (number.centre, number.scale, number.missing) == (other.centre, other.scale, other.missing)
        assert np.array_equal(number.edges, other.edges)
        assert np.array_equal(number.quantiles, other.quantiles, equal_nan=True)
    for name, category in a.categories.items():
        assert category.categories == b.categories[name].categories
        assert np.array_equal(category.frequency, b.categories[name].frequency)


@given(st.integers(0, 10_000))
def test_fit_does_not_depend_on_the_order_of_rows(seed: int) -> None:
    """Bit for bit, or two machines that sort differently would disagree about a model."""
    data = frame(seed)
    shuffled = data.sample(frac=1, random_state=seed)
    assert_same(fit(data), fit(shuffled))


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60), st.integers(0, 5))
def test_any_numbers_encode_to_finite_ones(values: list[float], holes: int) -> None:
    data = pd.DataFrame({"x": values + [None] * holes, "y": [i % 2 for i in range(len(values) + holes)]})
    if data["y"].nunique() < 2:
        return
    data["x"] = data["x"].astype(float)
    columns = FittedColumns.fit(Table(data, ["y"], split="random"))
    numeric, _ = columns.encode(data)
    assert np.isfinite(numeric[: len(values)]).all()
    assert np.isnan(numeric[len(values) :]).all()
    edges = columns.bin_edges[0]
    assert (np.diff(edges) > 0).all()
    assert 2 <= len(edges) <= MAX_BINS + 1
    again, _ = columns.encode(data)
    assert np.array_equal(numeric, again, equal_nan=True)


@given(st.integers(0, 10_000))
def test_rows_are_encoded_one_by_one(seed: int) -> None:
    """A row's encoding depends on that row alone."""
    columns, data = fit(), frame(seed)
    numeric, categorical = columns.encode(data)
    picked = np.random.default_rng(seed).permutation(N)[:17]
    part = columns.encode(data.iloc[picked])
    assert np.array_equal(part[0], numeric[picked], equal_nan=True)
    assert np.array_equal(part[1], categorical[picked])


def test_a_tables_kept_codes_are_those_of_its_frame() -> None:
    table = Table(frame(), ["y"], split="random")
    columns = FittedColumns.fit(table, np.arange(120))
    for ours, theirs in zip(columns.encode_table(table), columns.encode(frame())):
        assert np.array_equal(ours, theirs, equal_nan=ours.dtype == np.float32)


@given(st.lists(st.one_of(st.integers(-50, 50), st.integers(-(2**60), 2**60), st.floats(-100, 100)), max_size=60))
def test_counting_sorts_as_comparing_does(values: list[float]) -> None:
    array = np.array(values, float)
    assert np.array_equal(_sorted(array), np.sort(array))


def test_baselines_are_the_training_quantiles() -> None:
    data = frame()
    number = fit().numbers["number"]
    assert np.allclose(number.quantiles, np.nanquantile(data["number"], QUANTILES))
    assert number.missing == pytest.approx(data["number"].isna().mean())


def test_round_trip(tmp_path: Path) -> None:
    data = frame()
    data["school"] = np.repeat(["s1", "s2"], N // 2)
    for columns in (fit(), fit(split="time:when", id=None), fit(data, task_column="school")):
        manifest = json.loads(json.dumps(columns.write(tmp_path), allow_nan=False))
        back = FittedColumns.read(tmp_path, manifest)
        assert_same(columns, back)
        for ours, theirs in zip(columns.encode(data), back.encode(data)):
            assert np.array_equal(ours, theirs, equal_nan=ours.dtype == np.float32)


def test_tables_of_one_kind_of_column_round_trip(tmp_path: Path) -> None:
    for kept in (["word", "y"], ["number", "y"]):
        columns = fit(frame()[kept])
        assert_same(columns, FittedColumns.read(tmp_path, columns.write(tmp_path)))


def test_damage_is_named(tmp_path: Path) -> None:
    columns = fit()
    manifest = columns.write(tmp_path)
    file = tmp_path / "columns.safetensors"
    whole = file.read_bytes()
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=r"columns\.safetensors"):
            FittedColumns.read(tmp_path, manifest)
    file.write_bytes(whole)
    with pytest.raises(BadInput, match="of shape"):
        FittedColumns.read(tmp_path, {**manifest, "numeric": [*manifest["numeric"], "more"]})
    for key in manifest:
        with pytest.raises(BadInput, match=key):
            FittedColumns.read(tmp_path, {k: v for k, v in manifest.items() if k != key})
    file.unlink()
    with pytest.raises(BadInput, match="is missing"):
        FittedColumns.read(tmp_path, manifest)


def test_prediction_tables() -> None:
    """No labels, no parts; extra columns ignored, lacking ones named, other types named."""
    columns, data = fit(), frame().drop(columns="y")
    prepared = columns.prepare(data.assign(extra=1), [Task("y", "binary", classes=("0", "1"))])
    assert prepared.n_rows == N
    assert not prepared.parts
    assert len(prepared.cells["y"]) == 0
    assert np.array_equal(prepared.units, np.arange(N))
    with pytest.raises(BadInput, match="lacks 2 input columns: 'number', 'flag'"):
        columns.encode(data.drop(columns=["flag", "number"]))
    for name, values, message in (
        ("number", "seven", "'number': was fitted on numbers but holds 'seven' in row 1"),
        ("number", np.inf, "infinite number in row 1"),
        ("flag", "perhaps", "'flag': was fitted on booleans but holds 'perhaps'"),
        ("when", "soon", "'when': 'soon' in row 1 is not a date"),
        ("when", 7, "'when': was fitted on dates but holds numbers"),
        ("word", pd.Timestamp("2020-01-01"), "'word': was fitted on words but holds dates"),
    ):
        with pytest.raises(BadInput, match=message):
            columns.encode(data.assign(**{name: values}))


def test_other_types_that_mean_the_same() -> None:
    columns, data = fit(), frame()
    same = data.assign(
        number=data["number"].astype(object),
        whole=data["whole"].astype(str),
        word=data["word"].astype("category"),
        flag=data["flag"].astype(int),
        when=data["when"].astype(str),
    )
    for ours, theirs in zip(columns.encode(data), columns.encode(same)):
        assert np.array_equal(ours, theirs, equal_nan=ours.dtype == np.float32)


def test_a_column_that_is_all_missing_at_prediction() -> None:
    columns, data = fit(), frame()
    numeric, categorical = columns.encode(data.assign(number=None, word=None, flag=None, when=pd.NaT))
    assert np.isnan(numeric[:, [0, 2, 3, 4]]).all()
    assert not categorical.any()


def test_empty_frame_encodes() -> None:
    numeric, categorical = fit().encode(frame().iloc[:0])
    assert numeric.shape == (0, 5)
    assert categorical.shape == (0, 4)


def test_zones_show_their_own_clock() -> None:
    data = frame()
    zoned = data.assign(when=data["when"].dt.tz_localize("America/New_York", ambiguous=True, nonexistent="shift_forward"))
    assert_same(
        fit(data[["number", "y", "when"]].assign(when=zoned["when"].dt.tz_localize(None))), fit(zoned[["number", "y", "when"]])
    )


def test_long_layout() -> None:
    data = frame()
    data["school"] = np.repeat(["s2", "s1"], N // 2)
    columns = fit(data, task_column="school")
    assert columns.task_names == ("s1", "s2")
    assert columns.categorical_names[-1] == "school"
    prepared = columns.prepare(data, [])
    assert prepared.context["task"].tolist() == [1] * (N // 2) + [0] * (N // 2)
    assert prepared.categorical[:, -1].tolist() == [FIRST + 1] * (N // 2) + [FIRST] * (N // 2)
    with pytest.raises(BadInput, match="unknown task 's3'"):
        columns.encode(data.assign(school="s3"))
    with pytest.raises(BadInput, match="lacks 1 input column: 'school'"):
        columns.encode(data.drop(columns="school"))
