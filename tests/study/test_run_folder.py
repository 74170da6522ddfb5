"""The run's folder: whose it is, who works in it, and how often its test split was opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pluribus.errors import BadInput
from pluribus.study.run_folder import OPENINGS, RunFolder, open_run


def _claimed(path: Path, configuration: str = "one") -> RunFolder:
    folder = RunFolder(path)
    folder.claim(configuration, {"name": path.name}, about="settings or data")
    return folder


def test_a_run_belongs_to_one_configuration(tmp_path: Path) -> None:
    """If this fails, two studies mix their trials in one folder."""
    folder = _claimed(tmp_path / "a")
    assert yaml.safe_load((tmp_path / "a" / "study.yaml").read_text()) == {"name": "a", "configuration": "one"}
    _claimed(tmp_path / "a")
    _claimed(tmp_path / "a", "two")  # a mere plan may be planned anew
    folder.work.mkdir()
    with pytest.raises(BadInput, match="a: holds a run with other settings or data; choose another --name"):
        _claimed(tmp_path / "a", "one")
    _claimed(tmp_path / "a", "two")


@pytest.mark.parametrize("text", ["[1, 2]", "table: x", ""])
def test_a_study_file_without_a_hash_is_another_run(text: str, tmp_path: Path) -> None:
    """If this fails, somebody's own study.yaml ends in a traceback, or a folder of work is taken over."""
    (tmp_path / "a" / "work").mkdir(parents=True)
    (tmp_path / "a" / "study.yaml").write_text(text)
    with pytest.raises(BadInput, match="holds a run with other"):
        _claimed(tmp_path / "a")


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    """If this fails, a run is written into whatever folder has its name."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    with pytest.raises(BadInput, match="exists and is not a run"):
        _claimed(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.tex"]


HOLDER = """
import sys
from pluribus.study.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
folder.claim("one", {}, about="settings")
with folder.locked():
    print("mine", flush=True)
    sys.stdin.readline()
"""


def test_one_process_works_in_a_run(tmp_path: Path) -> None:
    """The second waits, and says so; a lock dies with its process, however that ends."""
    folder = _claimed(tmp_path / "a")
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"mine\n"
    waited = []

    def waiting() -> None:
        waited.append(other.poll())
        other.kill()

    with folder.locked(waiting):
        assert waited == [None]
    other.wait()


def test_a_claim_that_was_lost_meanwhile_is_noticed(tmp_path: Path) -> None:
    """Two plans of one name: whoever starts to compute first has the folder."""
    first = _claimed(tmp_path / "a", "one")
    second = _claimed(tmp_path / "a", "two")
    with second.locked():
        pass
    with pytest.raises(BadInput, match="was taken by another run meanwhile"), first.locked():
        pass


def test_a_run_opens_its_test_split_once(tmp_path: Path) -> None:
    """If this fails, a run that was killed and goes on counts as another look at the test split, or two runs count as one."""
    one, two, other = (_claimed(tmp_path / name) for name in ("one", "two", "other"))
    assert [one.open_test("s"), one.open_test("s"), RunFolder(tmp_path / "one").open_test("s")] == [1, 1, 1]
    assert two.open_test("s") == 2
    assert other.open_test("t") == 1
    assert one.open_test("s") == 2  # what the report of a run that goes on says
    assert json.loads((tmp_path / OPENINGS).read_text()) == {"s": 2, "t": 1}


def test_what_was_chosen_stands(tmp_path: Path) -> None:
    """A choice is read as it was written; a run without a report is not finished."""
    folder = _claimed(tmp_path / "a")
    assert folder.choice() is None
    folder.write_choice({"winner": "w", "rules": {"w": float("-inf")}})
    assert RunFolder(tmp_path / "a").choice() == {"winner": "w", "rules": {"w": None}}
    with pytest.raises(BadInput, match="holds no finished study"):
        open_run(tmp_path / "a")
