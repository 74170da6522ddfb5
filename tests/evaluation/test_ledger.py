"""The ledger: figures of other people's training loops; nothing logged may be lost, bent or silently replaced."""

from __future__ import annotations

import csv
import io
import json
import math
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pluribus.errors import BadInput
from pluribus.evaluation import Ledger
from pluribus.evaluation.delta_m import CONVENTIONS, delta
from pluribus.evaluation.ledger import FORMATS, table

RULE = "best on validation"


def _fill(folder: Path, seeds: int = 3, methods: tuple[str, ...] = ("single", "equal", "nash")) -> Path:
    ledger = Ledger(folder)
    r = np.random.default_rng(0)
    figures = (("seg", "accuracy", 0.6, 1), ("seg", "macro_auc", 0.8, 1), ("depth", "mae", 0.2, -1))
    for shift, method in enumerate(methods):
        for seed in range(seeds):
            for task, metric, base, direction in figures:
                value = base * (1 + direction * (0.05 * shift + 0.01 * r.normal()))
                ledger.log(
                    method=method,
                    seed=seed,
                    task=task,
                    metric=metric,
                    value=value,
                    selection=RULE,
                    seconds=60.0 * (shift + 1),
                    main=metric != "macro_auc",
                )
    return folder


def test_rows_come_back_as_logged(tmp_path: Path) -> None:
    rows = Ledger(_fill(tmp_path)).rows()
    assert len(rows) == 27
    assert (rows[0].method, rows[0].seed, rows[0].task, rows[0].direction, rows[0].main) == ("single", 0, "seg", "max", True)
    lines = (tmp_path / "ledger.jsonl").read_text("utf-8").splitlines()
    assert set(json.loads(lines[0])) == {
        "method",
        "seed",
        "task",
        "metric",
        "value",
        "direction",
        "selection",
        "seconds",
        "memory",
        "main",
    }


def test_the_same_row_twice_is_one_and_another_value_is_an_error(tmp_path: Path) -> None:
    """A rerun may log again; a second, different result under the same name would let one choose the better."""
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    row: dict[str, Any] = {"method": "nash", "seed": 0, "task": "seg", "metric": "accuracy", "value": 0.5, "selection": RULE}
    ledger.log(**row)
    other.log(**row)
    assert len(ledger.rows()) == 1
    with pytest.raises(BadInput, match=r"nash, seed 0, seg, accuracy is both 0.5 and 0.6; give the second run another"):
        other.log(**{**row, "value": 0.6})
    with pytest.raises(BadInput, match="as main and as not main"):
        other.log(**{**row, "main": False})
    assert [r.value for r in Ledger(tmp_path).rows()] == [0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "value is not finite"),
        ({"value": "0.5"}, "value must be a number, not '0.5'"),
        ({"value": True}, "value must be a number"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"seed": True}, "seed must be a whole number"),
        ({"method": ""}, "method must be a word"),
        ({"selection": None}, "selection must be a word; give selection="),
        ({"metric": "delta1"}, "which direction of metric 'delta1' is better is not known; give direction="),
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"direction": "min"}, "metric 'accuracy' is better at its max, not min"),
        ({"seconds": float("inf")}, "seconds is not finite"),
        ({"main": "yes"}, "main must be true or false"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row: dict[str, Any] = {"method": "nash", "seed": 0, "task": "seg", "metric": "accuracy", "value": 0.5, "selection": RULE}
    with pytest.raises(BadInput, match=re.escape(message)):
        Ledger(tmp_path / "run").log(**{**row, **change})
    assert not (tmp_path / "run").exists()


def test_tensors_and_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    import torch

    ledger = Ledger(tmp_path)
    ledger.log(method="a", seed=np.int64(3), task="t", metric="mae", value=torch.tensor(0.25), selection=RULE)  # type: ignore[arg-type]
    assert ledger.rows()[0].value == 0.25


def test_own_metrics_need_and_keep_a_direction(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.log(method="a", seed=0, task="t", metric="within 11.25", value=0.3, direction="max", selection=RULE)
    assert Ledger(tmp_path).rows()[0].direction == "max"


def test_a_torn_last_line_is_dropped_by_the_next_writer_only(tmp_path: Path) -> None:
    """kill -9 in the middle of a write: the whole lines stay, and the next row is not glued to the fragment."""
    _fill(tmp_path)
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"method": "na')
    assert len(Ledger(tmp_path).rows()) == 27
    assert path.read_bytes().endswith(b'"na')
    Ledger(tmp_path).log(method="late", seed=0, task="seg", metric="accuracy", value=0.1, selection=RULE)
    assert path.read_bytes().startswith(whole)
    assert len(Ledger(tmp_path).rows()) == 28


def test_a_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    """Editors that write no final newline must not cost the last row."""
    _fill(tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(Ledger(tmp_path).rows()) == 27
    Ledger(tmp_path).log(method="late", seed=0, task="seg", metric="accuracy", value=0.1, selection=RULE)
    assert len(Ledger(tmp_path).rows()) == 28


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{]", "line 28: is not a ledger row; remove the line or mend it"),
        ("[1]", "line 28: is not a ledger row"),
        ('{"methd": "a"}', "line 28: unknown field 'methd'; did you mean 'method'?"),
        ("[" * 5000, "line 28: is not a ledger row"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    _fill(tmp_path)
    with (tmp_path / "ledger.jsonl").open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(BadInput) as caught:
        Ledger(tmp_path).rows()
    assert message in str(caught.value)


def _write_many(folder: Path, worker: int) -> None:
    ledger = Ledger(folder)
    for seed in range(25):
        ledger.log(method=f"m{worker}", seed=seed, task="t", metric="mae", value=seed / 7, selection=RULE)


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path, i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = Ledger(tmp_path).rows()
    assert len(rows) == 100
    assert {row.value for row in rows} == {seed / 7 for seed in range(25)}


def test_table_values_by_hand(tmp_path: Path) -> None:
    rows = Ledger(_fill(tmp_path)).rows()
    made = table([tmp_path], reference="single")
    nash = next(line for line in made.lines if line.method == "nash")
    values = [row.value for row in rows if row.method == "nash" and row.metric == "mae"]
    assert nash.cells["depth", "mae"] == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    mean = {
        m: {
            t: {k: np.mean([r.value for r in rows if (r.method, r.task, r.metric) == (m, t, k)])}
            for t, k in (("seg", "accuracy"), ("depth", "mae"))
        }
        for m in ("single", "nash")
    }
    assert nash.delta == pytest.approx(delta("mean-relative", mean["nash"], mean["single"], {"accuracy": "max", "mae": "min"}))
    assert [line.rank for line in made.lines] == [3, 2, 1]
    assert nash.seconds == 180
    assert np.isnan(nash.memory)


@pytest.mark.parametrize("name", ["mean-relative", "per-task-mean", "all-metrics", "error-reduction"])
def test_every_convention_prints_its_formula_and_sign(tmp_path: Path, name: str) -> None:
    made = table([_fill(tmp_path)], reference="single", delta=name)
    text = made.render("md")
    assert f"Δm ({name}) = {CONVENTIONS[name].formula}" in text
    assert CONVENTIONS[name].sign in text
    better = made.lines[-1].delta
    assert (better > 0) == CONVENTIONS[name].higher


def test_five_seeds_cannot_speak_and_the_table_says_so(tmp_path: Path) -> None:
    text = table([_fill(tmp_path, seeds=5)], reference="single").render("md")
    assert "With 5 paired seeds a two-sided sign-flip test cannot fall below 0.0625, and Holm over 2 methods" in text
    assert "makes that 0.125" in text
    assert "no difference in this table can be called significant at 0.05, however large; 7 seeds would be the least" in text


def test_a_rank_over_more_than_the_main_metrics_says_so(tmp_path: Path) -> None:
    """Beside a Δm of main metrics alone, it would be read as one of the same."""
    assert "The mean rank is over all 3 metrics" in table([_fill(tmp_path / "a")], reference="single").render("md")
    ledger = Ledger(tmp_path / "b")
    for method, value in (("single", 0.5), ("nash", 0.6)):
        ledger.log(method=method, seed=0, task="seg", metric="accuracy", value=value, selection=RULE)
    assert "mean rank is over" not in table([tmp_path / "b"], reference="single").render("md")


def test_seven_seeds_can(tmp_path: Path) -> None:
    made = table([_fill(tmp_path, seeds=7)], reference="single")
    assert [line.p for line in made.lines[1:]] == pytest.approx([2 / 2**7] * 2)
    assert "equal, nash differ from 'single' at 0.05" in made.sentences[1]


def test_seeds_that_are_not_shared_are_not_paired(tmp_path: Path) -> None:
    _fill(tmp_path)
    ledger = Ledger(tmp_path)
    for task, metric in (("seg", "accuracy"), ("seg", "macro_auc"), ("depth", "mae")):
        ledger.log(method="other", seed=99, task=task, metric=metric, value=0.5, selection=RULE, main=metric != "macro_auc")
    made = table([tmp_path], reference="single")
    other = made.lines[-1]
    assert (other.paired, np.isnan(other.p), np.isnan(other.delta_sd)) == (0, True, True)
    assert any("No test for other: fewer than two seeds in common" in sentence for sentence in made.sentences)


def test_an_undefined_delta_is_not_tested_and_says_why(tmp_path: Path) -> None:
    """R² below 0 has no relative change; "no method differs" would be a false comfort."""
    ledger = Ledger(tmp_path)
    for method, value in (("single", -0.1), ("nash", 0.3)):
        for seed in range(8):
            ledger.log(method=method, seed=seed, task="t", metric="r2", value=value + 0.01 * seed, selection=RULE)
    made = table([tmp_path], reference="single")
    assert any("No Δm and no test for nash: it is not defined" in sentence for sentence in made.sentences)
    assert not any("differ" in sentence for sentence in made.sentences)
    assert table([tmp_path], reference="single", delta="error-reduction").lines[1].p == pytest.approx(2 / 2**8)


def test_main_metric_may_be_logged_last(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for method, accuracy, auc in (("single", 0.5, 0.8), ("nash", 0.6, 0.8)):
        for metric, value, main in (("macro_auc", auc, False), ("accuracy", accuracy, True)):
            ledger.log(method=method, seed=0, task="seg", metric=metric, value=value, selection=RULE, main=main)
        ledger.log(method=method, seed=0, task="aux", metric="mae", value=1.0, selection=RULE, main=False)
    made = table([tmp_path], reference="single")
    assert made.lines[1].delta == pytest.approx(20)
    assert list(made.directions) == [("seg", "accuracy"), ("seg", "macro_auc")]


def test_markdown_latex_and_csv(tmp_path: Path) -> None:
    made = table([_fill(tmp_path)], reference="single")
    md = made.render("md").splitlines()
    assert len({line.count("|") for line in md[:5]}) == 1
    assert "**" in md[4]
    assert "**" not in md[2]
    tex = made.render("latex")
    assert tex.count(r"\\") == 4
    assert "macro\\_auc" in tex
    rows = list(csv.DictReader(io.StringIO(made.render("csv"))))
    assert len(rows) == 9
    assert float(rows[-1]["delta"]) == pytest.approx(made.lines[-1].delta)
    with pytest.raises(BadInput, match="unknown format 'html'"):
        made.render("html")
    assert FORMATS == ("md", "latex", "csv")


def test_paper_paragraph_names_protocol_and_what_it_cannot_cite(tmp_path: Path) -> None:
    made = table([_fill(tmp_path, methods=("single", "equal", "my own method"))], reference="single")
    text = made.render("md", paper=True)
    assert f"“{RULE}”" in text
    assert "3 seeds" in text
    assert re.search(r"No citation is known for: .*my own method", text)
    with pytest.raises(BadInput, match="CSV has no place"):
        made.render("csv", paper=True)


def test_paper_paragraph_gives_bibtex_of_catalog_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pluribus import catalog

    paper = catalog.Paper("Multi-Task Learning as a Bargaining Game", 2022, bibtex="@inproceedings{navon2022, year={2022}}")
    entry = catalog.Entry("Nash_MTL", "train", "balancer", "x:y", paper=paper)
    monkeypatch.setattr(catalog, "entries", lambda **_: [entry])
    text = table([_fill(tmp_path, methods=("single", "nash-mtl"))], reference="single").render("latex", paper=True)
    assert "@inproceedings{navon2022" in text


def test_a_studys_results_are_a_ledger_too(tmp_path: Path) -> None:
    rows = Ledger(_fill(tmp_path / "a")).rows()
    frame = pd.DataFrame([vars(row) for row in rows])
    (tmp_path / "b").mkdir()
    frame.to_parquet(tmp_path / "b" / "results.parquet")
    assert table([tmp_path / "b"], reference="single") == table([tmp_path / "a"], reference="single")
    assert table([tmp_path / "a", tmp_path / "b"], reference="single").lines[0].seeds == 3  # the same rows: no contradiction
    frame.assign(value=frame["value"] + 1).to_parquet(tmp_path / "b" / "results.parquet")
    with pytest.raises(BadInput, match="is both"):
        table([tmp_path / "a", tmp_path / "b"], reference="single")


Make = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: table([p / "nowhere"], reference="single"), "no such run"),
        (lambda p: table([p], reference="single"), "holds neither ledger.jsonl nor results.parquet"),
        (lambda p: table([_fill(p)], reference="singel"), "unknown reference 'singel'; did you mean 'single'?"),
        (lambda p: table([_fill(p)], reference="single", delta="delta"), "unknown Δm convention 'delta'"),
        (lambda p: table([_fill(p)], reference="single", delta="relaimpr"), "relaimpr compares AUCs"),
        (lambda p: table([], reference="single"), "the ledger is empty"),
        (lambda p: Ledger(_fill(p) / "ledger.jsonl"), "is not a folder"),
    ],
)
def test_bad_runs_are_one_clear_line(tmp_path: Path, make: Make, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        make(tmp_path)


@pytest.mark.parametrize("format", ["md", "latex", "csv"])
def test_a_method_that_lacks_a_task_has_no_rank_and_no_delta(tmp_path: Path, format: str) -> None:
    """A champion of some tasks must neither be compared on other tasks than the rest nor keep the rest from being compared."""
    _fill(tmp_path)
    without = {line.method: line for line in table([tmp_path], reference="single").lines}
    Ledger(tmp_path).log(method="half", seed=0, task="seg", metric="accuracy", value=0.5, selection=RULE)
    made = table([tmp_path], reference="single")
    half = next(line for line in made.lines if line.method == "half")
    assert list(half.cells) == [("seg", "accuracy")]
    assert all(math.isnan(value) for value in (half.rank, half.delta, half.p, half.p_holm))
    for line in made.lines:
        if line.method != "half":
            old = without[line.method]
            assert (line.delta, line.rank, line.paired) == (old.delta, old.rank, old.paired)
            assert line.p_holm == old.p_holm or math.isnan(old.p_holm)
    assert "half (" in made.sentences[-1]
    assert "half" in made.render(format, paper=format != "csv")


def test_a_reference_that_lacks_a_task_is_named(tmp_path: Path) -> None:
    _fill(tmp_path)
    Ledger(tmp_path).log(method="half", seed=0, task="seg", metric="accuracy", value=0.5, selection=RULE)
    with pytest.raises(BadInput, match="the reference 'half' lacks"):
        table([tmp_path], reference="half")


def test_one_metric_with_two_directions_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.log(method="a", seed=0, task="t", metric="score", value=1.0, direction="max", selection=RULE)
    ledger.log(method="a", seed=1, task="t", metric="score", value=1.0, direction="min", selection=RULE)
    with pytest.raises(BadInput, match="logged with both directions"):
        table([tmp_path], reference="a")


def test_an_undefined_delta_is_explained_where_one_seed_ran(tmp_path: Path) -> None:
    """A dash without a reason: a reference at 0 has no relative change, however many seeds there are."""
    ledger = Ledger(tmp_path)
    for method, value in (("single", 0.0), ("nash", 0.3)):
        ledger.log(method=method, seed=0, task="t", metric="auc", value=value, selection=RULE)
    made = table([tmp_path], reference="single")
    assert any("No Δm and no test for nash" in sentence for sentence in made.sentences)


def test_the_protocol_claims_no_test_that_was_not_made(tmp_path: Path) -> None:
    """One seed: a paper that says "tested by sign flips" and "mean ± standard deviation" would be false."""
    ledger = Ledger(tmp_path)
    for method, value in (("single", 0.5), ("nash", 0.6)):
        ledger.log(method=method, seed=0, task="t", metric="auc", value=value, selection=RULE)
    made = table([tmp_path], reference="single").render("md", paper=True)
    assert "were tested" not in made
    assert "standard deviation" not in made
    assert "Every figure is of one seed." in made


@pytest.mark.parametrize("name", ["nash", "Nash", "NashMTL", "nash_mtl", "nash-mtl"])
def test_a_method_is_cited_by_its_name_or_its_class(tmp_path: Path, name: str) -> None:
    """Whoever logs the name that they imported would get no citation."""
    ledger = Ledger(tmp_path)
    for method, value in (("single", 0.5), (name, 0.6)):
        ledger.log(method=method, seed=0, task="t", metric="auc", value=value, selection=RULE)
    assert "navon2022multi" in table([tmp_path], reference="single").render("md", paper=True)


def test_rows_that_contradict_each_other_in_rule_or_cost_are_refused(tmp_path: Path) -> None:
    """The second rule would vanish without a word; time below nothing would enter the mean."""
    ledger = Ledger(tmp_path)
    row = {"method": "nash", "seed": 0, "task": "t", "metric": "auc", "value": 0.7}
    ledger.log(**row, selection=RULE)
    with pytest.raises(BadInput, match="is selected by"):
        ledger.log(**row, selection="the last one")
    for name in ("seconds", "memory"):
        with pytest.raises(BadInput, match=f"{name} is below 0"):
            ledger.log(**{**row, "seed": 1}, selection=RULE, **{name: -1.0})
    assert len(ledger.rows()) == 1


def test_a_change_of_nothing_has_no_sign(tmp_path: Path) -> None:
    """ "-0 %" reads as a loss."""
    ledger = Ledger(tmp_path)
    for method in ("single", "nash"):
        for seed, value in enumerate((0.5, 0.6)):
            ledger.log(method=method, seed=seed, task="t", metric="auc", value=value, selection=RULE)
    assert "-0 ±" not in table([tmp_path], reference="single", delta="all-metrics").render("md")


def test_a_run_tells_its_seconds_in_any_of_its_rows(tmp_path: Path) -> None:
    """A loop that logs the time of a run once lost it to the row logged last."""
    ledger = Ledger(tmp_path)
    for seed, seconds in ((0, 10.0), (1, 20.0)):
        ledger.log(method="single", seed=seed, task="a", metric="auc", value=0.7, selection=RULE, seconds=seconds, memory=5.0)
        ledger.log(method="single", seed=seed, task="b", metric="auc", value=0.6, selection=RULE)
    line = table([tmp_path], reference="single").lines[0]
    assert (line.seconds, line.memory) == (15.0, 5.0)


@pytest.mark.parametrize("name", list(CONVENTIONS))
def test_latex_is_set_as_mathematics(tmp_path: Path, name: str) -> None:
    """What goes into a paper: no hyphen for a minus, the formula in math mode, braces and dollars in pairs, nothing raw."""
    ledger = Ledger(tmp_path)
    for seed in range(2):
        for method, value in (("single", 0.9), ("a|b <c> 50%_x", 0.7)):
            ledger.log(method=method, seed=seed, task="t", metric="auc", value=value, selection="best & last")
    told = table([tmp_path], reference="single", delta=name).render("latex", paper=True)
    body, _, protocol = told.partition("\n\nProtocol.")
    row = next(line for line in body.splitlines() if line.startswith("a"))
    assert row.startswith(r"a\textbar{}b \textless{}c\textgreater{} 50\%\_x & 2 & 0.7")
    assert ("& $-$" in row) == CONVENTIONS[name].higher
    assert not re.search(r"& -\d", row)
    assert CONVENTIONS[name].tex in protocol
    assert r"$\Delta_m$" in protocol
    assert protocol.isascii()
    for text in (row, protocol):
        assert text.count("$") % 2 == 0
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_names_of_several_lines_and_endless_numbers_are_refused(tmp_path: Path) -> None:
    """The first would tear the table, the second ended reading with a traceback."""
    row = {"method": "nash", "seed": 0, "task": "t", "metric": "auc", "value": 0.7, "selection": RULE}
    for name in ("method", "task", "metric", "selection"):
        with pytest.raises(BadInput, match=f"{name} .* runs over several lines"):
            Ledger(tmp_path).log(**{**row, name: "two\nlines"})
    with pytest.raises(BadInput, match="value is not finite"):
        Ledger(tmp_path).log(**{**row, "value": 10**400})
    assert not (tmp_path / "ledger.jsonl").exists()
