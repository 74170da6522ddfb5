"""The other encoders as candidates: each joint, and as one network per task, so that both can be compared on the same encoder.

Defaults are cut to tables of some ten thousand rows on a few cores; the papers' sizes are within the search spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from pluribus.balancing import Balancer, EqualWeighting
from pluribus.data.prepared import Prepared
from pluribus.modeling import Choice, IntRange, LogUniform, MultiTaskModel, SearchSpace, Uniform
from pluribus.tabular import cost
from pluribus.tabular.embeddings import EMBEDDINGS
from pluribus.tabular.joint_networks import JointNetwork
from pluribus.tabular.multitab_net import MASKS, TOKENS, MultiTabEncoder
from pluribus.tabular.network import size_of
from pluribus.tabular.settings import encoder_settings
from pluribus.tabular.single_networks import SingleNetworks

Range = Choice | Uniform | LogUniform | IntRange

SPEED = 1.5e10  # FLOPs a second of a training step through columns that attend to one another, roughly

_TRAINING: dict[str, Any] = {"embedding": "plain", "bins": 8, "sigma": 0.1, "batch_size": "auto", "epochs": 40, "patience": 5}
_SPACE: dict[str, Range] = {"embedding": Choice(EMBEDDINGS), "bins": Choice((8, 16, 32)), "sigma": LogUniform(1e-2, 1.0)}

FT_TRANSFORMER: dict[str, Any] = {
    **_TRAINING,
    "width": 64,
    "depth": 2,
    "heads": 8,
    "dropout": 0.1,
    "attention_dropout": 0.2,
    "lr": 1e-3,
    "weight_decay": 1e-5,
}
FT_TRANSFORMER_SPACE: dict[str, Range] = {
    **_SPACE,
    "width": Choice((32, 64, 192)),
    "depth": IntRange(1, 4),
    "dropout": Uniform(0.0, 0.4),
    "attention_dropout": Uniform(0.0, 0.4),
    "lr": LogUniform(1e-4, 3e-3),
    "weight_decay": LogUniform(1e-6, 1e-3),
}

TABM: dict[str, Any] = {
    **_TRAINING,
    "embedding": "piecewise_linear",
    "width": "auto",
    "depth": 2,
    "dropout": 0.1,
    "members": 32,
    "category_size": 8,
    "lr": 2e-3,
    "weight_decay": 3e-4,
}
TABM_SPACE: dict[str, Range] = {
    **_SPACE,
    "width": Choice((64, 128, 256, 512)),
    "depth": IntRange(1, 4),
    "dropout": Uniform(0.0, 0.4),
    "lr": LogUniform(3e-4, 5e-3),
    "weight_decay": LogUniform(1e-4, 1e-1),
}

TABM_MINI: dict[str, Any] = {**TABM, "members": 8, "width": 128, "bins": 16, "epochs": 100, "patience": 16}

MULTITAB_NET: dict[str, Any] = {
    **_TRAINING,
    "width": 16,
    "depth": 1,
    "heads": 4,
    "hidden": 256,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "tower": 64,
    "lr": 2e-3,
    "weight_decay": 1e-5,
}
MULTITAB_NET_SPACE: dict[str, Range] = {
    **_SPACE,
    "width": Choice((8, 16, 32)),
    "depth": IntRange(1, 3),
    "hidden": Choice((64, 128, 256)),
    "dropout": Uniform(0.0, 0.3),
    "attention_dropout": Uniform(0.0, 0.3),
    "lr": LogUniform(3e-4, 5e-3),
    "weight_decay": LogUniform(1e-6, 1e-3),
}


class _Joint(JointNetwork):
    """A joint network on another encoder; its cost is counted on the model."""

    speed = SPEED

    def balancer(self, data: Prepared) -> Balancer:
        return EqualWeighting()

    def size(self, data: Prepared) -> tuple[float, int]:
        return size_of(data.tasks, data.columns, self.config(data))


class _EncoderArchitecture(_Joint):
    """A joint network that is an architecture of its own. own: its settings beside the encoder's."""

    architecture: ClassVar[str]
    own: ClassVar[tuple[str, ...]] = ()

    def config(self, data: Prepared) -> dict[str, Any]:
        settings = encoder_settings(self.settings, data, self.encoder)
        settings |= {name: self.settings[name] for name in self.own}
        return {"architecture": {"name": self.architecture, "settings": settings}}


class _Single(SingleNetworks):
    """One network per task on another encoder. slowness: its FLOPs against those of the tabular MLP's wide products."""

    slowness: ClassVar[float] = 1.5

    def _flops(self, data: Prepared) -> float:
        flops, _ = size_of(data.tasks[:1], data.columns, self.config(data))
        return self.slowness * flops

    def _tensors(self, data: Prepared) -> int:
        return size_of(data.tasks[:1], data.columns, self.config(data))[1]


class FTTransformerNetwork(_Joint):
    """One FT-Transformer, a head a task on its CLS."""

    name = encoder = "ft_transformer"
    label = "FT-Transformer"
    sharing = "shared_bottom"
    sharing_settings = ("tower",)
    defaults: ClassVar[Mapping[str, Any]] = {**FT_TRANSFORMER, "tower": 0}
    space = SearchSpace({**FT_TRANSFORMER_SPACE, "tower": Choice((0, 32, 64))})


class SingleFTTransformers(_Single):
    """One FT-Transformer per task, nothing shared."""

    name = "single_ft_transformer"
    label = "FT-Transformers, one per task"
    encoder = "ft_transformer"
    defaults = FT_TRANSFORMER
    space = SearchSpace(FT_TRANSFORMER_SPACE)


class TabMNetwork(_EncoderArchitecture):
    """One TabM for all tasks: members × tasks heads."""

    name = encoder = architecture = "tabm"
    speed = cost.SPEED
    label = "TabM"
    defaults: ClassVar[Mapping[str, Any]] = TABM
    space = SearchSpace(TABM_SPACE)


class TabMMiniNetwork(_EncoderArchitecture):
    """TabM-mini of a size that a few cores can afford: 8 members of 2 × 128 units that share all layers, 16 bins a number."""

    name = encoder = architecture = "tabm_mini"
    speed = cost.SPEED
    label = "TabM-mini"
    defaults: ClassVar[Mapping[str, Any]] = TABM_MINI
    space = SearchSpace({**TABM_SPACE, "width": Choice((64, 128, 256)), "members": Choice((8, 16))})


class SingleTabM(_Single):
    """One TabM per task, nothing shared."""

    name = "single_tabm"
    label = "TabM, one per task"
    encoder = "tabm"
    slowness = 0.8
    defaults = TABM
    space = SearchSpace(TABM_SPACE)


class MultiTabNetwork(_EncoderArchitecture):
    """MultiTab-Net: one transformer over the columns, one token a task."""

    name = encoder = architecture = "multitab_net"
    label = "MultiTab-Net"
    own = ("mask", "tokens", "rows", "context")
    defaults: ClassVar[Mapping[str, Any]] = {
        **MULTITAB_NET,
        "mask": "task_to_task",
        "tokens": "multi",
        "rows": False,
        "context": 64,
    }
    space = SearchSpace({**MULTITAB_NET_SPACE, "mask": Choice(MASKS), "tokens": Choice(TOKENS)})

    def config(self, data: Prepared) -> dict[str, Any]:
        found = super().config(data)
        chosen = found["architecture"]["settings"]
        chosen["context"] = min(chosen["context"], len(data.parts["train"]))
        return found

    def begin(self, model: MultiTaskModel, data: Prepared, seed: int) -> None:
        """Draw the context rows, where there are row layers, from the training part."""
        encoder = model.encoder
        assert isinstance(encoder, MultiTabEncoder)
        if encoder.rows:
            count = len(encoder.context_numeric)
            drawn = np.random.default_rng(seed).choice(data.parts["train"], count, replace=False)
            encoder.read_context(data.batch(torch.from_numpy(np.sort(drawn)), tasks=()).inputs)


class SingleMultiTab(_Single):
    """One MultiTab-Net with a single token per task, nothing shared."""

    name = "single_multitab_net"
    label = "MultiTab-Nets, one per task"
    encoder = "multitab_net"
    defaults = MULTITAB_NET
    space = SearchSpace(MULTITAB_NET_SPACE)
