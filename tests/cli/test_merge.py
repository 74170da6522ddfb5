"""`pluribus merge` and `export` through a real shell: globs, exit codes, one line of error, and no half-written folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pluribus.files import safetensors

PLURIBUS = f"{sys.executable} -m pluribus"


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ft-cars/, ft-birds/ and 'ft-two words/' with heads of 3, 5 and 2 classes."""
    home = tmp_path_factory.mktemp("models")
    g = torch.Generator().manual_seed(0)
    base = {
        "vit.layer.0.weight": torch.randn(16, 16, generator=g),
        "vit.layer.1.weight": torch.randn(16, 16, generator=g),
        "vit.norm.bias": torch.randn(16, generator=g),
    }
    for folder, classes in (("base", 0), ("ft-cars", 3), ("ft-birds", 5), ("ft-moths", 2)):
        (home / folder).mkdir()
        state = {n: v + (0.1 * torch.randn(v.shape, generator=g) if classes else 0) for n, v in base.items()}
        config = {"model_type": "vit"}
        if classes:
            state["classifier.weight"] = torch.randn(classes, 16, generator=g)
            state["classifier.bias"] = torch.randn(classes, generator=g)
            config["id2label"] = {str(i): f"{folder}-{i}" for i in range(classes)}  # type: ignore[assignment]
        safetensors.save(home / folder / "model.safetensors", state)
        (home / folder / "config.json").write_text(json.dumps(config))
    return home


def test_a_glob_merges_and_a_task_comes_out_again(models: Path) -> None:
    done = shell(f"{PLURIBUS} merge --base base --expert ft-*/ --method ties --set density=0.5 -o out", models)
    assert done.returncode == 0, done.stderr
    assert "3 experts merged by ties" in done.stdout
    assert "GB/s" in done.stdout
    about = json.loads((models / "out" / "pluribus.json").read_text())
    assert (about["schema_version"], about["kind"], sorted(about["tasks"])) == (1, "merge", ["ft-birds", "ft-cars", "ft-moths"])
    assert about["settings"] == {"density": 0.5}
    assert "ties" in (models / "out" / "README.md").read_text()
    metadata = safetensors.read_header(models / "out" / "model.safetensors")[1]
    from pluribus.files import sha256

    assert metadata["sha256:base"] == sha256(models / "base" / "model.safetensors") == about["inputs"]["base"]["sha256"]
    out = shell(f"{PLURIBUS} export out --task ft-birds -o birds --format hf", models)
    assert out.returncode == 0, out.stderr
    birds, expert = safetensors.load(models / "birds"), safetensors.load(models / "ft-birds")
    assert set(birds) == set(expert)
    assert torch.equal(birds["classifier.weight"], expert["classifier.weight"])
    assert json.loads((models / "birds" / "config.json").read_text())["id2label"]["4"] == "ft-birds-4"


def test_the_default_method_is_named(models: Path) -> None:
    done = shell(f"{PLURIBUS} merge --base base --expert ft-*/ -o named", models)
    assert done.returncode == 0, done.stderr
    assert "tsv_m (the default" in done.stdout


def test_a_dry_run_writes_nothing(models: Path) -> None:
    done = shell(f"{PLURIBUS} merge --base base --expert a=ft-cars b=ft-birds --dry-run -o dry --json", models)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["written"] is False
    assert set(about["heads"]["a"]) == {"classifier.weight", "classifier.bias"}
    assert not (models / "dry").exists()


def test_a_recipe_equals_the_words(models: Path) -> None:
    (models / "recipe.yaml").write_text(
        "schema_version: 1\nbase: base\nmethod: task_arithmetic\nsettings: {scale: 0.5}\nseed: 1\n"
        "experts:\n  - {path: ft-cars, task: cars, weight: 2}\n  - {path: ft-birds, task: birds}\n"
    )
    a = shell(f"{PLURIBUS} merge recipe.yaml -o by-recipe", models)
    b = shell(
        f"{PLURIBUS} merge --base base --expert cars=ft-cars birds=ft-birds --method task_arithmetic --set scale=0.5 "
        "--weight cars=2 --seed 1 -o by-words",
        models,
    )
    assert (a.returncode, b.returncode) == (0, 0), a.stderr + b.stderr
    files = [(models / f / "model.safetensors").read_bytes() for f in ("by-recipe", "by-words")]
    assert files[0] == files[1]


def test_the_doctor_sees_heads_and_layers(models: Path) -> None:
    done = shell(f"{PLURIBUS} merge doctor --base base --expert ft-*/ --picture doctor.svg --json", models)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert {row["name"] for row in about["layers"]} == {"vit.layer.0", "vit.layer.1", "vit.norm"}
    assert set(about["heads"]["ft-cars"]) == {"classifier.weight", "classifier.bias"}
    assert abs(about["whole"]["cosine"]) < 0.2
    assert about["roads"][0]["bytes"] > about["roads"][1]["bytes"]
    assert (models / "doctor.svg").read_text().startswith("<svg")
    plain = shell(f"{PLURIBUS} merge doctor --base base --expert ft-*/", models)
    assert "one merged model" in plain.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--base base --expert ft-*/ --method tis -o x", "unknown merger 'tis'; did you mean 'ties'?"),
        ("--base base --expert ft-*/ --method ties --set densty=1 -o x", "unknown setting of ties 'densty'; did you mean"),
        ("--base base --expert ft-*/ --method ties --set density=1.5 -o x", "density is 1.5"),
        ("--base base --expert ft-*/ --method ties --set density=much -o x", "density is 'much'"),
        ("--base base --expert nowhere -o x", "nowhere: no such file or folder"),
        ("--base base --expert -o x", "--expert has no value"),
        ("--base base --expert ft-*/", "no place to write"),
        ("--base base --expert ft-*/ -o base --force", "is (or holds) one of the inputs"),
        ("--base base --expert ft-*/ -o ft-cars", "exists already"),
        ("--expert ft-*/ --method ties -o x", "needs the base"),
        ("--base base --expert ft-*/ --method adamerging -o x", "needs data"),
        ("--base base --expert ft-*/ --method fisher -o x", "needs data"),
        ("--base base --expert ft-*/ --keep vit.nowhere -o x", "keep: unknown tensor or pattern"),
        ("--base base --expert ft-*/ --method slerp -o x", "slerp takes 2 experts, 3 are given"),
        ("--base base --expert ft-*/ --weight ft-car=2 -o x", "unknown task 'ft-car'"),
        ("absent.yaml -o x", "no such merge recipe"),
        ("-o x", "there is no expert"),
    ],
)
def test_wrong_words_are_one_line(
    models: Path, words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glob import glob

    from pluribus.cli import run

    monkeypatch.chdir(models)
    line = [part for word in words.split() for part in (sorted(glob(word)) if "*" in word else [word])]
    assert run(["merge", *line]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (models / "x").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experts: []", "names no experts"),
        ("expert: [a]", "unknown key 'expert'; did you mean 'experts'?"),
        ("schema_version: 2\nexperts: [{path: a}]", "schema version 2"),
        ("experts: [{task: a}]", "has no path"),
        ("experts: [{path: a, weigth: 1}]", "unknown key 'weigth'"),
        ("experts: [{path: a, weight: x}]", "has the weight 'x'"),
        ("experts: [{path: a, task: t}, {path: b, task: t}]", "named twice"),
        ("- 1", "is not a table"),
        ("experts: [{path: a}]\nsettings: 3", "settings is not a table"),
        ("experts: [", "is not valid YAML"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pluribus.cli import run

    (tmp_path / "r.yaml").write_text(text)
    assert run(["merge", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "x")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_merge_leaves_no_half_folder(tmp_path: Path, number: signal.Signals) -> None:
    """Killed in the middle: OUT does not exist; where the process could still act, nothing else is left either."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, sys, time\n"
        "import pluribus.merging.stream as stream\n"
        "from pluribus.cli import run\n"
        "old = stream.Engine.load\n"
        "def load(self, span, method):\n"
        "    print('reading', flush=True)\n"
        "    time.sleep(0.2)\n"
        "    return old(self, span, method)\n"
        "stream.Engine.load = load\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job starts with it ignored
        "sys.exit(run(['merge', '--base', 'b', '--expert', 'e', '--method', 'average', '-o', 'out']))\n"
    )
    for name in ("b", "e"):
        safetensors.save(tmp_path / name / "model.safetensors", {f"x.{i}": torch.ones(10) for i in range(200)})
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, **pipes) as work:
        assert work.stdout is not None
        assert work.stdout.readline() == "reading\n"
        time.sleep(0.5)
        assert any(p.name.startswith(".out.") for p in tmp_path.iterdir())
        work.send_signal(number)
        work.communicate(timeout=30)
    assert work.returncode == (-9 if number == signal.SIGKILL else 130)
    left = {p.name for p in tmp_path.iterdir() if not p.name.startswith(".out.")}
    assert left == {"slow.py", "b", "e"}
    if number != signal.SIGKILL:
        assert not any(p.name.startswith(".out.") for p in tmp_path.iterdir())


def test_search_tries_and_prints_the_best(models: Path) -> None:
    pytest.importorskip("optuna")
    (models / "mine.py").write_text("def nearest(t):\n    return -abs(float(t['vit.norm.bias'].sum()) - 1.0)\n")
    done = shell(
        f"{PLURIBUS} merge search --base base --expert ft-*/ --method task_arithmetic --space scale=-2.0:2.0 "
        "--score mine.py:nearest --trials 8",
        models,
    )
    assert done.returncode == 0, done.stderr
    assert "best of 8 trials" in done.stdout
    assert "--set scale=" in done.stdout


@pytest.mark.parametrize(
    ("space", "function", "line"),
    [
        ("scal=0.0:1.0", "half", "unknown setting of task_arithmetic 'scal'; did you mean 'scale'?"),
        ("weight:nobody=0.0:1.0", "half", "unknown"),
        ("scale=0.0:1.0", "nan", "none of 3 trials has a finite score"),
        ("scale=0.0:1.0", "words", "gave 'good', not a number"),
        ("scale=0.0:1.0", "broken", "score: raised KeyError: 'head'; mend it"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(space: str, function: str, line: str, models: Path) -> None:
    """Broken: a wrong setting is a traceback of the sampler's, or a score of NaN is called the best."""
    pytest.importorskip("optuna")
    text = "def half(t):\n    return 0.5\ndef nan(t):\n    return float('nan')\ndef words(t):\n    return 'good'\n"
    text += "def broken(t):\n    return t['head']\n"
    (models / "mine.py").write_text(text)
    done = shell(
        f"{PLURIBUS} merge search --base base --expert ft-*/ --method task_arithmetic --space {space} "
        f"--score mine.py:{function} --trials 3",
        models,
    )
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_search_checks_both_ends_and_the_code_before_the_first_trial(models: Path) -> None:
    """Broken: half an hour of trials is thrown away at the first draw that no merger takes."""
    pytest.importorskip("optuna")
    (models / "told.py").write_text("def tell(t):\n    print('tried')\n    return 1.0\n")
    (models / "torn.py").write_text("import no_such_module\n")
    search = f"{PLURIBUS} merge search --base base --expert ft-*/ --trials 3"
    for words, line in (
        ("--method ties --space density=0.1:1.9 --score told.py:tell", "density is 1.9; use a number from 0 to 1"),
        ("--method slerp --space space=weights,nowhere --score told.py:tell", "nowhere"),
        ("--method adamerging --space steps=1:3 --score told.py:tell", "adamerging learns from data"),
        ("--method ties --space density=0.1:0.9 --score torn.py:tell", "torn.py: cannot be run (ModuleNotFoundError"),
    ):
        done = shell(f"{search} {words}", models)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert line in done.stderr
        assert "tried" not in done.stdout


def test_a_search_between_whole_numbers_tries_what_lies_between(models: Path) -> None:
    """Broken: `scale=0:1`, which an error line recommends, tries 0 and 1 alone."""
    pytest.importorskip("optuna")
    from pluribus.merging.search import search

    experts = {f"ft-{name}": models / f"ft-{name}" for name in ("cars", "birds")}
    space = {"scale": (0, 1), "weight:ft-cars": (0, 1)}
    found = search(models / "base", experts, "task_arithmetic", space, lambda t: 0.0, trials=4)
    assert all(0 < value < 1 for chosen, _ in found.trials for value in chosen.values())
    found = search(models / "base", experts, "consensus", {"k": (1, 2)}, lambda t: 0.0, trials=4)
    assert {type(chosen["k"]) for chosen, _ in found.trials} == {int}


def test_help_shows_examples() -> None:
    from click.testing import CliRunner

    from pluribus.cli import cli

    for words in (["merge", "--help"], ["merge", "doctor", "--help"], ["merge", "search", "--help"], ["export", "--help"]):
        shown = CliRunner().invoke(cli, words)
        assert shown.exit_code == 0, words
        assert "Example" in shown.output
