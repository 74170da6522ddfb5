"""Sharing architectures: from one encoder's features to one set of features per task."""

from pluribus.sharing.adatt import AdaTT
from pluribus.sharing.aitm import AITM
from pluribus.sharing.cgc import CGC
from pluribus.sharing.cross_stitch import CrossStitch
from pluribus.sharing.dselect_k import DSelectK
from pluribus.sharing.health import Health, health
from pluribus.sharing.home import HoME
from pluribus.sharing.imputed import Imputed
from pluribus.sharing.mmoe import MMoE
from pluribus.sharing.mtan import MTAN
from pluribus.sharing.ple import PLE
from pluribus.sharing.shared_bottom import SharedBottom
from pluribus.sharing.star import Star

__all__ = [
    "AITM",
    "CGC",
    "MTAN",
    "PLE",
    "AdaTT",
    "CrossStitch",
    "DSelectK",
    "Health",
    "HoME",
    "Imputed",
    "MMoE",
    "SharedBottom",
    "Star",
    "health",
]
