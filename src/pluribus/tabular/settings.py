"""What all tabular networks share: default settings, where they are searched, and what "auto" means.

One encoder and one search space for the specialists and for every joint network, so that a difference between them is a
difference made by sharing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Choice, LogUniform, SearchSpace, Uniform
from pluribus.tabular.embeddings import EMBEDDINGS

DEFAULTS: dict[str, Any] = {
    "width": "auto",  # hidden units; auto: see `width_of`
    "depth": 2,  # residual blocks
    "dropout": 0.2,
    "embedding": "piecewise_linear",
    "bins": 8,  # of the piecewise-linear encoding
    "sigma": 0.1,  # spread of the frequencies of plr and plr_lite
    "category_size": 8,
    "lr": 2e-3,
    "weight_decay": 1e-2,
    "batch_size": "auto",  # auto: see `batch_of`
    "epochs": 40,
    "patience": 5,
}

SPACE = SearchSpace(
    {
        "width": Choice((64, 128, 256)),
        "depth": Choice((1, 2, 3)),
        "dropout": Uniform(0.0, 0.4),
        "embedding": Choice(("plain", "piecewise_linear", "plr_lite")),
        "bins": Choice((8, 16, 32)),
        "lr": LogUniform(3e-4, 5e-3),
        "weight_decay": LogUniform(1e-4, 1e-1),
    }
)

_COLUMNS = ("embedding", "bins", "sigma")  # how the columns are seen; every encoder has these
ENCODERS: dict[str, tuple[str, ...]] = {  # the settings of each encoder
    "tabular_mlp": (*_COLUMNS, "width", "depth", "dropout", "category_size"),
    "ft_transformer": (*_COLUMNS, "width", "depth", "heads", "dropout", "attention_dropout"),
    "tabm": (*_COLUMNS, "width", "depth", "dropout", "members", "category_size"),
    "tabm_mini": (*_COLUMNS, "width", "depth", "dropout", "members", "category_size"),
    "multitab_net": (*_COLUMNS, "width", "depth", "heads", "hidden", "dropout", "attention_dropout", "tower"),
}


def encoder_settings(settings: Mapping[str, Any], data: Prepared, encoder: str = "tabular_mlp") -> dict[str, Any]:
    """The settings of an encoder, with "auto" resolved on the training part."""
    found = {name: settings[name] for name in ENCODERS[encoder]}
    if found["width"] == "auto":
        found["width"] = width_of(data)
    return found


def width_of(data: Prepared) -> int:
    """Hidden units that the rows can feed: the power of two at or below the root of the median number of labels a task
    has in the training part, between 32 and 256."""
    counts = [len(data.labelled(task.name, "train")) for task in data.tasks]
    return int(min(256, max(32, 2 ** int(math.log2(max(1.0, float(np.median(counts)))) / 2))))


def batch_of(settings: Mapping[str, Any], rows: int) -> int:
    """Rows a step: as set; "auto" makes 32 steps an epoch, within 16 … 1024."""
    if settings["batch_size"] != "auto":
        return int(settings["batch_size"])
    return int(min(1024, max(16, 2 ** int(math.log2(max(1, rows // 32) if rows else 1)))))


WHOLE = {  # the least of each
    **dict.fromkeys(
        (
            "width",
            "depth",
            "batch_size",
            "epochs",
            "patience",
            "bins",
            "category_size",
            "heads",
            "hidden",
            "members",
            "context",
            "layers",
            "size",
            "softmax",
            "sample",
            "top",
        ),
        1,
    ),
    "tower": 0,
}
POSITIVE = ("lr", "sigma", "tau", "tau_main")
AT_LEAST_0 = ("weight_decay", "entropy", "alpha", "lambda_c", "lambda_g", "category_weight")
SHARES = ("dropout", "attention_dropout", "gate_dropout", "drop", "smoothing")
AUTO = ("width", "batch_size")


def check(
    settings: Mapping[str, Any], where: str, automatic: Sequence[str] = AUTO, embeddings: Sequence[str] = EMBEDDINGS
) -> None:
    """Whole numbers, shares and positive numbers where they are needed, among the settings that are there; those that are
    `automatic` may be "auto"."""
    for name, value in settings.items():
        if value == "auto" and name in automatic:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name in WHOLE:
            if not (number and isinstance(value, int) and value >= WHOLE[name]):
                raise BadInput(f"{name} must be a whole number of at least {WHOLE[name]}, not {value!r}", where=where)
        elif name in POSITIVE and not (number and value > 0):
            raise BadInput(f"{name} must be a positive number, not {value!r}", where=where)
        elif name in AT_LEAST_0 and not (number and value >= 0):
            raise BadInput(f"{name} must be a number of at least 0, not {value!r}", where=where)
        elif name == "embedding" and value not in embeddings:
            raise unknown("numeric embedding", str(value), embeddings, where=where)
        elif name in SHARES and not (number and 0 <= value < 1):
            raise BadInput(f"{name} must be a share from 0 to below 1, not {value!r}", where=where)


def weights_of(settings: Mapping[str, Any], data: Prepared) -> int:
    """Weights of one encoder, roughly: what a training step's cost is proportional to."""
    found = encoder_settings(settings, data)
    inputs = sum(min(found["bins"], len(edges)) + 1 for edges in data.columns.bin_edges)
    inputs += found["category_size"] * len(data.columns.cardinalities)
    return int(found["width"] * (inputs + found["depth"] * found["width"]))
