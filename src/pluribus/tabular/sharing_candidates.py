"""Every sharing architecture as a candidate: the settings and search space of the specialists, the plain sum of the tasks'
losses, and the architecture's own few settings. First those on the features of the specialists' encoder, the tabular MLP; then
the woven ones, whose networks begin at the columns' embeddings.

Where there are experts, their health on validation rows is kept in `record["expert_health"]` (see `pluribus.sharing.health`),
taken as training left them; then batch norms are folded into the weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from pluribus.balancing import Balancer, EqualWeighting
from pluribus.data.prepared import Prepared
from pluribus.modeling import Budget, Choice, IntRange, SearchSpace
from pluribus.modeling.experts import pack
from pluribus.sharing import health
from pluribus.sharing.stacked import Stacked
from pluribus.tabular.joint_networks import JointNetwork
from pluribus.tabular.network import Network
from pluribus.tabular.settings import DEFAULTS, SPACE, encoder_settings, width_of

TOWER = Choice((0, 32, 64))
EXPERT = Choice((32, 64, 128))


HEALTH_ROWS = 2000  # validation rows on which the experts' health is measured, at most


def examined(fitted: Network, data: Prepared) -> Network:
    """Look at the experts' health, and fold what batch norms there are into the weights."""
    began = time.process_time()
    found = health(fitted.model, data.batch(torch.from_numpy(data.parts["valid"][:HEALTH_ROWS]), tasks=()).inputs)
    if found.zero_share or found.gate_entropy:
        fitted.record["expert_health"] = found.to_dict()
    normed = [part for part in fitted.model.sharing.modules() if isinstance(part, Stacked) and part.normed]
    for part in normed:
        part.fold()
    if normed:
        chosen = fitted.config["sharing"]
        fitted.config["sharing"] = {**chosen, "settings": {**chosen["settings"], "norm": False}}
        pack(fitted.model)
    fitted.record["seconds"] += time.process_time() - began
    return fitted


class _ExaminedNetwork(JointNetwork):
    """A joint network whose experts are looked at."""

    def balancer(self, data: Prepared) -> Balancer:
        return EqualWeighting()

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Network:
        return examined(super().fit(data, budget, seed), data)


class MMoENetwork(_ExaminedNetwork):
    """One bank of experts, a gate a task."""

    name = sharing = "mmoe"
    label = "MMoE"
    sharing_settings = ("experts", "expert", "tower", "norm", "top_k", "gate_dropout")
    defaults: ClassVar[Mapping[str, Any]] = {
        **DEFAULTS,
        "experts": 8,
        "expert": 64,
        "tower": 32,
        "norm": False,
        "top_k": None,
        "gate_dropout": 0.0,
    }
    space = SearchSpace({**SPACE.ranges, "experts": IntRange(2, 16), "expert": EXPERT, "tower": TOWER})


class CGCNetwork(_ExaminedNetwork):
    """Own experts beside shared ones, one level."""

    name = sharing = "cgc"
    label = "CGC"
    sharing_settings = ("own", "shared", "expert", "tower", "norm")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "own": 1, "shared": 2, "expert": 64, "tower": 32, "norm": False}
    space = SearchSpace({**SPACE.ranges, "own": IntRange(1, 3), "shared": IntRange(1, 4), "expert": EXPERT, "tower": TOWER})


class PLENetwork(_ExaminedNetwork):
    """Own experts beside shared ones, in levels."""

    name = sharing = "ple"
    label = "PLE"
    sharing_settings = ("levels", "own", "shared", "expert", "tower", "norm")
    defaults: ClassVar[Mapping[str, Any]] = {
        **DEFAULTS,
        "levels": 2,
        "own": 1,
        "shared": 2,
        "expert": 64,
        "tower": 32,
        "norm": False,
    }
    space = SearchSpace(
        {
            **SPACE.ranges,
            "levels": IntRange(1, 3),
            "own": IntRange(1, 2),
            "shared": IntRange(1, 3),
            "expert": EXPERT,
            "tower": TOWER,
        }
    )


class CrossStitchNetwork(_ExaminedNetwork):
    """A network a task on the encoder, stitched after every layer."""

    name = sharing = "cross_stitch"
    label = "Cross-stitch"
    sharing_settings = ("layers", "hidden", "own", "tower")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "layers": 2, "hidden": 64, "own": 0.9, "tower": 0}
    space = SearchSpace({**SPACE.ranges, "layers": IntRange(1, 3), "hidden": EXPERT, "own": Choice((0.6, 0.8, 0.9))})


class DSelectKNetwork(_ExaminedNetwork):
    """Every task chooses k of n experts."""

    name = sharing = "dselect_k"
    label = "DSelect-k"
    sharing_settings = ("experts", "k", "expert", "tower", "entropy", "per_example", "norm")
    defaults: ClassVar[Mapping[str, Any]] = {
        **DEFAULTS,
        "experts": 8,
        "k": 2,
        "expert": 64,
        "tower": 32,
        "entropy": 1e-2,
        "per_example": False,
        "norm": False,
    }
    space = SearchSpace(
        {
            **SPACE.ranges,
            "experts": Choice((4, 8, 16)),
            "k": IntRange(1, 4),
            "expert": EXPERT,
            "tower": TOWER,
            "entropy": Choice((1e-3, 1e-2, 1e-1)),
            "per_example": Choice((False, True)),
        }
    )


class MTANNetwork(_ExaminedNetwork):
    """One trunk, soft masks a task."""

    name = sharing = "mtan"
    label = "MTAN"
    sharing_settings = ("blocks", "hidden", "attention", "tower")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "blocks": 2, "hidden": 64, "attention": 32, "tower": 0}
    space = SearchSpace({**SPACE.ranges, "blocks": IntRange(1, 3), "hidden": EXPERT, "attention": Choice((16, 32, 64))})


class AdaTTNetwork(_ExaminedNetwork):
    """Gated fusion of all experts with a residual of the own ones."""

    name = sharing = "adatt"
    label = "AdaTT"
    sharing_settings = ("levels", "own", "shared", "expert", "tower", "norm")
    defaults: ClassVar[Mapping[str, Any]] = {
        **DEFAULTS,
        "levels": 2,
        "own": 1,
        "shared": 1,
        "expert": 64,
        "tower": 32,
        "norm": False,
    }
    space = SearchSpace(
        {
            **SPACE.ranges,
            "levels": IntRange(1, 3),
            "own": IntRange(1, 2),
            "shared": IntRange(0, 2),
            "expert": EXPERT,
            "tower": TOWER,
        }
    )


class HoMENetwork(_ExaminedNetwork):
    """A hierarchy of normalised experts; the norms are folded into the weights once training is over."""

    name = sharing = "home"
    label = "HoME"
    sharing_settings = ("categories", "meta", "common", "shared", "own", "expert", "rank", "mixed", "tower", "norm")
    defaults: ClassVar[Mapping[str, Any]] = {
        **DEFAULTS,
        "categories": None,
        "meta": 1,
        "common": 1,
        "shared": 1,
        "own": 1,
        "expert": 64,
        "rank": 8,
        "mixed": 2,
        "tower": 32,
        "norm": True,
    }
    space = SearchSpace(
        {
            **SPACE.ranges,
            "meta": IntRange(1, 2),
            "own": IntRange(1, 2),
            "expert": EXPERT,
            "rank": Choice((4, 8, 16)),
            "tower": TOWER,
        }
    )


# Woven: networks from the columns' embeddings on

_EMBEDDINGS = ("embedding", "bins", "sigma", "category_size")
_WOVEN = {name: value for name, value in DEFAULTS.items() if name != "dropout"}
_WOVEN_SPACE = {name: value for name, value in SPACE.ranges.items() if name != "dropout"}


class _Architecture(_ExaminedNetwork):
    """architecture: its name in the catalog. own_settings: those of the candidate's settings that go to it."""

    architecture: ClassVar[str]
    own_settings: ClassVar[tuple[str, ...]] = ()

    def config(self, data: Prepared) -> dict[str, Any]:
        return {"architecture": {"name": self.architecture, "settings": self.built(data)}}

    def built(self, data: Prepared) -> dict[str, Any]:
        """The architecture's settings: `width` units in each of `depth` layers."""
        width = width_of(data) if self.settings["width"] == "auto" else self.settings["width"]
        found = {name: self.settings[name] for name in (*_EMBEDDINGS, *self.own_settings)}
        return {**found, "hidden": [width] * self.settings["depth"]}


class STARNetwork(_Architecture):
    """A centre that all share, times a layer of each domain's own: every task a domain, or every category of the column named
    `domain`."""

    name = architecture = "star"
    label = "STAR"
    own_settings = ("domain", "auxiliary")
    defaults: ClassVar[Mapping[str, Any]] = {**_WOVEN, "domain": None, "auxiliary": 16}
    space = SearchSpace({**_WOVEN_SPACE, "auxiliary": Choice((0, 16, 32))})


class PEPNetNetwork(_Architecture):
    """A tower a task behind gates that read the columns named `prior` (None: the categorical ones) and the `domain`'s."""

    name = architecture = "pepnet"
    label = "PEPNet"
    own_settings = ("domain", "prior", "gate")
    defaults: ClassVar[Mapping[str, Any]] = {**_WOVEN, "domain": None, "prior": None, "gate": 64}
    space = SearchSpace({**_WOVEN_SPACE, "gate": Choice((32, 64, 128))})


class STEMNetwork(_Architecture):
    """Tables of embeddings a task beside shared ones: all are read, only a task's own and the shared are trained by it."""

    name = architecture = "stem"
    label = "STEM"
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "tower": 32}
    space = SearchSpace({**SPACE.ranges, "tower": TOWER})

    def built(self, data: Prepared) -> dict[str, Any]:
        return {**encoder_settings(self.settings, data), "tower": self.settings["tower"]}


class WholeCrossStitch(_Architecture):
    """A network a task from the input on, stitched after every layer."""

    name = architecture = "cross_stitch_networks"
    label = "Cross-stitch, whole networks"
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "own": 0.9}
    space = SearchSpace({**SPACE.ranges, "own": Choice((0.6, 0.8, 0.9))})

    def built(self, data: Prepared) -> dict[str, Any]:
        return {**encoder_settings(self.settings, data), "own": self.settings["own"]}
