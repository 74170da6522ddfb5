"""The study end to end: what it leaves, that it can be trusted, stopped and gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pluribus
from pluribus.errors import BadInput
from pluribus.evaluation.verdict import WORDS
from pluribus.study import open_run

PLURIBUS = [sys.executable, "-m", "pluribus"]


def test_everything_is_written(finished: Any) -> None:
    """report.html, results.parquet, study.yaml, log.jsonl, choice.json, verdict.json, split.parquet and model/."""
    _, result = finished
    for name in ("report.html", "report.json", "results.parquet", "study.yaml", "log.jsonl", "choice.json", "split.parquet"):
        assert (result.folder / name).is_file(), name
    assert (result.folder / "model" / "pluribus.json").is_file()
    rows = pd.read_parquet(result.folder / "results.parquet")
    assert list(rows.columns) == [
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
    ]
    assert set(rows["method"]) == {"single_networks", "lightgbm_per_task", "shared_bottom_equal", "shared_bottom_uncertainty"}
    assert set(rows.loc[rows["task"] == "default", "metric"]) >= {"gini", "auc", "logloss"}


def test_weights_are_stored_once(finished: Any) -> None:
    """The model's weights are other names of the trial's files, which goes on when either folder is removed."""
    _, result = finished
    weights = [f for f in (result.folder / "model").rglob("*") if f.suffix in (".safetensors", ".txt")]
    assert weights
    assert all(f.stat().st_nlink > 1 for f in weights)


def test_choice_stands_before_the_test_is_opened(finished: Any) -> None:
    """If this fails, what is claimed on test may have been chosen on it."""
    _, result = finished
    events = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    texts = [event.get("text", "") for event in events]
    chosen = next(i for i, text in enumerate(texts) if text.startswith("chosen on validation"))
    opened = next(i for i, text in enumerate(texts) if text.startswith("the test split is opened"))
    assert chosen < opened
    assert (result.folder / "choice.json").stat().st_mtime_ns <= (result.folder / "verdict.json").stat().st_mtime_ns


def test_verdict_speaks_of_every_task(finished: Any) -> None:
    study, result = finished
    for comparison in result.verdict.comparisons:
        assert {row.task for row in comparison.tasks} == {task.name for task in study.table.tasks}
        assert {row.word for row in comparison.tasks} <= set(WORDS)
    assert [c.reference for c in result.verdict.comparisons] == ["best specialists", "same-encoder specialists"]


def test_importance_is_of_the_model_that_is_left(finished: Any) -> None:
    """Shares of every task and input, the same again from the folder; the planted inputs come first."""
    study, result = finished
    held = json.loads((result.folder / "report.json").read_text())["importance"]
    rows = study.learnable.parts["valid"]
    assert len(rows) <= 500
    again = result.model.importance(study.learnable, dict.fromkeys(held, rows))
    assert list(held) == ["default", "prepay", "loss", "calls"]
    for name, each in held.items():
        assert each["rows"] == len(rows)
        assert each["shares"] == pytest.approx(again[name].shares)
    assert {max(held[name]["shares"], key=held[name]["shares"].get) for name in ("default", "loss")} == {"a"}
    assert max(held["prepay"]["shares"], key=held["prepay"]["shares"].get) == "c"


def test_new_groups_have_a_line(finished: Any) -> None:
    """A time split leaves customers in both parts: what holds for new ones is said apart, from the same words."""
    study, result = finished
    (line,) = [note for note in result.verdict.notes if note.startswith("New groups only")]
    new, rows = len(study.split.new_groups), len(study.split.parts["test"])
    assert line.startswith(f"New groups only ({new} of {rows} test rows, exploratory): ")
    assert 0 < new < rows
    assert any(word in line for word in ("undecided", "not decided", "better", "worse", "as good", "replace"))
    assert line in json.loads((result.folder / "report.json").read_text())["notes"]


def test_model_predicts_rows_in_order(finished: Any, loans: pd.DataFrame) -> None:
    """The saved model gives every row's prediction wherever the row stands, and a subset of tasks is a subset of columns."""
    _, result = finished
    model = pluribus.load(result.folder / "model")
    inputs = loans.drop(columns=["default", "prepay", "loss", "calls"])
    whole = model.predict(inputs)
    assert {"default", "default__p", "prepay", "prepay__p", "loss", "calls"} == set(whole.columns)
    mixed = inputs.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(model.predict(mixed).loc[whole.index], whole, rtol=1e-6)
    only = model.predict(inputs, tasks=["loss"])
    assert list(only.columns) == ["loss"]
    np.testing.assert_allclose(only["loss"], whole["loss"], rtol=1e-6)


def test_test_score_is_the_models(finished: Any, loans: pd.DataFrame) -> None:
    """The figure in results.parquet is what the deployed model earns on the test rows: no leak on the way."""
    from sklearn.metrics import roc_auc_score

    study, result = finished
    if result.choice["recommended"] != "one model":
        pytest.skip("specialists were recommended")
    test = study.split.parts["test"]
    cells = study.data.labelled("default", "test")
    p = result.model.predict(loans.iloc[test])["default__p"].to_numpy()
    value = 2 * roc_auc_score(cells.values, p[np.searchsorted(test, cells.rows)], sample_weight=cells.weight) - 1
    rows = pd.read_parquet(result.folder / "results.parquet")
    winner = result.choice["winner"]
    seed = int(result.choice["trials"][winner].rsplit("s", 1)[1])
    rows = rows[(rows["method"] == winner) & (rows["task"] == "default") & (rows["metric"] == "gini")]
    picked = rows[rows["seed"] == seed]
    assert picked["value"].item() == pytest.approx(value, abs=1e-6)


def test_swapped_predictions_swap_the_words(finished: Any) -> None:
    """The verdict is computed from the predictions: exchange the two sides and better becomes worse."""
    from pluribus.evaluation.verdict import judge
    from pluribus.study.selection import truth_of
    from pluribus.study.trial import constants

    study, _ = finished
    data = study.data
    truth, units = truth_of(data, "test")
    rng = np.random.default_rng(0)
    good, poor = {}, {}
    for task in data.tasks:  # both sides have skill, for a reference without skill leaves the word undecided
        y = truth[task.name].target
        near = {"binary": 0.8 * y + 0.1, "count": y + 0.02}.get(task.kind, y)
        noise = {"binary": 0.3, "count": 0.3}.get(task.kind, 0.4 * y.std())
        good[task.name] = [near + 0.001 * rng.random(len(y)) for _ in range(3)]
        poor[task.name] = [near + noise * rng.random(len(y)) for _ in range(3)]
        if task.kind == "binary":
            poor[task.name] = [np.clip(near + noise * rng.normal(size=len(y)), 0, 1) for _ in range(3)]
    kwargs = {"constants": constants(data), "unit": "row", "repeats": 200}
    rows = np.arange(len(units))
    ahead = judge(data.tasks, truth, rows, good, {"r": poor}, **kwargs).comparisons[0]
    behind = judge(data.tasks, truth, rows, poor, {"r": good}, **kwargs).comparisons[0]
    assert {row.word for row in ahead.tasks} <= {"better", "undecided"}
    for a, b in zip(ahead.tasks, behind.tasks):
        assert (a.word, b.word) in {("better", "worse"), ("undecided", "undecided")}, (a, b)
        assert a.gain.file.value == pytest.approx(-b.gain.file.value)
    assert "better" in {row.word for row in ahead.tasks}
    assert ahead.headline != behind.headline


def test_command_line_and_python_agree(finished: Any, loans_file: Path, loans: pd.DataFrame, tmp_path: Path) -> None:
    """The same settings give the same choice.json and predictions to 1e-6, through a shell and two workers."""
    _, result = finished
    words = ["study", str(loans_file), "--id", "loan", "--group", "customer", "--split", "time:opened", "--weight", "exposure"]
    for target in ("default", "prepay", "loss:regression", "calls:count"):
        words += ["--target", target]
    (tmp_path / "s.yaml").write_text(
        f"table: {loans_file}\nid: loan\ngroup: customer\nsplit: time:opened\nweight: exposure\n"
        "targets: [default, prepay, 'loss:regression', 'calls:count']\nmetrics: {default: gini}\n"
        "budget: 600s\nseeds: 2\nconfigurations: 1\nrepeats: 200\nname: loans\n"
        "candidates: [single_networks, lightgbm_per_task, lightgbm_pooled, shared_bottom_equal, shared_bottom_uncertainty]\n"
    )
    done = subprocess.run([*PLURIBUS, "study", "s.yaml", "--jobs", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    other = open_run(tmp_path / "runs" / "loans")
    assert other.choice == result.choice
    pd.testing.assert_frame_equal(other.model.predict(loans), result.model.predict(loans), rtol=1e-6)


def test_finished_run_is_not_trained_again(finished: Any) -> None:
    study, result = finished
    before = (result.folder / "model" / "pluribus.json").stat().st_mtime_ns
    again = study.run()
    assert again.choice == result.choice
    assert (result.folder / "model" / "pluribus.json").stat().st_mtime_ns == before


def test_other_settings_need_another_name(finished: Any, loans: pd.DataFrame) -> None:
    from pluribus.study import Study

    study, _ = finished
    other = Study(loans, ["loss"], folder=study.folder.parent, name="loans", jobs=1)
    with pytest.raises(BadInput, match=r"loans: holds a run with other settings or data; choose another --name"):
        other.run()


SCRIPT = """
import sys
import pandas as pd
from pluribus.study import Study
if __name__ == "__main__":
    study = Study(sys.argv[1], ["default", "loss:regression"], folder=sys.argv[2], jobs=2, id="loan", split="time:opened",
                  ignore=["prepay", "calls"], budget="600s", seeds=2, configurations=1, repeats=200, name="k",
                  candidates=["lightgbm_per_task", "shared_bottom_equal"])
    study.run()
"""


@pytest.mark.timeout(600)  # four runs in processes of their own, each with its imports
def test_killed_three_times_it_still_ends(loans_file: Path, tmp_path: Path) -> None:
    """kill -9 at random moments of its work: finished trials are kept, no half file is believed, the end equals an unkilled
    run's."""
    script = tmp_path / "go.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(loans_file)]
    rng = random.Random(0)
    trials = tmp_path / "killed" / "k" / "work" / "trials"
    kept = []
    for finished in range(3):  # trials, when the blow falls
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if trials.exists() and len(list(trials.glob("final-*/result.json"))) >= finished:
                break
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept.append(sorted(p.name for p in trials.glob("final-*")))
    assert all(set(a) <= set(b) for a, b in pairwise(kept)), "a finished trial was lost"
    for folder in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / folder)], check=True, capture_output=True)
    choices = [json.loads((tmp_path / folder / "k" / "choice.json").read_text()) for folder in ("killed", "whole")]
    assert choices[0] == choices[1]
    assert not list((tmp_path / "killed" / "k").rglob("*.tmp/result.json"))


def test_openings_of_the_test_are_counted(study_of: Any, loans: pd.DataFrame) -> None:
    """The same test rows opened by two runs of one folder count twice."""
    small = {"candidates": ["lightgbm_per_task", "shared_bottom_equal"], "seeds": 1}
    counts = []
    for name in ("one", "two"):
        study = study_of(loans, ["default", "loss:regression"], ignore=["prepay", "calls"], name=name, **small)
        result = study.run()
        counts.append(json.loads((result.folder / "report.json").read_text())["openings"])
    assert counts == [1, 2]


def test_champion_enters_as_a_specialist(study_of: Any, loans: pd.DataFrame, tmp_path: Path) -> None:
    """A perfect champion must become the reference of its task, and the one model then is not recommended over it."""
    truth = loans["loss"].to_numpy()
    pd.DataFrame({"loan": loans["loan"], "loss": truth}).to_parquet(tmp_path / "champion.parquet")
    study = study_of(
        loans,
        ["default", "loss:regression"],
        ignore=["prepay", "calls"],
        seeds=1,
        name="champion",
        candidates=["lightgbm_per_task", "shared_bottom_equal"],
        champion=str(tmp_path / "champion.parquet"),
    )
    result = study.run()
    assert result.choice["specialists"]["loss"] == "champion"
    assert result.verdict.comparisons[0].of("loss").word in ("worse", "undecided")
    assert result.verdict.comparisons[0].of("loss").gain.file.value < 0
    assert any("cannot be checked" in note for note in result.verdict.notes)
    assert set(result.model.predict(loans).columns) == {"default", "default__p", "loss"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.iloc[:300], "has no prediction of 'loss' for"),
        (lambda f: f.rename(columns={"loss": "losss"}), "holds predictions of none of the tasks"),
        (lambda f: f.rename(columns={"loan": "id"}), "no id column 'loan'"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "twice"),
    ],
)
def test_bad_champions(study_of: Any, loans: pd.DataFrame, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "champion.parquet"
    change(loans[["loan", "loss"]]).to_parquet(path)
    with pytest.raises(BadInput, match=message):
        study_of(loans, ["loss:regression", "default"], champion=str(path), name="c").plan()


def test_committee_is_one_artefact(finished: Any, loans: pd.DataFrame, tmp_path: Path) -> None:
    """A committee saves, loads and predicts like its members."""
    from pluribus.study.committee import Committee

    study, result = finished
    trials = result.folder / "work" / "trials"
    members = {
        name: pluribus.load(trials / result.choice["trials"][name] / "model")
        for name in ("lightgbm_per_task", "shared_bottom_equal")
    }
    answers = dict.fromkeys(("default", "prepay"), "lightgbm_per_task") | dict.fromkeys(("loss", "calls"), "shared_bottom_equal")
    Committee(study.table.tasks, study.data.columns, members, answers).save(tmp_path / "c")
    found = pluribus.load(tmp_path / "c").predict(loans)
    np.testing.assert_allclose(found["loss"], members["shared_bottom_equal"].predict(loans)["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["default__p"], members["lightgbm_per_task"].predict(loans)["default__p"], rtol=1e-9)
    costs = pluribus.load(tmp_path / "c").costs()
    assert costs.parameters == sum(member.costs().parameters for member in members.values())


def test_long_layout(tmp_path: Path) -> None:
    """Each row belongs to one task: pooled trees run there, and every task gets its own verdict."""
    from pluribus.study import Study

    rng = np.random.default_rng(0)
    n = 900
    x = rng.normal(size=(n, 3))
    school = rng.choice(["s1", "s2", "s3"], n)
    shift = pd.Series(school).map({"s1": 0.0, "s2": 1.0, "s3": -1.0}).to_numpy()
    frame = pd.DataFrame(x, columns=["x", "y", "z"]).assign(school=school, score=2 * x[:, 0] + shift + rng.normal(size=n))
    study = Study(
        frame,
        ["score:regression"],
        task_column="school",
        folder=tmp_path,
        name="long",
        jobs=1,
        budget="600s",
        seeds=1,
        configurations=1,
        repeats=200,
    )
    result = study.run()
    assert {row.task for row in result.verdict.comparisons[0].tasks} == {"s1", "s2", "s3"}
    assert "lightgbm_pooled" in result.choice["rules"]
