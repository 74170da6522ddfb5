"""Merging fine-tuned models: tensors by name, no models needed.

`merge` is the door; one file a method. `run` plans and merges, `stream` is the engine, `algebra` what a method is made of,
`checkpoints` how strangers' folders fit together, `folder` what is written, `doctor` what to look at first. `coefficients` learns
how much of which expert from data; `container` and `served` keep what each task adds and serve all tasks in one forward.
"""

from pluribus.merging.adamerging import adamerging, doge_adamerging
from pluribus.merging.atlas import atlas
from pluribus.merging.concrete import concrete
from pluribus.merging.container import MergeContainer
from pluribus.merging.logits_fusion import LogitsFusion
from pluribus.merging.run import merge
from pluribus.merging.self_positioning import self_positioning
from pluribus.merging.twin import twin

__all__ = [
    "LogitsFusion",
    "MergeContainer",
    "adamerging",
    "atlas",
    "concrete",
    "doge_adamerging",
    "merge",
    "self_positioning",
    "twin",
]
