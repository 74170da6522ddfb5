"""Merged folders under their first name (see `pluribus.modeling.artefact.merged`)."""

from pluribus.modeling.artefact.merged import Merged, MergedFolder

__all__ = ["Merged", "MergedFolder"]
