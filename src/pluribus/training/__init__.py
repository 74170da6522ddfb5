"""Training: one optimiser step, and stages of steps over tables with holes."""

from pluribus.training.callbacks import Callback, JsonLog, MLflow, Progress
from pluribus.training.history import History
from pluribus.training.judging import predict
from pluribus.training.optimizer import SliceAdamW
from pluribus.training.stage import Stage
from pluribus.training.step import Step, StepResult
from pluribus.training.trainer import Trainer
from pluribus.training.update import Rate, Update, check_finite

__all__ = [
    "Callback",
    "History",
    "JsonLog",
    "MLflow",
    "Progress",
    "Rate",
    "SliceAdamW",
    "Stage",
    "Step",
    "StepResult",
    "Trainer",
    "Update",
    "check_finite",
    "predict",
]
