"""What is to be predicted: tasks, their kinds, and the metrics they are judged by."""

from pluribus.tasks.kinds import KINDS, Kind, kind, register
from pluribus.tasks.metrics import METRICS, Metric, metric
from pluribus.tasks.task import Task

__all__ = ["KINDS", "METRICS", "Kind", "Metric", "Task", "kind", "metric", "register"]
