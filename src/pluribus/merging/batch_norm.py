"""Batch-norm statistics of a merged model, estimated anew on data: averages of the experts' statistics fit no merged weights.

Jordan, Sedghi, Saukh, Entezari, Neyshabur. "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023,
https://arxiv.org/abs/2211.08403 (its reset of the statistics).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from pluribus.errors import BadInput

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Set every batch norm's running mean and variance to the mean over `batches` of inputs. Returns how many norms there are.

    Everything else runs as in evaluation (no dropout); the weights do not change. batches: inputs, keywords, or pairs whose
    first is the inputs; the same number from every task, of at least two rows each.
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    modes = {m: m.training for m in model.modules()}
    momenta = [m.momentum for m in norms]
    if not norms:
        return 0
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        for batch in batches:
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise BadInput("there are no batches", where="batches", remedy="give at least one; the statistics are reset now")
    return len(norms)
