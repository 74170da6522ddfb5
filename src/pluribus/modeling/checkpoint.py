"""The model folder under its first name (see `pluribus.modeling.artefact.folder` and `loading`)."""

from pluribus.modeling.artefact.folder import MANIFEST, SCHEMA_VERSION, read_manifest
from pluribus.modeling.artefact.loading import load

__all__ = ["MANIFEST", "SCHEMA_VERSION", "load", "read_manifest"]
