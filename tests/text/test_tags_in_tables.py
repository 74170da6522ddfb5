"""Tags from a table to a study, a prediction file and a server. If these fail: a word gets another word's tag, a hole becomes a
label, or a list is lost on the way."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from pluribus.data.leakage import labelled_at_random, lineage
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.data.tags import as_text
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.modeling import Budget, load
from pluribus.tasks import Task
from pluribus.text.candidates import TextFrozen, TextFull, TextFullPerTask

SMALL = {"backbone": "small", "layers": 1, "width": 32, "heads": 2, "vocabulary": 600, "max_length": 24, "epochs": 4, "lr": 5e-3}


@pytest.fixture(scope="module")
def diseases(real_data: Callable[[str], Path]) -> pd.DataFrame:
    """400 sentences of the NCBI disease corpus: words, BIO tags (a seventh left out), and whether a disease is named."""
    rows: list[tuple[list[str], list[str]]] = [([], [])]
    with gzip.open(real_data("bio_ner/NCBI-disease-IOB.devel.tsv.gz"), "rt", encoding="utf-8") as handle:
        for line in handle:
            if line.strip():
                word, tag = line.rstrip("\n").split("\t")
                rows[-1][0].append(word)
                rows[-1][1].append(tag)
            else:
                rows.append(([], []))
    rows = [row for row in rows if row[0]][:400]
    frame = pd.DataFrame(
        {
            "key": [f"s{i}" for i in range(len(rows))],
            "words": [words for words, _ in rows],
            "tags": [tags for _, tags in rows],
            "named": [float("B-Disease" in tags) for _, tags in rows],
        }
    )
    frame.loc[::7, "tags"] = None
    return frame


def ready(frame: pd.DataFrame, targets: Any = ("tags", "named"), **roles: Any) -> tuple[Table, Prepared]:
    table = Table(frame, list(targets), id="key", split="random", **roles)
    return table, prepare(table, split(table, 0))


def test_a_column_of_lists_is_a_task_of_tags(diseases: pd.DataFrame, tmp_path: Path) -> None:
    """Kind, classes, metrics, size and holes; the words' column is text though it is not declared; labels survive the disk and
    come in batches as wide as their longest row."""
    table, data = ready(diseases)
    tags, named = table.tasks
    assert (tags.kind, tags.classes, named.kind) == ("tagging", ("O", "B-Disease", "I-Disease"), "binary")
    assert [m.name for m in tags.metrics] == ["span_f1", "token_accuracy"]
    assert tags.columns == ("tags",)
    assert tags.size == max(map(len, diseases["words"]))
    assert table.text == ("words",)
    assert table.holes["tags"] == {"labelled": 342, "missing": 58, "not_applicable": 0, "delayed": 0}
    assert labelled_at_random(table, data) == {}
    assert set(lineage(table)) == {"tags", "named"}
    data.save(tmp_path / "prepared")
    for each in (data, Prepared.load(tmp_path / "prepared")):
        rows = torch.tensor([7, 3, 1, 21, 2])  # 7 and 21 have no tags
        batch = each.batch(rows)
        assert batch.labels["tags"].rows.tolist() == [1, 2, 4]
        assert len(batch.labels["named"]) == 5
        for place, row in zip(batch.labels["tags"].values, (3, 1, 2)):
            wanted = [tags.classes.index(tag) for tag in diseases["tags"][row]]
            assert place[: len(wanted)].tolist() == wanted
            assert (place[len(wanted) :] == -1).all()
        assert batch.labels["tags"].values.shape[1] == max(len(diseases["tags"][row]) for row in (3, 1, 2))


def test_words_come_as_lists_json_or_text() -> None:
    """However a file holds them, the text has one word for each tag, whatever stands in the words."""
    odd = ["a b", "\u00a0", "x"]
    assert as_text(odd) == "a_b \ufffd x"
    assert as_text(json.dumps(odd)) == "a_b \ufffd x"
    assert as_text(np.array(odd, object)) == "a_b \ufffd x"
    for same in ("[not a list]", "[1, 2]", "plain", None, [1, 2]):
        assert as_text(same) is same or as_text(same) == same


def test_other_tags_have_no_spans(diseases: pd.DataFrame) -> None:
    shape = diseases["words"].map(lambda words: ["X" if word[0].isupper() else "x" for word in words])
    table, _ = ready(diseases.assign(tags=shape), ["tags"], ignore=["named"])
    assert table.tasks[0].classes == ("X", "x")
    assert [m.name for m in table.tasks[0].metrics] == ["token_accuracy"]
    with pytest.raises(BadInput, match="span_f1 needs BIO tags"):
        ready(diseases.assign(tags=shape), [Task("tags", "tagging", metrics=("span_f1",))], ignore=["named"])  # type: ignore[arg-type]


BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, Any], str]] = {
    "too few": (lambda f: _with(f, 1, f["tags"][1][:-1]), {}, r"has \d+ tags in row 2, where the text has \d+ words"),
    "one is missing": (lambda f: _with(f, 1, [None, *f["tags"][1][1:]]), {}, "a tag is missing in row 2"),
    "not a list": (lambda f: _with(f, 1, "O O"), {}, "holds 'O O' in row 2, where the other rows hold lists"),
    "a list within": (lambda f: _with(f, 1, [["O"]]), {}, "a list within the list in row 2"),
    "nothing but O": (lambda f: f.assign(tags=f["words"].map(lambda w: ["O"] * len(w))), {}, r"one tag only \('O'\)"),
    "two texts": (lambda f: f.assign(more=f["words"].map(" ".join)), {"text": ["words", "more"]}, "and there are 2; name it"),
    "no text": (lambda f: f.assign(words=1.0), {}, "labels the words of one text column, and there is none"),
    "other classes": (
        lambda f: f,
        {"targets": [Task("tags", "tagging", classes=("O", "B-Drug", "I-Drug"))]},
        "none of the task's classes",
    ),
}


def _with(frame: pd.DataFrame, row: int, cell: Any) -> pd.DataFrame:
    cells = list(frame["tags"])
    cells[row] = cell
    return frame.assign(tags=pd.Series(cells, dtype=object))


@pytest.mark.parametrize("name", BAD)
def test_bad_tags_are_named(name: str, diseases: pd.DataFrame) -> None:
    change, roles, message = BAD[name]
    roles = {"targets": ["tags:tagging"], "text": [] if name == "no text" else ["words"], "ignore": ["named"], **roles}
    with pytest.raises(BadInput, match=message):
        ready(change(diseases), **roles)


def test_who_does_not_label_words_says_so(diseases: pd.DataFrame) -> None:
    from pluribus import catalog

    _, data = ready(diseases.assign(number=np.arange(len(diseases)) % 5))
    for entry in catalog.entries(family="candidate"):
        candidate = entry.resolve()()
        if "text" not in candidate.reads:
            assert candidate.unreadable(data) is not None, entry.name


@pytest.mark.parametrize("made", [TextFull, TextFrozen, TextFullPerTask])
def test_fitted_judged_saved_and_asked_again(made: Any, diseases: pd.DataFrame, tmp_path: Path) -> None:
    """Every row's list is as long as its words: rows without tags, longer than any seen, beyond the tokenizer, and empty."""
    _, data = ready(diseases)
    fitted = made(**SMALL).fit(data, Budget(60.0), 0)
    cells = data.labelled("tags", "valid")
    p = fitted.scores(data, cells.rows, ["tags"])["tags"]
    assert metrics.compute("token_accuracy", p, cells.values) >= 0.8  # O alone makes .9 of it
    fitted.save(tmp_path / "model")
    again = load(tmp_path / "model")
    asked = pd.DataFrame({"words": [["cancer"], " ".join(["fever"] * 150), None, ["familial", "breast", "cancer", "."]]})
    found = again.predict(asked)
    assert [len(tags) for tags in found["tags"]] == [1, 150, 0, 4]
    assert found["tags"][1][30:] == ["O"] * 120
    assert set(found["tags"][3]) <= {"O", "B-Disease", "I-Disease"}
    alone = again.predict(asked.iloc[[3]])
    assert alone["tags"].tolist() == [found["tags"][3]]
    assert list(found) == ["tags", "named", "named__p"]


def test_a_study_a_prediction_file_and_a_server(diseases: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, through the commands; the file's predictions then stand as somebody's champion, and judged alike."""
    from fastapi.testclient import TestClient

    from pluribus.cli import cli
    from pluribus.serving import application
    from pluribus.study import Study

    for each in (TextFull, TextFullPerTask):
        monkeypatch.setattr(each, "defaults", {**each.defaults, **SMALL})
    settings: dict[str, Any] = {
        "id": "key",
        "folder": tmp_path,
        "jobs": 1,
        "budget": "120s",
        "seeds": 1,
        "configurations": 1,
        "repeats": 100,
        "candidates": ["text_full", "text_full_per_task"],
        "quiet": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one seed has no spread
        Study(diseases, ["tags", "named"], name="tags", **settings).run()
    assert "span_f1" in (tmp_path / "tags" / "report.html").read_text("utf-8")
    results = pd.read_parquet(tmp_path / "tags" / "results.parquet")
    assert {"span_f1", "token_accuracy"} <= set(results["metric"])

    asked = diseases[["key", "words"]].assign(words=diseases["words"].map(json.dumps))
    asked.to_csv(tmp_path / "asked.csv", index=False)
    model = str(tmp_path / "tags" / "model")
    outcome = {}
    for suffix in ("csv", "parquet"):
        path = str(tmp_path / f"found.{suffix}")
        done = CliRunner().invoke(cli, ["predict", model, str(tmp_path / "asked.csv"), "-o", path])
        assert done.exit_code == 0, done.output
        outcome[suffix] = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
    lists = [list(tags) for tags in outcome["parquet"]["tags"]]
    assert [json.loads(tags) for tags in outcome["csv"]["tags"]] == lists
    assert [len(tags) for tags in lists] == [len(words) for words in diseases["words"]]

    with TestClient(application(load(model))) as client:
        rows = [{"key": "a", "words": diseases["words"][i]} for i in range(3)]
        rows.append({"key": "b", "words": " ".join(diseases["words"][3])})
        answer = client.post("/predict", json={"rows": [*rows, {"words": ["a", 1]}]}).json()["rows"]
        assert [slot["values"]["tags"] for slot in answer[:4]] == lists[:4]
        assert "takes text, not a list of anything but words" in answer[4]["error"]
        document = client.get("/openapi.json").json()["components"]["schemas"]
        assert document["Values"]["properties"]["tags"]["items"]["enum"] == ["O", "B-Disease", "I-Disease"]
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        body = io.BytesIO()
        pq.write_table(pa.table({"key": ["a"], "words": [list(diseases["words"][0])]}), body)
        kind = {"content-type": "application/vnd.apache.parquet"}
        taken = client.post("/predict", content=body.getvalue(), headers=kind)
        assert taken.status_code == 200, taken.text
        assert pq.read_table(io.BytesIO(taken.content))["tags"].to_pylist() == lists[:1]

    outcome["parquet"].to_parquet(tmp_path / "champion.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = Study(diseases, ["tags", "named"], name="champion", champion=str(tmp_path / "champion.parquet"), **settings).run()
    assert done is not None
    assert "champion" in (tmp_path / "champion" / "report.html").read_text("utf-8")
    short = outcome["parquet"].copy()
    short["tags"] = [tags[:-1] for tags in lists]
    short.to_parquet(tmp_path / "short.parquet")
    with pytest.raises(BadInput, match=r"short.parquet, tags: has \d+ tags in row 1"):
        Study(diseases, ["tags", "named"], name="short", champion=str(tmp_path / "short.parquet"), **settings).run()
