"""What a server counts, in Prometheus' format; one registry an application."""

from __future__ import annotations

from pluribus.errors import require

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """Latency of requests, rows of batches, rows a task, failures a task, rows in error, refusals by reason."""

    def __init__(self) -> None:
        client = require("prometheus_client", extra="serve", purpose="the metrics of a server")
        self._client, self._registry = client, client.CollectorRegistry()
        own = {"registry": self._registry}
        self.seconds = client.Histogram(
            "pluribus_request_seconds", "Time to answer a prediction request", buckets=SECONDS, **own
        )
        self.batch = client.Histogram("pluribus_batch_rows", "Rows of a batch", buckets=ROWS, **own)
        self.tasks = client.Counter("pluribus_task_rows", "Rows predicted for a task", ["task"], **own)
        self.failed = client.Counter("pluribus_task_failures", "Rows for which a task failed", ["task"], **own)
        self.rows = client.Counter("pluribus_row_errors", "Rows that were answered with an error", **own)
        self.refused = client.Counter("pluribus_refusals", "Requests that were refused", ["reason"], **own)

    def text(self) -> bytes:
        """The current figures."""
        found: bytes = self._client.generate_latest(self._registry)
        return found
