"""Tables with holes: reading, encoding, splitting, sampling, batching."""

from pluribus.data.batch import Batch, Labels, Rows

__all__ = ["Batch", "Labels", "Rows"]
