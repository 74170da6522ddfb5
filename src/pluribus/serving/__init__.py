"""One artefact behind HTTP: rows in, predictions out, concurrent requests in one forward.

from pluribus import load
from pluribus.serving import application, Limits
app = application(load("runs/loans/model"), Limits(rows=1000))       # any ASGI server runs it; `pluribus serve` does
"""

from pluribus.serving.batching import Batcher
from pluribus.serving.bodies import Limits
from pluribus.serving.server import application, run

__all__ = ["Batcher", "Limits", "application", "run"]
