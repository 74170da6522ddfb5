"""What a server counts, in Prometheus' format; one registry an application."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pluribus.errors import require

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)
SELECTIONS = 1000  # of tasks that are counted before their labels are looked up


class Metrics:
    """Latency of requests, rows of batches, rows a task, failures a task, rows in error, refusals by reason."""

    def __init__(self) -> None:
        client = require("prometheus_client", extra="serve", purpose="the metrics of a server")
        self._client, self._registry = client, client.CollectorRegistry()
        own = {"registry": self._registry}
        self.seconds = client.Histogram("pluribus_request_seconds", "Time to answer a prediction request", buckets=SECONDS, **own)
        self.batch = client.Histogram("pluribus_batch_rows", "Rows of a batch", buckets=ROWS, **own)
        self.tasks = client.Counter("pluribus_task_rows", "Rows predicted for a task", ["task"], **own)
        self.failed = client.Counter("pluribus_task_failures", "Rows for which a task failed", ["task"], **own)
        self.rows = client.Counter("pluribus_row_errors", "Rows that were answered with an error", **own)
        self._rows: dict[tuple[str, ...], int] = {}  # rows by the tasks asked for, not yet in `tasks`
        self._failed: Counter[str] = Counter()  # of those, rows without this task
        self.refused = client.Counter("pluribus_refusals", "Requests that were refused", ["reason"], **own)

    def answered(self, tasks: Sequence[str], slots: Sequence[Mapping[str, Any]]) -> None:
        """Count the rows of one request by what became of them."""
        whole = sum(len(slot) == 1 and "values" in slot for slot in slots)
        wrong = 0 if whole == len(slots) else self._troubles(slots)
        key = tuple(tasks)  # the labels are looked up when somebody asks: a request is not slower for its tasks
        self._rows[key] = self._rows.get(key, 0) + len(slots) - wrong
        if len(self._rows) > SELECTIONS:
            self._look_up()

    def _troubles(self, slots: Sequence[Mapping[str, Any]]) -> int:
        """Count tasks that failed and rows in error; the number of these."""
        wrong = sum("error" in slot for slot in slots)
        self.rows.inc(wrong)
        failed = Counter(name for slot in slots for name in slot.get("failed", ()))
        for name, count in failed.items():
            self.failed.labels(name).inc(count)
        self._failed.update(failed)
        return wrong

    def _look_up(self) -> None:
        done: Counter[str] = Counter()
        for tasks, rows in self._rows.items():
            done.update(dict.fromkeys(tasks, rows))
        done.subtract(self._failed)
        for name, count in done.items():
            self.tasks.labels(name).inc(count)
        self._rows.clear()
        self._failed.clear()

    def text(self) -> bytes:
        """The current figures."""
        self._look_up()
        found: bytes = self._client.generate_latest(self._registry)
        return found
