"""Sharing architectures: from one encoder's features to one set of features per task."""

from pluribus.sharing.adatt import AdaTT
from pluribus.sharing.cgc import CGC
from pluribus.sharing.cross_stitch import CrossStitch
from pluribus.sharing.dselect_k import DSelectK
from pluribus.sharing.home import HoME
from pluribus.sharing.mmoe import MMoE
from pluribus.sharing.mtan import MTAN
from pluribus.sharing.ple import PLE
from pluribus.sharing.shared_bottom import SharedBottom

__all__ = ["CGC", "MTAN", "PLE", "AdaTT", "CrossStitch", "DSelectK", "HoME", "MMoE", "SharedBottom"]
