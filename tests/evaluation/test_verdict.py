"""The verdict: what a bank's validator would sign. Each test is one sentence of the rule."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from benchmarks.verdict import TASKS, World, aa, constants_of, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.errors import BadInput
from pluribus.evaluation import Comparison, TaskTruth, Verdict, judge, metrics
from pluribus.tasks import Task

BINARY = Task("default", "binary", ("0", "1"), ("auc",))
NUMBER = Task("loss", "regression", (), ("rmse",))


def _world(
    n: int = 4000, seed: int = 0, units: int = 80, rate: float = 0.0
) -> tuple[np.ndarray, dict[str, TaskTruth], dict[str, np.ndarray], dict[str, Any]]:
    r = np.random.default_rng(seed)
    x, z = r.normal(size=n), r.normal(size=n)
    truth = {
        "default": TaskTruth(np.arange(n), (r.random(n) < 1 / (1 + np.exp(-2 * x - rate))).astype(float)),
        "loss": TaskTruth(np.arange(0, n, 2), (z + 0.5 * r.normal(size=n))[::2]),
    }
    constants = {name: metrics.constant("rmse", cells.target) for name, cells in truth.items()}
    return np.arange(n) % units, truth, {"default": x, "loss": z[::2]}, constants


def _models(signal: dict[str, np.ndarray], noise: float, k: int, seed: int) -> dict[str, list[np.ndarray]]:
    r = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {}
    for name, s in signal.items():
        scores = [s + noise * r.normal(size=len(s)) for _ in range(k)]
        found[name] = [1 / (1 + np.exp(-score)) for score in scores] if name == "default" else scores
    return found


def _judge(good: float = 0.2, bad: float = 0.8, k: tuple[int, int] = (5, 5), swap: bool = False, **settings: Any) -> Verdict:
    units, truth, signal, constants = _world()
    one, other = _models(signal, good, k[0], 1), _models(signal, bad, k[1], 2)
    if swap:
        one, other = other, one
    settings = {"constants": constants, "unit": "day", "repeats": 300, **settings}
    return judge((BINARY, NUMBER), truth, units, one, {"the specialists": other}, **settings)


def test_a_clear_gain_is_better_on_every_task_and_in_the_headline() -> None:
    verdict = _judge()
    assert [row.word for row in verdict.comparisons[0].tasks] == ["better", "better"]
    assert verdict.comparisons[0].overall.word == "better"
    start = "The one model can replace the specialists: better on default, loss. On average over the tasks it is "
    assert verdict.headline.startswith(start)
    assert " % better (" in verdict.headline


def test_swapping_the_files_swaps_the_words() -> None:
    """A hard-coded sentence or a lost sign would survive anything but this."""
    there, back = _judge(), _judge(swap=True)
    assert [row.word for row in back.comparisons[0].tasks] == ["worse", "worse"]
    assert back.headline.startswith("The one model cannot replace the specialists on every task: worse on default, loss")
    for a, b in zip(there.comparisons[0].tasks, back.comparisons[0].tasks):
        assert a.gain.deciding.value == pytest.approx(-b.gain.deciding.value)
        assert a.gain.deciding.low == pytest.approx(-b.gain.deciding.high)
        assert a.p == pytest.approx(b.p)
        assert a.challenger == b.reference


def test_the_same_predictions_are_as_good() -> None:
    units, truth, signal, constants = _world()
    same = _models(signal, 0.3, 3, 1)
    one_seed = {name: [seeds[0]] * 3 for name, seeds in same.items()}
    verdict = judge((BINARY, NUMBER), truth, units, one_seed, {"itself": one_seed}, constants=constants)
    assert [row.word for row in verdict.comparisons[0].tasks] == ["as good", "as good"]
    assert verdict.comparisons[0].overall.delta.file.value == 0


def test_a_small_loss_within_the_tolerance_is_as_good_and_beyond_is_not() -> None:
    """Row noise that costs less than the tolerance: as good. A tolerance of 0 takes the word away."""
    units, truth, signal, constants = _world(20_000)
    r = np.random.default_rng(5)
    noise = r.normal(size=(5, 20_000))
    one = {"default": [1 / (1 + np.exp(-signal["default"] - 0.12 * row)) for row in noise]}
    other = {"default": [1 / (1 + np.exp(-signal["default"] - 0.10 * row)) for row in noise]}
    row = judge((BINARY,), truth, units, one, {"r": other}, constants=constants).comparisons[0].tasks[0]
    assert row.tolerance == 0.005  # AUC is bounded by 1
    assert row.word == "as good"
    strict = dataclasses.replace(BINARY, tolerance=0.0)
    row = judge((strict,), truth, units, one, {"r": other}, constants=constants).comparisons[0].tasks[0]
    assert row.word != "as good"
    loose = dataclasses.replace(BINARY, tolerance=0.1)
    row = judge((loose,), truth, units, one, {"r": other}, constants=constants).comparisons[0].tasks[0]
    assert row.tolerance == pytest.approx(0.1 * row.reference.file.value)
    for words, expected in (("0.03", 0.03), ("2%", 0.02 * row.reference.file.value)):
        named = dataclasses.replace(BINARY, tolerance=words)
        row = judge((named,), truth, units, one, {"r": other}, constants=constants).comparisons[0].tasks[0]
        assert row.tolerance == pytest.approx(expected)


def test_the_tolerance_of_a_loss_is_a_share_of_the_reference() -> None:
    """Broken: 2 % of a skill, which was 37 % of the RMSE on one table and .2 % on another."""
    row = _judge().comparisons[0].of("loss")
    assert row.tolerance == pytest.approx(0.01 * row.reference.file.value)


@pytest.mark.parametrize("given", ["-1", "-0.1%", "much", "nan", -0.5])
def test_a_tolerance_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(BadInput, match="tolerance"):
        dataclasses.replace(BINARY, tolerance=given)


def test_few_positives_are_undecided() -> None:
    units, truth, signal, constants = _world(4000, rate=-7.0)
    positives = int(truth["default"].target.sum())
    assert 0 < positives < 50
    one, other = _models(signal, 0.0, 3, 1), _models(signal, 5.0, 3, 2)
    row = judge((BINARY,), truth, units, one, {"r": other}, constants=constants).comparisons[0].tasks[0]
    assert (row.word, row.positives) == ("undecided", positives)
    assert f"the rarer class has {positives} test rows, fewer than 50" in row.reason
    flipped = {"default": TaskTruth(truth["default"].rows, 1 - truth["default"].target)}  # few negatives are as few
    row = judge((BINARY,), flipped, units, one, {"r": other}, constants=constants).comparisons[0].tasks[0]
    assert "the rarer class has" in row.reason


def test_few_units_are_undecided() -> None:
    units, truth, signal, constants = _world(units=9)
    one, other = _models(signal, 0.1, 3, 1), _models(signal, 2.0, 3, 2)
    verdict = judge((NUMBER,), truth, units, one, {"r": other}, constants=constants)
    row = verdict.comparisons[0].tasks[0]
    assert (row.word, row.reason) == ("undecided", "9 resampling units hold labels, fewer than 10")
    assert verdict.comparisons[0].overall.word == "undecided"


def test_a_specialist_without_skill_blocks_every_word_but_better() -> None:
    """Broken: a challenger with half the error of a useless reference is "undecided"."""
    units, truth, signal, constants = _world()
    good, bad = _models(signal, 0.2, 3, 1), {"loss": [3 + s for s in _models(signal, 0.2, 3, 2)["loss"]]}
    worst = {"loss": [6 + s for s in bad["loss"]]}

    def judged(one: Any, other: Any) -> Any:
        return judge((NUMBER,), truth, units, one, {"r": other}, constants=constants).comparisons[0].tasks[0]

    assert judged(good, bad).word == "better"
    for one, other in ((bad, bad), (worst, bad)):
        assert judged(one, other).word == "undecided"
        assert "no skill over a constant predictor" in judged(one, other).reason
    assert "neither side has skill" in judged(bad, worst).reason


@pytest.mark.parametrize(
    ("side", "swap", "word"),
    [
        ("reference", False, "undecided"),
        ("reference", True, "worse"),
        ("challenger", False, "better"),
        ("challenger", True, "undecided"),
    ],
)
def test_a_doubt_blocks_what_longer_training_could_undo(side: str, swap: bool, word: str) -> None:
    """Broken: an undertrained reference hides that the challenger is worse, or the other way round."""
    doubts = {name: {side: "its training was cut short"} for name in ("default", "loss")}
    comparison = _judge(swap=swap, doubts=doubts).comparisons[0]
    assert {row.word for row in comparison.tasks} == {word}
    assert comparison.overall.word == word
    if word == "undecided":
        assert "cut short" in comparison.tasks[0].reason


def test_what_would_be_deployed_decides() -> None:
    """Broken: the verdict is about the mean of single seeds, and their average is what users get."""
    units, truth, signal, constants = _world()
    draws = _models(signal, 0.8, 5, 1)
    average = {name: np.mean(each, 0) for name, each in draws.items()}
    comparison = judge(
        (BINARY, NUMBER),
        truth,
        units,
        draws,
        {"r": draws},
        constants=constants,
        challenger_name="one",
        deployed={"one": average, "r": {name: each[0] for name, each in draws.items()}},
    ).comparisons[0]
    for row in comparison.tasks:
        assert row.word == "better"
        assert row.method_word != "better"
        assert row.gain.method is not None
        assert row.gain.method.value == 0
    same = metrics.compute("rmse", average["loss"], truth["loss"].target)
    assert comparison.of("loss").challenger.file.value == pytest.approx(same)


def test_an_undecided_task_says_how_many_units_would_decide() -> None:
    """Four times the units halve the interval: the number that is named decides, on average."""
    units, truth, signal, constants = _world(400, units=400)
    one, other = _models(signal, 0.50, 1, 1), _models(signal, 0.55, 1, 2)
    row = judge((NUMBER,), truth, units, one, {"r": other}, constants=constants).comparisons[0].tasks[0]
    assert row.word == "undecided"
    assert row.units_needed is not None
    assert f"about {row.units_needed:,} units would decide it" in row.reason
    gain, half = row.gain.file.value, row.gain.file.value - row.gain.file.low
    shrunk = half * (row.units / row.units_needed) ** 0.5
    assert shrunk <= (gain + row.tolerance if gain > -row.tolerance else -gain) * 1.001


def test_one_class_only_is_undecided_and_not_an_error() -> None:
    truth = {"default": TaskTruth(np.arange(100), np.ones(100))}
    row = (
        judge(
            (BINARY,),
            truth,
            100,
            {"default": [np.full(100, 0.5)]},
            {"r": {"default": [np.full(100, 0.4)]}},
            constants={"default": 0.5},
        )
        .comparisons[0]
        .tasks[0]
    )
    assert (row.word, row.reason) == ("undecided", "auc is not defined on these test labels")


def test_a_doubt_from_outside_silences_the_word() -> None:
    found = _judge(doubts={"loss": "the road was undertrained"}).comparisons[0]
    assert (found.of("loss").word, found.of("loss").reason) == ("undecided", "the road was undertrained")
    assert found.of("default").word == "better"
    assert (found.overall.word, found.overall.reason) == ("undecided", "loss: the road was undertrained")


def test_one_seed_speaks_of_this_file_only() -> None:
    verdict = _judge(k=(1, 1))
    comparison = verdict.comparisons[0]
    assert comparison.scope == "this file only"
    assert comparison.tasks[0].gain.method is None
    assert comparison.tasks[0].method_word is None
    doubted = {"loss": "the road was undertrained"}
    assert _judge(doubts=doubted).headline.startswith("Whether the one model can ")
    assert _judge(k=(2, 5)).comparisons[0].tasks[0].method_word is None  # two draws say too little of a method
    assert _judge(k=(3, 5)).comparisons[0].tasks[0].method_word == "better"
    mixed = _judge(k=(3, 1)).comparisons[0]
    assert mixed.scope == "the method, against this file of the reference only"
    assert mixed.tasks[0].gain.method is not None
    assert _judge(k=(3, 4)).comparisons[0].scope == "the method"


def test_between_seed_variance_widens_the_method_scope() -> None:
    """Seeds that differ in quality: the file interval does not see it, the method's must."""
    units, truth, signal, constants = _world()
    r = np.random.default_rng(0)
    uneven = {"loss": [signal["loss"] + s * r.normal(size=2000) for s in (0.1, 0.6, 1.2)]}
    even = {"loss": [signal["loss"] + 0.6 * r.normal(size=2000) for _ in range(3)]}
    row = judge((NUMBER,), truth, units, uneven, {"r": even}, constants=constants).comparisons[0].tasks[0]
    assert row.gain.method is not None
    assert row.gain.method.se > 3 * row.gain.file.se
    assert row.gain.method.df < 3
    assert row.method_word == "undecided"


def test_units_that_share_their_luck_widen_the_interval() -> None:
    """Errors shared by a day: resampling rows would pretend to more evidence than there is."""
    r = np.random.default_rng(0)
    day = np.repeat(np.arange(40), 50)
    y = r.normal(size=2000)
    truth = {"loss": TaskTruth(np.arange(2000), y)}
    one, other = ({"loss": [y + r.normal(size=40)[day] for _ in range(3)]} for _ in range(2))
    by_day = judge((NUMBER,), truth, day, one, {"r": other}, constants={"loss": 0.0}).comparisons[0].tasks[0]
    by_row = judge((NUMBER,), truth, 2000, one, {"r": other}, constants={"loss": 0.0}).comparisons[0].tasks[0]
    assert by_day.gain.file.se > 3 * by_row.gain.file.se


def test_holm_counts_the_tasks_of_one_role() -> None:
    r = np.random.default_rng(1)
    n, names = 3000, [f"t{i}" for i in range(6)]
    truth = {name: TaskTruth(np.arange(n), r.normal(size=n)) for name in names}
    one = {name: [truth[name].target + 0.50 * r.normal(size=n) for _ in range(4)] for name in names}
    other = {name: [truth[name].target + 0.51 * r.normal(size=n) for _ in range(4)] for name in names}
    tasks = [Task(name, role="main" if i < 4 else "auxiliary") for i, name in enumerate(names)]
    found = judge(tasks, truth, n, one, {"r": other}, constants=dict.fromkeys(names, 0.0)).comparisons[0]
    main, auxiliary = found.tasks[:4], found.tasks[4:]
    assert min(t.p_holm for t in main) == pytest.approx(min(1, 4 * min(t.p for t in main)))
    assert min(t.p_holm for t in auxiliary) == pytest.approx(min(1, 2 * min(t.p for t in auxiliary)))
    assert sum(found.counts().values()) == 4
    assert "t4" not in found.headline


def test_delta_m_by_hand_and_its_interval_resamples_both_sides() -> None:
    verdict = _judge()
    rows = verdict.comparisons[0].tasks
    by_hand = 100 * np.mean([row.gain.file.value / row.reference.file.value for row in rows])
    overall = verdict.comparisons[0].overall
    assert overall.delta.file.value == pytest.approx(by_hand)
    assert overall.convention == "mean-relative"
    units, truth, signal, constants = _world()
    seeds = _models(signal, 0.5, 1, 1)
    # a challenger that is the reference times a constant error: nothing random is left of the ratio when both move together
    pair = (
        judge(
            (NUMBER,),
            truth,
            units,
            {"loss": [truth["loss"].target + 2 * (seeds["loss"][0] - truth["loss"].target)]},
            {"r": {"loss": seeds["loss"]}},
            constants=constants,
        )
        .comparisons[0]
        .overall
    )
    assert pair.delta.file.value == pytest.approx(-100)
    assert pair.delta.file.se == pytest.approx(0, abs=1e-9)


def test_delta_m_against_a_reference_near_zero_says_so() -> None:
    units, truth, signal, constants = _world()
    task = Task("loss", "regression", (), ("r2",))
    one = _models(signal, 0.2, 3, 1)
    r = np.random.default_rng(0)
    other = {"loss": [0.02 * signal["loss"] + 0.2 * r.normal(size=2000) for _ in range(3)]}
    overall = judge((task,), truth, units, one, {"r": other}, constants=constants).comparisons[0].overall
    assert overall.word == "undecided"
    assert "a relative change means nothing" in overall.reason


def test_two_references_and_one_that_lacks_a_task() -> None:
    units, truth, signal, constants = _world()
    one, other = _models(signal, 0.2, 3, 1), _models(signal, 0.8, 3, 2)
    champion = {"default": _models(signal, 0.1, 1, 3)["default"]}
    verdict = judge((BINARY, NUMBER), truth, units, one, {"specialists": other, "champion": champion}, constants=constants)
    assert [len(c.tasks) for c in verdict.comparisons] == [2, 1]
    assert verdict.against("champion").of("default").word != "better"
    assert verdict.headline == verdict.against("specialists").headline


def test_row_weights_count() -> None:
    """Rows of weight 0 are not there: making them wrong must change nothing."""
    units, truth, signal, constants = _world()
    weight = np.ones(2000)
    weight[:500] = 0
    cells = dataclasses.replace(truth["loss"], weight=weight)
    one, other = _models(signal, 0.2, 3, 1), _models(signal, 0.8, 3, 2)
    broken = {"loss": [np.where(weight > 0, p, 99.0) for p in one["loss"]]}
    a, b = (judge((NUMBER,), {"loss": cells}, units, side, {"r": other}, constants=constants) for side in (one, broken))
    assert a.comparisons[0].tasks == b.comparisons[0].tasks
    assert a.comparisons[0].tasks[0].rows == 1500


def test_json_there_and_back() -> None:
    verdict = _judge(k=(3, 1), notes=["a note"])
    text = json.dumps(verdict.to_dict(), allow_nan=False)
    assert Verdict.from_dict(json.loads(text)) == verdict
    with pytest.raises(BadInput, match="is not a verdict"):
        Verdict.from_dict({"schema": 1})


def test_json_of_undefined_figures() -> None:
    truth = {"default": TaskTruth(np.arange(100), np.ones(100))}
    one = {"default": [np.full(100, 0.5)]}
    verdict = judge((BINARY,), truth, 100, one, {"r": one}, constants={"default": 0.5})
    again = Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False)))
    assert again.headline == verdict.headline
    assert np.isnan(again.comparisons[0].tasks[0].p)


def test_text_shows_words_reasons_and_notes() -> None:
    text = _judge(doubts={"loss": "it was undertrained"}, notes=["split by date"]).text()
    assert "loss: undecided because it was undertrained" in text
    assert "note: split by date" in text
    assert "80 units (unit: day)" in text


@given(st.floats(1e-3, 1e3), st.floats(-50, 50))
@settings(max_examples=15)
def test_units_of_measurement_do_not_matter(scale: float, shift: float) -> None:
    """Minutes or hours: the words, p-values and Δm of a regression must stay."""
    r = np.random.default_rng(0)
    y = r.normal(size=300)
    one, other = ([y + noise * r.normal(size=300) for _ in range(3)] for noise in (0.3, 0.4))

    def verdict(a: float, b: float) -> Comparison:
        truth = {"loss": TaskTruth(np.arange(300), a * y + b)}
        sides = ({"loss": [a * p + b for p in side]} for side in (one, other))
        return judge((NUMBER,), truth, 300, next(sides), {"r": next(sides)}, constants={"loss": b}, repeats=50).comparisons[0]

    plain, moved = verdict(1.0, 0.0), verdict(scale, shift)
    assert moved.tasks[0].word == plain.tasks[0].word
    assert moved.tasks[0].p == pytest.approx(plain.tasks[0].p, rel=1e-5)
    assert moved.overall.delta.deciding.low == pytest.approx(plain.overall.delta.deciding.low, rel=1e-5)


def test_same_seed_same_verdict() -> None:
    assert _judge(seed=3) == _judge(seed=3)


def test_bad_input_names_task_and_side() -> None:
    units, truth, signal, constants = _world()
    one = _models(signal, 0.2, 2, 1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"challenger": {"loss": one["loss"]}}, "task 'default', challenger: has no predictions"),
        ({"references": {}}, "no reference"),
        ({"references": {"r": {"other": []}}}, "reference 'r': holds no prediction of any judged task"),
        ({"challenger": {**one, "loss": [one["loss"][0][:-1]]}}, "task 'loss', challenger, rmse: prediction of shape"),
        ({"challenger": {**one, "loss": [np.full(2000, np.nan)]}}, "missing or infinite"),
        ({"truth": {"default": truth["default"]}}, "task 'loss': has no test labels"),
        ({"constants": {}}, "has no constant prediction"),
        ({"level": 1.5}, "level must lie in"),
        ({"units": units[:10]}, "labelled rows do not fit the test split"),
    ]
    for change, message in cases:
        settings: dict[str, Any] = {
            "truth": truth,
            "units": units,
            "challenger": one,
            "references": {"r": one},
            "constants": constants,
            **change,
        }
        with pytest.raises(BadInput) as caught:
            judge((BINARY, NUMBER), **settings)
        assert message in str(caught.value)


def test_aa_on_simulated_predictions_errs_rarely() -> None:
    """Joint := specialists with other seeds, strong clusters and holes: "better" or "worse" in ≤ 6 % of 300 splits."""
    tally = simulate(World(rows=600, units=40, wobble=0.3, clustered=1.0), seeds=(3, 3), repeats=300, resamples=120)
    assert tally.rate <= 0.06
    assert tally.overall_rate <= 0.06
    assert tally.covered / tally.covered_of >= 0.92


def test_one_seed_bootstraps_would_err_often() -> None:
    """The reason for the rule: without seeds, the same method looks different from itself. If not, the A/A proves nothing."""
    assert simulate(World(rows=800, units=40, wobble=0.3), seeds=(1, 1), repeats=60, scope="file").rate > 0.2


def test_aa_on_files_whose_units_are_swapped_errs_rarely() -> None:
    """Equal in expectation, whatever the models: "better" or "worse" in 6 % of pairs of files, and what 300 of them may add by
    chance (two standard errors)."""
    world = World(rows=600, units=40, wobble=0.3, clustered=1.0)
    tally = simulate(world, seeds=(1, 1), repeats=300, resamples=120, scope="file", swapped=True)
    most = 0.06 + 2 * (0.06 * 0.94 / 300) ** 0.5
    assert tally.rate <= most
    assert tally.overall_rate <= most


def test_a_planted_gain_is_found() -> None:
    tally = simulate(World(rows=800, units=40, wobble=0.05), seeds=(5, 5), repeats=40, gain=4.0)
    assert tally.share("better") > 0.25
    assert tally.share("worse") == 0


def test_aa_on_a_pool_of_seeds() -> None:
    """The trial on real predictions draws disjoint sides from one pool; a pool with two methods in it must be caught."""
    world = World(rows=800, units=40)
    r = np.random.default_rng(0)
    units, scores, truth = world.truth(r)
    pool = world.predictions(r, scores, truth, 12)
    tally = aa(TASKS, truth, units, pool, constants_of(truth), seeds=3, repeats=40)
    assert tally.rate <= 0.15
    assert tally.repeats == 40


@pytest.mark.parametrize(("telling", "word"), [(2, "undecided"), (8, "better")])
def test_a_metric_that_is_undefined_in_many_resamples_is_no_evidence(telling: int, word: str) -> None:
    """mape skips rows whose target is 0: with two telling customers of a hundred an eighth of the resamples has none of them."""
    task = Task("loss", "regression", metrics=("mape",))
    target = np.where(np.arange(100) < telling, 10.0, 0.0)
    truth = {"loss": TaskTruth(np.arange(100), target)}
    close, far = ({"loss": [target + off + 0.01 * np.arange(100)]} for off in (0.1, 5.0))
    row = judge((task,), truth, 100, close, {"r": far}, constants={"loss": 0.0}).comparisons[0].tasks[0]
    assert row.word == word, row.reason
    assert ("mape is undefined in 1" in row.reason) == (telling == 2)
