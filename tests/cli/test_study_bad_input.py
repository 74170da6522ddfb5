"""Bad input of `pluribus study` and `predict`: one line that names file, field and remedy; exit code 2; nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pluribus.cli import run

Write = Callable[[Path], list[str]]


def table(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.arange(n), "x": rng.normal(size=n), "y": rng.normal(size=n)})
    frame["good"] = (frame["x"] + rng.normal(size=n) > 0).astype(int)
    frame["loss"] = frame["y"] + rng.normal(size=n)
    return frame


def csv(change: Callable[[pd.DataFrame], pd.DataFrame], *words: str) -> Write:
    def write(folder: Path) -> list[str]:
        change(table()).to_csv(folder / "t.csv", index=False)
        return ["study", "t.csv", *words]

    return write


def raw(name: str, content: bytes, *words: str) -> Write:
    def write(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return ["study", name, *words]

    return write


def same(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


BOTH = ("--target", "good", "--target", "loss")

CASES: dict[str, tuple[Write, str]] = {
    "missing file": (lambda folder: ["study", "none.csv", *BOTH], "none.csv: no such file"),
    "empty table": (raw("t.csv", b"", *BOTH), "t.csv"),
    "header only": (raw("t.csv", b"x,good,loss\n", *BOTH), "t.csv"),
    "not UTF-8": (raw("t.csv", "é,good,loss\n".encode() + b"1,2,\xff\xfe\n", *BOTH), "UTF-8"),
    "ragged": (raw("t.csv", b"x,good,loss\n1,2,3\n1,2\n", *BOTH), "line 3"),
    "duplicate columns": (raw("t.csv", b"x,good,good,loss\n1,2,3,4\n", *BOTH), "2 columns called 'good'"),
    "mark is decimal": (csv(same, *BOTH, "--thousands", ",", "--decimal", ","), "','"),
    "unknown column of --na": (csv(same, *BOTH, "--na", "nope=?"), "unknown column 'nope'"),
    "unknown type": (csv(same, *BOTH, "--type", "x=numeric"), "unknown type 'numeric'"),
    "type of no column": (csv(same, *BOTH, "--type", "nope=number"), "unknown column 'nope'"),
    "ambiguous numbers": (raw("t.csv", b"x;good;loss\n28,666;2;3\n1,500;1;2\n", *BOTH), "thousands=','"),
    "not Parquet": (raw("t.parquet", b"not really", *BOTH), "t.parquet"),
    "unknown target": (csv(same, "--target", "godo"), "did you mean 'good'"),
    "no target": (csv(same), "no target"),
    "target all missing": (csv(lambda f: f.assign(loss=np.nan), *BOTH), "loss"),
    "one class only": (csv(lambda f: f.assign(good=1), "--target", "good:binary", "--target", "loss"), "good"),
    "constant": (csv(lambda f: f.assign(loss=3.5), *BOTH), "loss"),
    "kind that does not fit": (csv(same, "--target", "loss:count", "--target", "good"), "loss"),
    "infinite numbers": (csv(lambda f: f.assign(x=np.where(f.index == 5, np.inf, f["x"])), *BOTH), "infinit"),
    "date that does not parse": (
        csv(lambda f: f.assign(day=np.where(f.index == 5, "soon", "2024-01-01")), *BOTH, "--split", "time:day"),
        "day",
    ),
    "few labels in train": (csv(lambda f: f.assign(loss=f["loss"].where(f.index < 12)), *BOTH), "labels in train"),
    "none in test": (
        csv(
            lambda f: f.assign(
                part=np.where(f.index < 100, "train", np.where(f.index < 150, "valid", "test")),
                loss=f["loss"].where(f.index < 150),
            ),
            *BOTH,
            "--split",
            "column:part",
        ),
        "no label in test",
    ),
    "bad budget": (csv(same, *BOTH, "--budget", "soon"), "not a duration"),
    "bad jobs": (csv(same, *BOTH, "--jobs", "0"), "jobs"),
    "bad jobs word": (csv(same, *BOTH, "--jobs", "many"), "many"),
    "bad split": (csv(same, *BOTH, "--split", "tiem:x"), "split"),
    "split by unknown column": (csv(same, *BOTH, "--split", "time:dya"), "dya"),
    "bad metric": (csv(same, *BOTH, "--metric", "good=acu"), "did you mean 'auc'"),
    "metric that does not fit": (csv(same, *BOTH, "--metric", "good=rmse"), "does not fit"),
    "metric of nobody": (csv(same, *BOTH, "--metric", "godo=auc"), "did you mean 'good'"),
    "metric without a name": (csv(same, *BOTH, "--metric", "auc"), "TASK=WORD"),
    "metric given twice": (csv(same, *BOTH, "--metric", "good=auc", "--metric", "good=gini"), "'good' is named twice"),
    "target among the inputs": (csv(same, *BOTH, "--id", "good"), "good"),
    "id twice": (csv(lambda f: f.assign(id=1), *BOTH, "--id", "id"), "id"),
    "unknown text column": (csv(same, *BOTH, "--text", "nite"), "nite"),
    "text that is a target": (csv(same, *BOTH, "--text", "good"), "is named as text but is no input"),
    "items without a file": (raw("s.yaml", b"table: t.csv\ntargets: [good]\nitems: {item: {key: k}}\n"), "items.item.path"),
    "unknown candidate": (csv(same, *BOTH, "--candidate", "shared_botom_equal"), "did you mean 'shared_bottom_equal'"),
    "unknown LightGBM parameter": (
        lambda folder: [(folder / "p.yaml").write_text("num_leavs: 3"), *csv(same, *BOTH, "--lgbm-params", "p.yaml")(folder)][1:],
        "num_leavs",
    ),
    "missing champion": (csv(same, *BOTH, "--id", "id", "--champion", "none.parquet"), "none.parquet"),
    "unknown option": (csv(same, *BOTH, "--budgte", "1m"), "did you mean '--budget'"),
    "unknown key in YAML": (raw("s.yaml", b"table: t.csv\ntargets: [good]\nbugdet: 3m\n"), "did you mean 'budget'"),
    "wrong type in YAML": (raw("s.yaml", b"table: t.csv\ntargets: [good]\nseeds: many\n"), "seeds"),
    "alias bomb in YAML": (raw("s.yaml", b"a: &a [x]\nb: &b [*a, *a]\ntable: t\ntargets: *b\n"), "alias"),
}


@pytest.mark.parametrize("case", CASES)
def test_study_refuses(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write, message = CASES[case]
    words = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("pluribus: ")]) == 1, lines
    assert message in lines[-1], lines[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "something was written"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small saved model of the table above."""
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table
    from pluribus.modeling import Budget
    from pluribus.study.plan import make

    data = Table(table(), ["good", "loss"], id="id")
    fitted = make("shared_bottom_equal", {"epochs": 2}).fit(prepare(data, split(data)), Budget(60), 0)
    folder = tmp_path_factory.mktemp("model") / "model"
    fitted.save(folder)
    return folder


def damage_missing(folder: Path) -> None:
    (folder / "pluribus.json").unlink()


def damage_truncated(folder: Path) -> None:
    path = next(folder.glob("network*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])


def damage_foreign(folder: Path) -> None:
    (folder / "pluribus.json").write_text('{"hello": "world"}')


def damage_newer(folder: Path) -> None:
    manifest = json.loads((folder / "pluribus.json").read_text())
    (folder / "pluribus.json").write_text(json.dumps({**manifest, "schema_version": 99}))


def damage_shape(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    from pluribus.files import sha256

    path = next(folder.glob("network*.safetensors"))
    tensors = load_file(path)
    name = next(n for n, t in tensors.items() if t.ndim == 2)
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, path)
    manifest = json.loads((folder / "pluribus.json").read_text())
    manifest["files"][path.name] = sha256(path)
    (folder / "pluribus.json").write_text(json.dumps(manifest))


def damage_pickle(folder: Path) -> None:
    import pickle

    from pluribus.files import sha256

    path = next(folder.glob("network*.safetensors"))
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    manifest = json.loads((folder / "pluribus.json").read_text())
    manifest["files"][path.name] = sha256(path)
    (folder / "pluribus.json").write_text(json.dumps(manifest))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing manifest": (damage_missing, "not a model folder"),
    "truncated": (damage_truncated, "hash differs"),
    "foreign": (damage_foreign, "schema_version"),
    "newer": (damage_newer, "newer"),
    "shape mismatch": (damage_shape, "shape"),
    "pickle inside": (damage_pickle, "network"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_predict_refuses_damaged_models(
    case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    hurt, message = DAMAGE[case]
    shutil.copytree(model, tmp_path / "model")
    hurt(tmp_path / "model")
    table().to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path)
    assert run(["predict", "model", "t.csv", "-o", "out.parquet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "model" in lines[0]
    assert message in lines[0]
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "nowhere", "t.csv", "-o", "o.csv"], "no such model folder"),
        (["predict", "MODEL", "lacking.csv", "-o", "o.csv"], "lacking.csv: lacks 1 input column: 'x'"),
        (["predict", "MODEL", "none.csv", "-o", "t.csv"], "none.csv: no such file"),
        (["predict", "MODEL", "t.csv", "-o", "o.csv", "--tasks", ","], "--tasks: names no task"),
        (["predict", "MODEL", "t.csv", "-o", "o.xlsx"], "neither a .parquet nor a .csv"),
        (["predict", "MODEL", "t.csv", "-o", "o.csv", "--tasks", "godo"], "did you mean 'good'"),
        (["predict", "MODEL", "none.csv", "-o", "o.csv"], "none.csv"),
        (["predict", "MODEL", "t.csv", "-o", "t.csv"], "overwritten"),
        (["report", "nowhere"], "no finished study"),
    ],
)
def test_predict_and_report_refuse(
    words: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table().to_csv(tmp_path / "t.csv", index=False)
    table().drop(columns="x").to_csv(tmp_path / "lacking.csv", index=False)
    monkeypatch.chdir(tmp_path)
    assert run([str(model) if word == "MODEL" else word for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def test_extra_columns_are_one_note(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row order and ids are kept; columns that the model does not read are named once."""
    frame = table().iloc[::-1].assign(extra=1, more=2)
    frame.to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path)
    assert run(["predict", str(model), "t.csv", "-o", "o.csv"]) == 0
    note = capsys.readouterr().err.splitlines()[0]
    assert note.startswith("note: ")
    assert "extra" in note
    assert "more" in note
    found = pd.read_csv(tmp_path / "o.csv")
    assert list(found.columns) == ["id", "good", "good__p", "loss"]
    assert found["id"].tolist() == frame["id"].tolist()
