"""Models, candidates and what a fit leaves behind."""

from pluribus.modeling.candidate import Budget, Candidate, Choice, Costs, Fitted, IntRange, LogUniform, SearchSpace, Uniform
from pluribus.modeling.checkpoint import load
from pluribus.modeling.heads import Heads
from pluribus.modeling.model import Encoder, Features, MultiTaskModel, Outputs, Shared, Sharing
from pluribus.modeling.objective import Losses, Objective, Supervised

__all__ = [
    "Budget",
    "Candidate",
    "Choice",
    "Costs",
    "Encoder",
    "Features",
    "Fitted",
    "Heads",
    "IntRange",
    "LogUniform",
    "Losses",
    "MultiTaskModel",
    "Objective",
    "Outputs",
    "SearchSpace",
    "Shared",
    "Sharing",
    "Supervised",
    "Uniform",
    "load",
]
