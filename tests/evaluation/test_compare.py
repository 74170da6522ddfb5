"""Comparing files that strangers made: a silent mismatch of rows would be a wrong verdict with confidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pluribus.errors import BadInput
from pluribus.evaluation import compare

N = 600


def _truth() -> pd.DataFrame:
    r = np.random.default_rng(0)
    x, z = r.normal(size=N), r.normal(size=N)
    band = np.array(["low", "mid", "high"])[np.digitize(x + r.normal(size=N), [-1, 1])]
    frame = pd.DataFrame(
        {
            "id": np.arange(N) + 1000,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(N) // 15, "D"),
            "customer": [f"c{i % 100}" for i in range(N)],
            "exposure": r.random(N) + 0.5,
            "default": (r.random(N) < 1 / (1 + np.exp(-2 * x))).astype(float),
            "loss": z + 0.5 * r.normal(size=N),
            "calls": r.poisson(np.exp(0.5 * z)).astype(float),
            "band": band,
            "x": x,
            "z": z,
        }
    )
    frame.loc[frame.index % 5 == 0, "default"] = np.nan
    frame.loc[frame.index % 3 == 0, "loss"] = np.nan
    return frame


def _predictions(noise: float, seed: int) -> pd.DataFrame:
    truth, r = _truth(), np.random.default_rng((seed, 77))
    x, z = (truth[c].to_numpy() + noise * r.normal(size=N) for c in "xz")
    p = np.exp(-np.abs(np.stack((x + 1.5, x, x - 1.5), 1)))
    p /= p.sum(1, keepdims=True)
    return pd.DataFrame(
        {
            "id": truth["id"],
            "default__p": 1 / (1 + np.exp(-2 * x)),
            "loss": z,
            "calls": np.exp(0.5 * z),
            **{f"band__p_{c}": p[:, i] for i, c in enumerate(("low", "mid", "high"))},
        }
    ).sample(frac=1, random_state=seed)


@pytest.fixture
def truth() -> pd.DataFrame:
    return _truth().drop(columns=["x", "z"])


OLD = [_predictions(0.6, seed) for seed in range(3)]
NEW = [_predictions(0.2, seed + 10) for seed in range(3)]
QUICK: dict[str, Any] = {"repeats": 200, "kind": {"calls": "count"}}


def test_frames_and_files_give_the_same_verdict(truth: pd.DataFrame, tmp_path: Path) -> None:
    by_frame = compare(truth, OLD, NEW, group="customer", weight="exposure", **QUICK)
    truth.to_parquet(tmp_path / "y.parquet")
    for name, frames in (("old", OLD), ("new", NEW)):
        for i, frame in enumerate(frames):
            frame.to_csv(tmp_path / f"{name}{i}.csv", index=False)
    old, new = ([tmp_path / f"{name}{i}.csv" for i in range(3)] for name in ("old", "new"))
    by_file = compare(tmp_path / "y.parquet", old, new, group="customer", weight="exposure", **QUICK)
    a, b = by_frame.comparisons[0], by_file.comparisons[0]
    assert [t.word for t in a.tasks] == [t.word for t in b.tasks]
    assert [t.gain.file.value for t in a.tasks] == pytest.approx([t.gain.file.value for t in b.tasks])
    assert {t.task: t.metric for t in a.tasks} == {
        "default": "auc",
        "loss": "rmse",
        "calls": "poisson_deviance",
        "band": "logloss",
    }
    assert a.of("loss").rows == truth["loss"].notna().sum()


def test_swapped_files_swap_the_words(truth: pd.DataFrame) -> None:
    there, back = compare(truth, OLD, NEW, **QUICK), compare(truth, NEW, OLD, **QUICK)
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}
    for one, other in zip(there.comparisons[0].tasks, back.comparisons[0].tasks):
        if one.word in opposite and other.word in opposite:
            assert other.word == opposite[one.word]
        assert one.gain.file.value == pytest.approx(-other.gain.file.value)
    assert there.comparisons[0].of("loss").word == "better"
    assert "can replace" in there.headline or "not decided" in there.headline
    assert "cannot replace" in back.headline


def test_values_are_those_of_a_hand_made_join(truth: pd.DataFrame) -> None:
    """The order of rows in the files must not matter, and holes must be left out."""
    from sklearn.metrics import roc_auc_score

    joined = truth.merge(NEW[0], on="id", suffixes=("", "_said")).dropna(subset="default")
    found = compare(truth, OLD[0], NEW[0], **QUICK).comparisons[0].of("default")
    assert found.challenger.file.value == pytest.approx(roc_auc_score(joined["default"], joined["default__p"]))


def test_units_are_rows_groups_or_days(truth: pd.DataFrame) -> None:
    assert compare(truth, OLD[0], NEW[0], **QUICK).units == N
    by_day = compare(truth, OLD[0], NEW[0], time="day", **QUICK)
    assert (by_day.units, by_day.unit) == (N // 15, "day")
    by_group = compare(truth, OLD[0], NEW[0], group="customer", metric={"default": "gauc"}, **QUICK)
    assert (by_group.units, by_group.unit) == (100, "customer")
    assert by_group.comparisons[0].of("default").metric == "gauc"


def test_one_file_a_side_speaks_of_files_only(truth: pd.DataFrame) -> None:
    verdict = compare(truth, OLD[0], NEW, **QUICK)
    assert verdict.comparisons[0].scope == "the method, against this file of the reference only"
    assert compare(truth, OLD[0], NEW[0], **QUICK).comparisons[0].scope == "this file only"


def test_words_as_labels_and_numbers_of_all_types(truth: pd.DataFrame) -> None:
    """1, 1.0, True, "1" and "yes" must be the same label; ids may be text on one side."""
    plain = compare(truth, OLD[0], NEW[0], tasks=["default"], repeats=100)
    worded = truth.assign(default=truth["default"].map({0: "no", 1: "yes"}))
    found = compare(worded, OLD[0], NEW[0].astype({"id": str}), tasks=["default"], repeats=100)
    assert found.comparisons == plain.comparisons
    assert "in default, 'yes' counts as positive and 'no' as negative" in found.notes
    boolean = truth.assign(default=truth["default"].map({0: False, 1: True}).astype("boolean"))
    assert compare(boolean, OLD[0], NEW[0], tasks=["default"], repeats=100).comparisons == plain.comparisons


def test_ordinal_classes_are_ordered_as_numbers() -> None:
    r = np.random.default_rng(0)
    y = r.integers(0, 12, 400)
    p = np.full((400, 12), 0.02)
    p[np.arange(400), np.clip(y + r.integers(-1, 2, 400), 0, 11)] = 0.78
    truth = pd.DataFrame({"id": range(400), "stars": y})
    said = pd.DataFrame({"id": range(400), **{f"stars__p_{c}": p[:, c] for c in sorted(range(12), key=str)}})
    verdict = compare(truth, said, said, kind={"stars": "ordinal"}, metric={"stars": "qwk"}, repeats=100)
    assert verdict.comparisons[0].of("stars").challenger.file.value > 0.9


def test_a_label_column_beside_predictions_is_not_judged(truth: pd.DataFrame) -> None:
    """`predict` writes labels TASK beside TASK__p; judging the label would be judging the threshold."""
    labelled = [frame.assign(default=(frame["default__p"] > 0.5).astype(int)) for frame in (OLD[0], NEW[0])]
    assert compare(truth, *labelled, **QUICK).comparisons == compare(truth, OLD[0], NEW[0], **QUICK).comparisons


def test_inputs_copied_into_the_files_are_not_tasks(truth: pd.DataFrame) -> None:
    """A column that equals the truth in every file would be a perfect prediction on both sides."""
    old, new = (frame.merge(truth[["id", "exposure"]], on="id") for frame in (OLD[0], NEW[0]))
    verdict = compare(truth, old, new, **QUICK)
    assert "exposure" not in [t.task for t in verdict.comparisons[0].tasks]
    assert any("'exposure'" in note for note in verdict.notes)


def test_extra_rows_are_left_out_with_a_note(truth: pd.DataFrame) -> None:
    verdict = compare(truth.head(400), OLD[0], NEW[0], **QUICK)
    assert verdict.rows == 400
    assert any("holds 200 rows that the truth does not" in note for note in verdict.notes)


Change = Callable[[pd.DataFrame], pd.DataFrame]


def _set(column: str, value: Any, row: int = 1) -> Change:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.copy()
        frame[column] = frame[column].astype(object)
        frame.iloc[row, list(frame.columns).index(column)] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("side", "change", "settings", "message"),
    [
        ("new", lambda f: f.iloc[5:], {}, "challenger: lacks "),
        ("new", lambda f: f.assign(id=f["id"] + 5000), {}, "rows that the truth labels for task"),
        ("new", lambda f: pd.concat([f, f.head(1)]), {}, "stands twice"),
        ("truth", lambda f: pd.concat([f, f.head(1)]), {}, "truth, column 'id': the id '1000' stands twice"),
        ("new", lambda f: f.drop(columns="id"), {}, "unknown column 'id'"),
        ("truth", _set("id", None), {}, "an id is missing"),
        ("new", lambda f: f.assign(loss=f["loss"].where(f["id"] != 1001)), {}, "predictions are missing or infinite, first id"),
        ("new", lambda f: f.assign(loss=np.inf), {}, "predictions are missing or infinite"),
        ("new", lambda f: f.assign(loss="x"), {}, "is not numeric"),
        ("new", lambda f: f.assign(default__p=f["default__p"] * 3), {}, "a probability is not in [0, 1]; write probabilities"),
        ("new", lambda f: f.assign(band__p_low=0.0), {}, "do not sum to 1"),
        ("new", lambda f: f.drop(columns="band__p_low"), {}, "in another form than"),
        ("new", lambda f: f.drop(columns="loss"), {}, "challenger: lacks predictions of task 'loss'"),
        ("new", lambda f: f.assign(calls=-f["calls"]), {}, "predicts a negative count"),
        ("truth", _set("calls", -1), {}, "holds a negative count"),
        ("truth", _set("band", "huge"), {}, "holds the class 'huge', for which there is no prediction column"),
        ("truth", _set("default", 2), {}, "has 3 classes, and default__p speaks of two"),
        ("truth", lambda f: f.assign(loss=np.nan), {}, "column 'loss': has no labels"),
        ("truth", _set("loss", np.inf), {}, "holds an infinite number"),
        ("truth", lambda f: f.head(0), {}, "truth: has no rows"),
        ("truth", lambda f: f, {"tasks": ["defualt"]}, "unknown task 'defualt'; did you mean 'default'?"),
        ("truth", lambda f: f, {"kind": {"default": "binry"}}, "unknown kind 'binry'; did you mean 'binary'?"),
        ("truth", lambda f: f, {"kind": {"default": "regression"}}, "are not those of a regression task"),
        ("truth", lambda f: f, {"metric": {"default": "rsme"}}, "unknown metric 'rsme'; did you mean 'rmse'?"),
        ("truth", lambda f: f, {"metric": {"default": "rmse"}}, "does not fit kind 'binary'"),
        ("truth", lambda f: f, {"metric": {"default": "gauc"}}, "needs a group"),
        ("truth", lambda f: f, {"group": "customer", "time": "day"}, "names two resampling units"),
        ("truth", lambda f: f, {"group": "custmer"}, "unknown column 'custmer'; did you mean 'customer'?"),
        ("truth", lambda f: f, {"time": "customer"}, "does not hold dates"),
        ("truth", _set("customer", None), {"group": "customer"}, "a resampling unit is missing"),
        ("truth", _set("exposure", -1.0), {"weight": "exposure"}, "a weight is missing, negative or infinite"),
        ("truth", lambda f: f[["id", "day"]], {}, "unknown task 'calls'"),
        ("truth", lambda f: f[["id", "day"]], {"kind": {}}, "no column of the truth is predicted by the files"),
    ],
)
def test_bad_input_is_one_clear_line(truth: pd.DataFrame, side: str, change: Change, settings: Any, message: str) -> None:
    frames = {"truth": truth, "old": OLD[0], "new": NEW[0]}
    frames[side] = change(frames[side])
    with pytest.raises(BadInput) as caught:
        compare(frames["truth"], frames["old"], frames["new"], **{**QUICK, **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_files() -> None:
    with pytest.raises(BadInput, match="no file to compare"):
        compare(_truth(), [], NEW)
    with pytest.raises(BadInput, match="no such file"):
        compare("nowhere.parquet", OLD, NEW)


def _tagged(miss: float, seed: int) -> pd.DataFrame:
    """Sentences of 0 to 6 words in BIO tags; a share of the tags is taken for O."""
    r, again = np.random.default_rng(3), np.random.default_rng((seed, 5))
    sentences = [list(r.choice(["O", "B-gene", "I-gene"], size=r.integers(0, 7), p=[0.6, 0.25, 0.15])) for _ in range(300)]
    guessed = [["O" if again.random() < miss else str(tag) for tag in tags] for tags in sentences]
    return pd.DataFrame({"id": np.arange(300), "gene": guessed})


@pytest.mark.parametrize("form", ["frames", "csv"])
def test_tags_are_judged_by_their_spans(form: str, tmp_path: Path) -> None:
    """Broken: a study of tags writes prediction files that nobody can compare."""
    sides = {"truth": [_tagged(0, 0)], "old": [_tagged(0.5, s) for s in range(3)], "new": [_tagged(0.05, s) for s in range(3)]}
    files: dict[str, list[Any]] = dict(sides)
    if form == "csv":
        for name, frames in sides.items():
            files[name] = [tmp_path / f"{name}{i}.csv" for i in range(len(frames))]
            for path, frame in zip(files[name], frames):
                frame.assign(gene=frame["gene"].map(json.dumps)).to_csv(path, index=False)
    verdict = compare(files["truth"][0], files["old"], files["new"], repeats=200)
    task = verdict.comparisons[0].of("gene")
    assert (task.metric, task.word) == ("span_f1", "better")
    again = compare(files["truth"][0], files["old"], files["new"], repeats=200, metric={"gene": "token_accuracy"})
    assert again.comparisons[0].of("gene").metric == "token_accuracy"


def test_tags_that_do_not_fit_their_row_are_named() -> None:
    """Broken: a prediction that lost its last word is judged as if it had them all."""
    truth, short = _tagged(0, 0), _tagged(0.1, 1)
    row = next(i for i, tags in enumerate(truth["gene"]) if len(tags) == 6)
    short.at[row, "gene"] = short.at[row, "gene"][:5]
    with pytest.raises(BadInput, match=r"has 5 tags in row \d+, where the text has 6 words"):
        compare(truth, _tagged(0.2, 2), short, repeats=50)


def test_quantiles_are_judged_at_their_levels() -> None:
    """Broken: the levels are taken for others, and a good interval loses."""
    from sklearn.metrics import mean_pinball_loss

    r = np.random.default_rng(0)
    x = r.normal(size=500)
    truth = pd.DataFrame({"id": np.arange(500), "price": x + r.normal(size=500)})
    good = pd.DataFrame({"id": np.arange(500), "price__q0.25": x - 0.67, "price__q0.75": x + 0.67})
    wide = good.assign(**{"price__q0.25": x - 1.2, "price__q0.75": x + 1.2})
    found = compare(truth, wide, good, repeats=200).comparisons[0].of("price")
    assert (found.metric, found.word) == ("pinball", "better")
    each = [mean_pinball_loss(truth["price"], good[f"price__q{level}"], alpha=level) for level in (0.25, 0.75)]
    by_hand = np.mean(each)
    assert found.challenger.file.value == pytest.approx(by_hand)
    covered = compare(truth, wide, good, repeats=200, metric={"price": "coverage"}).comparisons[0].of("price")
    inside = (truth["price"] - x).abs() <= 0.67
    assert covered.challenger.file.value == pytest.approx(abs(inside.mean() - 0.5))
    with pytest.raises(BadInput, match="in another form than"):
        compare(truth, wide, good.rename(columns={"price__q0.25": "price__q0.2"}), repeats=100)


@pytest.mark.parametrize("form", ["lists", "words"])
def test_sets_of_classes_are_judged(form: str) -> None:
    """Labels as lists or as words between |; an empty list is a label, an empty cell none."""
    r = np.random.default_rng(1)
    chance = r.random((400, 3))
    held = r.random((400, 3)) < chance
    sets: list[Any] = [[c for c, there in zip("abc", row) if there] for row in held]
    cells = sets if form == "lists" else ["|".join(each) or "[]" for each in sets]
    truth = pd.DataFrame({"id": np.arange(400), "genres": pd.Series(cells, dtype=object)})
    truth.loc[::10, "genres"] = None
    files = [
        pd.DataFrame({"id": np.arange(400), **{f"genres__p_{c}": each[:, i] for i, c in enumerate("abc")}})
        for each in (0.25 + chance / 2, chance)
    ]
    kind = {} if form == "lists" else {"genres": "multilabel"}
    found = compare(truth, *files, repeats=200, kind=kind).comparisons[0].of("genres")
    kept = np.arange(400) % 10 > 0
    by_hand = -np.log(np.where(held, chance, 1 - chance))[kept].mean()
    assert (found.metric, found.word, found.rows) == ("logloss", "better", 360)
    assert found.challenger.file.value == pytest.approx(by_hand)


def test_ranked_items_are_judged() -> None:
    """Lists of keys, the best first, against the item that was meant."""
    r = np.random.default_rng(2)
    meant = r.integers(0, 400, 300)
    truth = pd.DataFrame({"id": np.arange(300), "next": [f"i{item}" for item in meant]})

    def ranked(hit: float, seed: int) -> pd.DataFrame:
        r = np.random.default_rng(seed)
        lists = [[f"i{item if r.random() < hit else 400 + i}" for i in range(20)] for item in meant]
        return pd.DataFrame({"id": np.arange(300), "next": lists})

    found = compare(truth, ranked(0.03, 0), ranked(0.2, 1), repeats=200, kind={"next": "next_item"}).comparisons[0].of("next")
    assert (found.metric, found.word) == ("recall@20", "better")
