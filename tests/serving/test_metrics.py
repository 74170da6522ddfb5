"""What a server counts, when it is asked: each row once, under what became of it."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")

from pluribus.serving import metrics
from pluribus.serving.metrics import Metrics


def _figures(found: Metrics) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in found.text().decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize("selections", [1, 1000])
def test_rows_failures_and_errors(selections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed task is no row of that task, a row in error is none of any; however often selections change, nothing is lost and
    what is kept between two askings is bounded."""
    monkeypatch.setattr(metrics, "SELECTIONS", selections)
    found = Metrics()
    good, broken, bad = {"values": {"a": 1.0}}, {"values": {"b": 1.0}, "failed": {"a": "why"}}, {"error": "why"}
    for _ in range(3):
        found.answered(["a", "b"], [good, broken, bad])
        found.answered(["b"], [good])
        found.answered(["a"], [broken])
        assert len(found._rows) <= selections
    for _ in range(2):  # asking changes nothing
        figures = _figures(found)
        assert figures['pluribus_task_rows_total{task="a"}'] == 3
        assert figures['pluribus_task_rows_total{task="b"}'] == 9
        assert figures['pluribus_task_failures_total{task="a"}'] == 6
        assert 'pluribus_task_failures_total{task="b"}' not in figures
        assert figures["pluribus_row_errors_total"] == 3
