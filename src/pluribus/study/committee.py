"""The committee under its first name (see `pluribus.modeling.artefact.committee`)."""

from pluribus.modeling.artefact.committee import Committee

__all__ = ["Committee"]
