"""Studies of checkpoints, end to end on small transformers classifiers: what is chosen, judged, written, served and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pluribus import load
from pluribus.cli import run
from pluribus.errors import BadInput
from pluribus.evaluation.verdict import Verdict
from pluribus.merging.bundle import bundle
from pluribus.study.checkpoints import METHODS, CheckpointsStudy, parse
from pluribus.study.checkpoints import load as load_spec
from pluribus.study.paired import Scored, compare_scores

transformers = pytest.importorskip("transformers", reason="the extra 'text' is not installed")

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
TASKS = {"cars": 2, "birds": 3}

EVALUATOR = '''
"""Accuracy on rows of token ids whose labels a file holds."""
import pandas as pd
import torch
from pathlib import Path

def accuracy(model, task, split):
    rows = pd.read_parquet(split)
    (Path(__file__).parent / "asked.txt").open("a").write(f"{task} {Path(split).stem}\\n")
    ids = torch.tensor([list(row) for row in rows["ids"]])
    found = model(input_ids=ids).logits.argmax(-1).numpy()
    frame = pd.DataFrame({"id": rows["id"], "score": (found == rows["label"]).astype(float)})
    return frame.assign(group=rows["author"]) if "author" in rows else frame
'''


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two experts that moved a little and agree with nine labels in ten, their data, a study file and an evaluator."""
    home = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    base = transformers.BertModel(transformers.BertConfig(**SIZES))
    base.save_pretrained(home / "base")
    experts = {}
    for task, classes in TASKS.items():
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=classes)).eval()
        with torch.no_grad():
            for own, shared in zip(model.bert.parameters(), base.parameters()):
                own.copy_(shared + 0.05 * torch.randn_like(shared))
            model.classifier.weight.normal_()
        model.save_pretrained(home / task)
        for split, count in (("valid", 120), ("test", 150)):
            ids = torch.from_numpy(rng.integers(5, 30, (count, 8)))
            with torch.no_grad():
                label = model(input_ids=ids).logits.argmax(-1).numpy()
            noise = rng.random(count) < 0.1
            frame = pd.DataFrame(
                {
                    "id": [f"{task}-{i}" for i in range(count)],
                    "ids": ids.tolist(),
                    "label": np.where(noise, (label + 1) % classes, label),
                }
            )
            if task == "birds":
                frame["author"] = [f"a{i % 40}" for i in range(count)]
            frame.to_parquet(home / f"{task}-{split}.parquet")
        experts[task] = {
            "path": task,
            "metric": "accuracy",
            "direction": "max",
            "valid": f"{task}-valid.parquet",
            "test": f"{task}-test.parquet",
        }
    (home / "checkpoints.yaml").write_text(
        yaml.safe_dump({"schema_version": 1, "kind": "checkpoints", "base": "base", "experts": experts}, sort_keys=False), "utf-8"
    )
    (home / "mine.py").write_text(EVALUATOR, "utf-8")
    return home


@pytest.fixture(scope="module", name="done")
def _done(home: Path) -> Path:
    """The study, run through a shell."""
    (home / "asked.txt").unlink(missing_ok=True)
    command = [sys.executable, "-m", "pluribus", "study", "checkpoints.yaml", "--evaluate", "mine.py:accuracy"]
    said = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "cars" in said.stdout
    return home / "runs" / "checkpoints"


def _evaluate(home: Path) -> Any:
    from pluribus.study.checkpoints import code_of

    return code_of(f"{home / 'mine.py'}:accuracy")[0]


def test_everything_is_there(done: Path) -> None:
    """Every road is scored on both splits, with memory and latency; the ledger has a row a road and task."""
    summary = json.loads((done / "report.json").read_text())
    assert set(summary["candidates"]) == {"experts", *METHODS}
    assert not summary["failed"]
    results = pd.read_parquet(done / "results.parquet")
    assert len(results) == 7 * 2
    assert list(results.columns) == [
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
    for row in summary["candidates"].values():
        assert 0 < row["latency"]["p50"] <= row["latency"]["p99"]
    stored = {name: row["bytes"] for name, row in summary["candidates"].items()}
    assert stored["average"] < stored["emr"] < stored["experts"]
    assert stored["average"] == stored["ties"] < stored["lora"]
    page = (done / "report.html").read_text("utf-8")
    for word in ("Quality against memory", "Every road", "task_arithmetic", "p99"):
        assert word in page


def test_figures_are_the_evaluators(done: Path, home: Path) -> None:
    """A road's test figure is what the evaluator says of its model, built here anew."""
    results = pd.read_parquet(done / "results.parquet").set_index(["method", "task"])["value"]
    evaluate = _evaluate(home)
    for task in TASKS:
        split = str(home / f"{task}-test.parquet")
        expert = transformers.AutoModelForSequenceClassification.from_pretrained(home / task).eval()
        assert evaluate(expert, task, split)["score"].mean() == results["experts", task]
        model = transformers.AutoModelForSequenceClassification.from_pretrained(home / task).eval()
        model.load_state_dict(bundle(home / "base", {t: home / t for t in TASKS}, "tsv_m").state(task))
        assert evaluate(model, task, split)["score"].mean() == results["tsv_m", task]


def test_valid_chooses_and_test_is_asked_after(done: Path, home: Path) -> None:
    """The choice is the smallest road within 2 % on every task of the valid split; no test row is scored before."""
    summary, choice = (json.loads((done / f"{name}.json").read_text()) for name in ("report", "choice"))
    rows = summary["candidates"]
    good = [name for name in METHODS if all(rows[name]["valid"][t] >= 0.98 * rows["experts"]["valid"][t] - 1e-12 for t in TASKS)]
    if good:
        assert choice["recommended"] == "one model"
        assert rows[choice["winner"]]["bytes"] == min(rows[name]["bytes"] for name in good)
    else:
        assert choice["recommended"] == "specialists"
        assert choice["deployed"] == "experts"
    asked = [line.split()[1] for line in (home / "asked.txt").read_text().splitlines()][:28]
    splits = [word.rpartition("-")[2] for word in asked]
    assert splits == ["valid"] * 14 + ["test"] * 14


def test_the_verdict_is_paired(done: Path) -> None:
    """Interval of a gain from the rows' differences; resampling unit is the group where there is one."""
    verdict = Verdict.from_dict(json.loads((done / "verdict.json").read_text()))
    choice = json.loads((done / "choice.json").read_text())
    assert verdict.challenger == choice["winner"]
    row = verdict.against("experts").of("cars")
    assert row.units == row.rows == 150
    assert verdict.against("experts").of("birds").units == 40


def test_the_model_is_served(done: Path) -> None:
    """model/ is an artefact: loaded, it predicts both tasks; the deployed road is in it."""
    choice = json.loads((done / "choice.json").read_text())
    model = load(done / "model")
    assert model.container.method == choice["deployed"]
    found = model.predict(pd.DataFrame({"input_ids": [[5, 6, 7], [8, 9]]}))
    assert {"cars__p", "birds__p_LABEL_2"} <= set(found.columns)


def test_a_finished_run_is_not_run_again(done: Path, home: Path) -> None:
    """The same call prints the same and asks nothing; another evaluator is another run."""
    before = (home / "asked.txt").read_text()
    study = CheckpointsStudy(
        load_spec(home / "checkpoints.yaml"), lambda *_: None, folder=done.parent, named="mine.py:accuracy", code="other"
    )
    with pytest.raises(BadInput, match="other settings, checkpoints or evaluation"):
        study.run()
    assert (home / "asked.txt").read_text() == before


def test_an_interrupted_run_goes_on(home: Path, tmp_path: Path) -> None:
    """Killed in the middle, the same call asks only for what is missing and ends with the same figures."""
    spec = load_spec(home / "checkpoints.yaml").model_copy(update={"methods": ["average", "tsv_m"]})
    evaluate = _evaluate(home)
    calls: list[tuple[str, str]] = []

    def fragile(model: Any, task: str, split: str) -> Any:
        calls.append((task, split))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(model, task, split)

    with pytest.raises(KeyboardInterrupt):
        CheckpointsStudy(spec, fragile, folder=tmp_path).run()
    CheckpointsStudy(spec, fragile, folder=tmp_path).run()
    assert len(calls) == 12 + 1
    whole = CheckpointsStudy(spec, evaluate, folder=tmp_path / "whole").run()
    one, other = (pd.read_parquet(f / "checkpoints" / "results.parquet") for f in (tmp_path, tmp_path / "whole"))
    pd.testing.assert_frame_equal(one, other)
    assert whole.verdict is not None


def test_the_budget_leaves_roads_out(home: Path, tmp_path: Path) -> None:
    """A spent budget ends the walk: experts and what is done are judged, the rest is named."""
    spec = load_spec(home / "checkpoints.yaml").model_copy(update={"budget": "1s", "methods": ["average", "emr"]})
    evaluate = _evaluate(home)

    def slow(model: Any, task: str, split: str) -> Any:
        import time

        end = time.process_time() + (0.7 if "valid" in split else 0)
        while time.process_time() < end:
            pass
        return evaluate(model, task, split)

    CheckpointsStudy(spec, slow, folder=tmp_path).run()
    summary = json.loads((tmp_path / "checkpoints" / "report.json").read_text())
    assert summary["left_out"] == ["average", "emr"]
    assert summary["choice"]["deployed"] == "experts"
    assert summary["verdict"] is None


def test_state_dicts_where_no_configuration_is(tmp_path: Path) -> None:
    """Checkpoints of an unknown module: the evaluator gets tensors by name."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = {name: torch.randn(4, 4) for name in ("base", "a", "b")}
    for name, weight in weights.items():
        save_file({"w.weight": weight}, str(tmp_path / f"{name}.safetensors"))
    expert = {"metric": "closeness", "direction": "min", "valid": "valid", "test": "test"}
    experts = {t: {**expert, "path": f"{t}.safetensors"} for t in "ab"}
    methods = ["average", {"method": "ties", "settings": {"density": 0.5}}]
    row = {"kind": "checkpoints", "base": "base.safetensors", "experts": experts, "methods": methods}
    seen = []

    def distance(state: Any, task: str, split: str) -> pd.DataFrame:
        seen.append(split)
        rows = (state["w.weight"] - weights[task]).abs().flatten() + 1
        return pd.DataFrame({"id": range(16), "score": rows.numpy()})

    done = CheckpointsStudy(parse(row, where="here", beside=tmp_path), distance, folder=tmp_path / "runs").run()
    assert set(seen) == {"valid", "test"}
    assert done.choice["recommended"] == "specialists"
    summary = json.loads((done.folder / "report.json").read_text())
    assert list(summary["candidates"]) == ["experts", "average", "ties density=0.5"]
    assert summary["candidates"]["average"]["latency"] is None
    assert summary["candidates"]["experts"]["test"] == {"a": 1.0, "b": 1.0}


BAD = {
    "nothing": (lambda f: None, "not a DataFrame"),
    "no score": (lambda f: f.drop(columns="score"), "no column 'score'"),
    "a misspelt column": (lambda f: f.assign(groups=1), "did you mean 'group'"),
    "twice an id": (lambda f: f.assign(id="x"), "twice"),
    "no number": (lambda f: f.assign(score=float("nan")), "no finite score for id"),
    "words": (lambda f: f.assign(score="good"), "no finite score for id"),
    "no row": (lambda f: f.head(0), "no row"),
    "an exception": (lambda f: 1 / 0, "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_answers_are_named(case: str, home: Path, tmp_path: Path) -> None:
    """Whatever the evaluator gives that is no table of scores: one line with function, road, task and split."""
    spoil, words = BAD[case]
    evaluate = _evaluate(home)
    spec = load_spec(home / "checkpoints.yaml").model_copy(update={"methods": ["average"]})
    with pytest.raises(BadInput, match=words) as error:
        CheckpointsStudy(spec, lambda *a: spoil(evaluate(*a)), folder=tmp_path, named="mine.py:accuracy").run()
    assert "mine.py:accuracy, experts, task 'cars', valid" in str(error.value)


def test_rows_must_be_the_same_for_every_model(home: Path, tmp_path: Path) -> None:
    """A road that is scored on other rows than the experts is no pair."""
    evaluate, calls = _evaluate(home), [0]

    def shifting(*arguments: Any) -> Any:
        calls[0] += 1
        return evaluate(*arguments).iloc[int(calls[0] > 2) :]

    spec = load_spec(home / "checkpoints.yaml").model_copy(update={"methods": ["average"]})
    with pytest.raises(BadInput, match=r"other rows than for the expert .*'cars-0'"):
        CheckpointsStudy(spec, shifting, folder=tmp_path).run()


def _edited(home: Path, tmp_path: Path, change: Any) -> Path:
    row = yaml.safe_load((home / "checkpoints.yaml").read_text())
    row["base"] = str(home / row["base"])
    for expert in row["experts"].values():
        for key in ("path", "valid", "test"):
            expert[key] = str(home / expert[key])
    change(row)
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(row), "utf-8")
    return tmp_path / "edited.yaml"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.update(evaluate="mine.py:accuracy"), "names code, which no file may"),
        (lambda row: row["experts"]["cars"].update(metrik="auc"), "did you mean 'metric'"),
        (lambda row: row["experts"]["cars"].pop("direction"), "lacks the key 'experts.cars.direction'"),
        (lambda row: row.update(experts={}), "experts"),
        (lambda row: row.update(methods=["tiez"]), "did you mean 'ties'"),
        (lambda row: row.update(methods=["ties", "ties"]), "twice"),
        (lambda row: row.update(schema_version=2), "newer than this program"),
        (lambda row: row.update(base="nowhere"), "no such file"),
        (lambda row: row.update(budget="soon"), "not a duration"),
    ],
)
def test_bad_files_end_in_one_line(
    change: Any, words: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, one line that says what to do, nothing written."""
    monkeypatch.chdir(tmp_path)
    file = _edited(home, tmp_path, change)
    assert run(["study", str(file), "--evaluate", f"{home / 'mine.py'}:accuracy"]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "add --evaluate"),
        (["--evaluate", "mine.py"], "is not FILE.py:FUNCTION"),
        (["--evaluate", "{home}/mine.py:acuracy"], "did you mean 'accuracy'"),
        (["--evaluate", "{home}/mine.py:accuracy", "--target", "y"], "--targets is for studies of a table"),
    ],
)
def test_bad_commands_end_in_one_line(
    options: list[str],
    words: str,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The evaluator is missing, is no function, or an option belongs to the other kind of study."""
    monkeypatch.chdir(tmp_path)
    assert run(["study", str(home / "checkpoints.yaml"), *(o.format(home=home) for o in options)]) == 2
    assert words in capsys.readouterr().err


def test_an_expert_of_another_architecture_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is scored or written."""
    sizes = {**SIZES, "hidden_size": 8}
    transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "odd")
    monkeypatch.chdir(tmp_path)
    file = _edited(home, tmp_path, lambda row: row["experts"]["cars"].update(path=str(tmp_path / "odd")))
    with pytest.raises(BadInput, match="has the shape"):
        CheckpointsStudy(load_spec(file), lambda *_: None, folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_paired_interval_against_the_t_test() -> None:
    """Without groups the bootstrap's interval of a mean difference is the paired t interval, to the noise of the resamples."""
    from scipy import stats

    rng = np.random.default_rng(3)
    one, other = rng.normal(1.0, 1.0, 400), rng.normal(0.9, 1.0, 400)
    rows = Scored("utility", "max", np.arange(400), one)
    verdict = compare_scores({"t": rows}, {"experts": {"t": other}}, name="one", repeats=4000)
    gain = verdict.against("experts").of("t").gain.file
    exact = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert gain.value == pytest.approx((one - other).mean())
    np.testing.assert_allclose([gain.low, gain.high], exact, atol=0.08 * (exact.high - exact.low))
    flipped = compare_scores(
        {"t": Scored("loss", "min", np.arange(400), one)}, {"experts": {"t": other}}, name="one", repeats=4000
    )
    assert flipped.against("experts").of("t").gain.file.value == -gain.value


def test_the_same_scores_are_as_good() -> None:
    """A road that scores as the experts do is "as good", with a gain of exactly 0; half the score is "worse"."""
    rng = np.random.default_rng(0)
    score = {t: (rng.random(200) < 0.9).astype(float) for t in "ab"}
    rows = {t: Scored("accuracy", "max", np.arange(200), s) for t, s in score.items()}
    same = compare_scores(rows, {"experts": score}, name="merged").against("experts")
    assert [row.word for row in same.tasks] == ["as good", "as good"]
    assert same.overall.delta.file.value == 0
    half = {t: Scored("accuracy", "max", np.arange(200), s * (np.arange(200) % 2)) for t, s in score.items()}
    worse = compare_scores(half, {"experts": score}, name="merged").against("experts")
    assert [row.word for row in worse.tasks] == ["worse", "worse"]
