"""Merging fine-tuned models: tensors by name, no models needed.

`merge` is the door; one file a method. `run` plans and merges, `stream` is the engine, `algebra` what a method is made of,
`checkpoints` how strangers' folders fit together, `folder` what is written, `doctor` what to look at first.
"""

from pluribus.merging.run import merge

__all__ = ["merge"]
