"""Worker processes: they stay for a whole study, one that dies takes no other call along, none outlives its study."""

from __future__ import annotations

import os
import signal
from typing import Any

from pluribus.study.crews.local import Workers


def _work(i: int) -> dict[str, Any]:
    if i == 1:
        os._exit(1)
    return {"i": i, "pid": os.getpid()}


def _answers(workers: Workers, *calls: int) -> dict[int, Any]:
    return dict(workers.run(_work, [(i,) for i in calls]))


def _pids(answers: dict[int, Any]) -> set[int]:
    return {answer["pid"] for answer in answers.values()}


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_dead_worker_takes_nobody_along() -> None:
    """Out of memory kills a process: that call is reported dead, the others finish."""
    with Workers(2) as workers:
        found = _answers(workers, 0, 1, 2, 3)
    assert [found[i]["i"] for i in (0, 2, 3)] == [0, 2, 3]
    assert "died" in found[1]


def test_workers_stay_for_the_next_calls() -> None:
    """A process's imports are paid for once a study, not once a stage; where one is killed meanwhile, no call is lost."""
    with Workers(2) as workers:
        first = _pids(_answers(workers, 0, 2, 3))
        assert _pids(_answers(workers, 4, 5)) <= first
        os.kill(min(first), signal.SIGKILL)
        after = _answers(workers, 6, 7)
    assert sorted(answer["i"] for answer in after.values()) == [6, 7]
    assert not _pids(after) & first, "the pool that lost a process was kept"
    assert all(_gone(pid) for pid in first | _pids(after)), "a worker outlived its study"
