"""Studies of tables that are made: settings are checked in one line, targets default to all, others never become inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pluribus.errors import BadInput
from pluribus.study import Study
from pluribus.study import spec as specs

MADE = {"generator": "multitab_bench", "rows": 300, "tasks": 4, "features": 6, "binary": ["y1"]}


def test_a_study_file_names_a_generator(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text("table: {generator: multitab_bench, rows: 300, tasks: 4, features: 6, binary: [y1]}\nbudget: 20s\n", "utf-8")
    spec = specs.load(path)
    assert spec.run_name == "multitab_bench"
    study = Study.from_spec(spec, folder=tmp_path / "runs", jobs=1)
    assert [(task.name, task.kind) for task in study.table.tasks] == [
        ("y0", "regression"),
        ("y1", "binary"),
        ("y2", "regression"),
        ("y3", "regression"),
    ]
    assert list(study.table.inputs) == [f"x{j}" for j in range(6)]
    assert study.data.n_rows == 300


def test_targets_left_out_are_no_inputs(tmp_path: Path) -> None:
    """A target that is not asked for would give the others away."""
    spec = specs.parse({"table": MADE, "targets": ["y0", "y2:regression"]}, where="study")
    table = Study.from_spec(spec, folder=tmp_path, jobs=1).table
    assert [task.name for task in table.tasks] == ["y0", "y2"]
    assert list(table.inputs) == [f"x{j}" for j in range(6)]


def test_settings_survive_the_way_through_the_command_line(tmp_path: Path) -> None:
    spec = specs.parse({"table": MADE}, where="study")
    assert specs.parse(spec.model_dump(exclude_unset=True), where="study") == spec


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"rows": 5}, "names no generator"),
        ({"generator": "multitab_bnch"}, "unknown generator 'multitab_bnch'; did you mean 'multitab_bench'"),
        ({**MADE, "correlations": 0.4}, "unknown setting 'correlations'; did you mean 'correlation'"),
        ({**MADE, "tasks": 9}, "9 tasks need at least as many features"),
        ({**MADE, "degrees": 3}, "degrees must be a list"),
        ({**MADE, "binary": "y1"}, "binary must be a list"),
    ],
)
def test_bad_settings_are_one_line(table: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as raised:
        specs.parse({"table": table}, where="study")
    assert "\n" not in str(raised.value)


def test_unknown_target(tmp_path: Path) -> None:
    spec = specs.parse({"table": MADE, "targets": ["y9"]}, where="study")
    with pytest.raises(BadInput, match="unknown target 'y9'"):
        _ = Study.from_spec(spec, folder=tmp_path, jobs=1).table
