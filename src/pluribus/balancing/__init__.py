"""Balancing: every loss and gradient balancer, in anybody's training loop.

A newcomer who knows a paper's name finds the file of that name; this page is the table of contents.
"""

from pluribus.balancing.aligned_mtl import AlignedMTL
from pluribus.balancing.auto_lambda import AutoLambda
from pluribus.balancing.balancer import Balancer
from pluribus.balancing.cagrad import CAGrad
from pluribus.balancing.config import ConFIG
from pluribus.balancing.db_mtl import DBMTL
from pluribus.balancing.decision import Decision
from pluribus.balancing.diagnostics import Diagnostics, at_features, group_tasks
from pluribus.balancing.doors import backward, combine
from pluribus.balancing.dualproj import DualProj
from pluribus.balancing.dynamic_weight_average import DynamicWeightAverage
from pluribus.balancing.ema import EMA
from pluribus.balancing.equal_weighting import EqualWeighting
from pluribus.balancing.excess_mtl import ExcessMTL
from pluribus.balancing.fairgrad import FairGrad
from pluribus.balancing.famo import FAMO
from pluribus.balancing.flat_regions import FlatRegions
from pluribus.balancing.fuller import Fuller, equalise_gradients
from pluribus.balancing.geometric_loss import GeometricLoss
from pluribus.balancing.graddrop import GradDrop
from pluribus.balancing.gradnorm import GradNorm
from pluribus.balancing.gradvac import GradVac
from pluribus.balancing.imtl_g import IMTLG
from pluribus.balancing.imtl_l import IMTLL
from pluribus.balancing.log_loss import LogLoss
from pluribus.balancing.mgda import MGDA, MGDAUB
from pluribus.balancing.moco import MoCo
from pluribus.balancing.modo import MoDo
from pluribus.balancing.nash_mtl import NashMTL
from pluribus.balancing.pcgrad import PCGrad
from pluribus.balancing.processes import Processes
from pluribus.balancing.random_loss_weighting import RandomLossWeighting
from pluribus.balancing.rep_mtl import RepMTL
from pluribus.balancing.sdmgrad import SDMGrad
from pluribus.balancing.stch import STCH
from pluribus.balancing.torchjd import TorchJD
from pluribus.balancing.uncertainty_weighting import UncertaintyWeighting
from pluribus.balancing.upgrad import UPGrad

Step = Decision
"""Its name in the first edition; a step is now one of the optimiser (`pluribus.training.Step`)."""

__all__ = [
    "DBMTL",
    "EMA",
    "FAMO",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "MGDAUB",
    "STCH",
    "AlignedMTL",
    "AutoLambda",
    "Balancer",
    "CAGrad",
    "ConFIG",
    "Decision",
    "Diagnostics",
    "DualProj",
    "DynamicWeightAverage",
    "EqualWeighting",
    "ExcessMTL",
    "FairGrad",
    "FlatRegions",
    "Fuller",
    "GeometricLoss",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "LogLoss",
    "MoCo",
    "MoDo",
    "NashMTL",
    "PCGrad",
    "Processes",
    "RandomLossWeighting",
    "RepMTL",
    "SDMGrad",
    "Step",
    "TorchJD",
    "UPGrad",
    "UncertaintyWeighting",
    "at_features",
    "backward",
    "combine",
    "equalise_gradients",
    "group_tasks",
]
