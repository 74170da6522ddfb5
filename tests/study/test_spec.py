"""Settings: everything a user can get wrong in a study file is one line that names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pluribus.errors import BadInput
from pluribus.study import spec

GOOD: dict[str, Any] = {"table": "t.csv", "targets": ["a", {"name": "b", "kind": "regression"}]}


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1.5d", 129600), (45, 45)]
)
def test_durations(text: Any, value: float) -> None:
    assert spec.seconds(text) == value


@pytest.mark.parametrize("text", ["", "ten", "-5m", "10 parsecs", "0", "m", "1e99", True])
def test_bad_durations(text: Any) -> None:
    with pytest.raises(BadInput, match="budget"):
        spec.seconds(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bugdet": "10m"}, "unknown key 'bugdet'; did you mean 'budget'"),
        ({"targets": []}, "targets"),
        ({"seeds": "three"}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"level": 2.0}, "level"),
        ({"schema_version": 2}, "newer"),
        ({"kind": "tabel"}, "did you mean 'table'"),
        ({"budget": "soon"}, "not a duration"),
        ({"name": "../x"}, "plain folder name"),
        ({"targets": [{"name": "a", "kind": "binary", "clases": ["0", "1"]}]}, "unknown key 'targets.0.clases'; did you mean"),
        ({"targets": [{"name": "b", "after": "a"}]}, r"targets.0.after: input should be a valid list, not 'a'"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        spec.parse({**GOOD, **change}, where="study.yaml")
    assert "study.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_table_is_named() -> None:
    with pytest.raises(BadInput, match="lacks the key 'table'"):
        spec.parse({"targets": ["a"]}, where="study.yaml")


def test_file_round_trip(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    path = tmp_path / "study.yaml"
    path.write_text("kind: table\ntable: t.csv\ntargets: [a, {name: b, kind: count}]\nbudget: 2h\n")
    found = spec.load(path)
    assert found.table == str(tmp_path / "t.csv")
    assert found.core_seconds == 7200
    assert [t if isinstance(t, str) else t.kind for t in found.tasks()] == ["a", "count"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: &x [1]\nb: *x\n", "alias"), ("table: [unclosed", "not valid YAML"), ("- 1\n- 2\n", "no settings"), ("", "no settings")],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        spec.load(path)


def test_hash_ignores_the_name_and_sees_the_rest() -> None:
    a = spec.parse(GOOD, where="x")
    same = spec.parse({**GOOD, "name": "other"}, where="x")
    other = spec.parse({**GOOD, "seed": 1}, where="x")
    assert spec.configuration_hash(a, "h") == spec.configuration_hash(same, "h")
    assert len({spec.configuration_hash(a, "h"), spec.configuration_hash(other, "h"), spec.configuration_hash(a, "g")}) == 3


def test_numbers_and_dates_that_mean_missing_are_written_as_people_write_them(tmp_path: Path) -> None:
    """`na: [-9999, 1900-01-01]`: YAML makes a number and a date of them; the table compares words."""
    (tmp_path / "s.yaml").write_text("table: t.csv\ntargets: [y]\nna: [-9999, 1900-01-01, d=2.5, '?']\ndayfirst: true\n")
    found = spec.load(tmp_path / "s.yaml")
    assert found.reading == {"na": ["-9999", "1900-01-01", "d=2.5", "?"], "dayfirst": True}
