"""Sharing architectures: from one encoder's features to one set of features per task."""

from pluribus.sharing.shared_bottom import SharedBottom

__all__ = ["SharedBottom"]
