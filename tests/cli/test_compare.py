"""`pluribus compare` through the shell: files in, words and a page out, exit code 2 and one line for bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pluribus.cli import run
from pluribus.errors import BadInput
from pluribus.options import pairs


@pytest.fixture
def files(tmp_path: Path) -> Path:
    r = np.random.default_rng(0)
    n = 500
    x, z = r.normal(size=n), r.normal(size=n)
    truth = pd.DataFrame(
        {
            "loan": np.arange(n),
            "opened": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n) // 10, "D"),
            "default": (r.random(n) < 1 / (1 + np.exp(-2 * x))).astype(int),
            "loss": z,
        }
    )
    truth.to_parquet(tmp_path / "y.parquet")
    for name, noise in (("old", 0.5), ("new", 0.1)):
        for seed in range(3):
            p = 1 / (1 + np.exp(-2 * x - noise * r.normal(size=n)))
            frame = pd.DataFrame({"loan": np.arange(n), "default__p": p, "loss": z + noise * r.normal(size=n)})
            frame.to_parquet(tmp_path / f"{name}-{seed}.parquet")
    return tmp_path


def _words(files: Path, *more: str, reference: str = "old", challenger: str = "new") -> list[str]:
    return [
        "compare",
        "--truth",
        str(files / "y.parquet"),
        "--id",
        "loan",
        "--repeats",
        "200",
        *more,
        "--reference",
        *(str(files / f"{reference}-{i}.parquet") for i in range(3)),
        "--challenger",
        *(str(files / f"{challenger}-{i}.parquet") for i in range(3)),
    ]


def test_words_page_and_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = files / "page.html"
    assert run([*_words(files, "--time", "opened", "--metric", "default=gini"), "-o", str(page)]) == 0
    text = capsys.readouterr().out
    assert "better on" in text.splitlines()[0]
    assert "50 units (unit: day)" in text
    assert text.splitlines()[0] in page.read_text("utf-8")
    assert run([*_words(files, "--task", "loss"), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert [t["task"] for t in verdict["comparisons"][0]["tasks"]] == ["loss"]
    assert verdict["comparisons"][0]["tasks"][0]["word"] == "better"


def test_swapped_files_swap_the_words(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*_words(files, "--task", "loss", reference="new", challenger="old"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["tasks"][0]["word"] == "worse"


def test_globs_of_a_real_shell(files: Path) -> None:
    sides = "--reference old-*.parquet --challenger new-*.parquet"
    line = f"{sys.executable} -m pluribus compare --truth y.parquet --id loan {sides} --repeats 100"
    done = subprocess.run(line, shell=True, cwd=files, capture_output=True, text=True, check=True)
    assert "scope: the method)" in done.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric", "default"], "--metric: 'default' is not TASK=WORD"),
        (["--metric", "default=acu"], "unknown metric 'acu'; did you mean 'auc'?"),
        (["--kind", "defualt=binary"], "unknown task 'defualt'; did you mean 'default'?"),
        (["--group", "opend"], "unknown column 'opend'; did you mean 'opened'?"),
        (["--level", "2"], "2.0 is not in the range"),
        (["--id", "lone"], "unknown column 'lone'; did you mean 'loan'?"),
        (["--reference", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["--tim", "opened"], "unknown option '--tim'; did you mean '--time'?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    files: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*_words(files), "-o", str(files / "page.html"), *more]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (files / "page.html").exists()


@pytest.mark.parametrize("content", [b"", b"loan,loss\n", b"loan,loss\n1,2,3\n", b"loan,loss\n1,\xff\n", b"loan,loan\n1,2\n"])
def test_hostile_csv_files_are_one_line(files: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "bad.csv").write_bytes(content)
    assert (
        run(
            [
                "compare",
                "--truth",
                str(files / "y.parquet"),
                "--id",
                "loan",
                "--reference",
                str(files / "bad.csv"),
                "--challenger",
                str(files / "new-0.parquet"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "bad.csv" in error
    assert error.count("\n") == 1


def test_task_names_may_hold_an_equals_sign() -> None:
    assert pairs(["a=b=auc"], "--metric") == {"a=b": "auc"}
    with pytest.raises(BadInput, match="named twice"):
        pairs(["a=auc", "a=ks"], "--metric")
