"""Training: stages of steps over tables with holes."""

from pluribus.training.callbacks import Callback, JsonLog, MLflow, Progress
from pluribus.training.judging import predict
from pluribus.training.optimizer import SliceAdamW
from pluribus.training.stage import Stage
from pluribus.training.trainer import History, Trainer

__all__ = ["Callback", "History", "JsonLog", "MLflow", "Progress", "SliceAdamW", "Stage", "Trainer", "predict"]
