"""Sharing architectures: from one encoder's features to one set of features per task."""

from pluribus.sharing.cgc import CGC
from pluribus.sharing.mmoe import MMoE
from pluribus.sharing.ple import PLE
from pluribus.sharing.shared_bottom import SharedBottom

__all__ = ["CGC", "PLE", "MMoE", "SharedBottom"]
