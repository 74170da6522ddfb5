"""Models, candidates and what a fit leaves behind."""

from pluribus.modeling.artefact.fitted import Costs, Fitted
from pluribus.modeling.artefact.loading import load
from pluribus.modeling.artefact.record import FitRecord
from pluribus.modeling.budget import Budget
from pluribus.modeling.candidate import Candidate
from pluribus.modeling.features import Features, Outputs, Shared
from pluribus.modeling.heads import Heads
from pluribus.modeling.model import Encoder, MultiTaskModel, Sharing
from pluribus.modeling.objective import Losses, Objective, Supervised
from pluribus.modeling.search import Choice, IntRange, LogUniform, SearchSpace, Uniform

__all__ = [
    "Budget",
    "Candidate",
    "Choice",
    "Costs",
    "Encoder",
    "Features",
    "FitRecord",
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
