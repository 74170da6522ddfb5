"""Every sharing architecture on the tabular MLP as a candidate: the encoder, settings and search space of the specialists,
the plain sum of the tasks' losses, and the architecture's own few settings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from pluribus import catalog
from pluribus.balancing import Balancer, EqualWeighting
from pluribus.data.prepared import Prepared
from pluribus.modeling import Budget, Choice, IntRange, SearchSpace
from pluribus.sharing import HoME
from pluribus.tabular.joint_networks import JointNetwork
from pluribus.tabular.network import Network
from pluribus.tabular.settings import DEFAULTS, SPACE, encoder_settings, weights_of

TOWER = Choice((0, 32, 64))
EXPERT = Choice((32, 64, 128))


class _Shared(JointNetwork):
    """A joint network whose cost estimate counts the architecture's weights too."""

    def balancer(self, data: Prepared) -> Balancer:
        return EqualWeighting()

    def estimate(self, data: Prepared) -> float:
        """15 epochs of 6 FLOPs per weight and row, at 15 GFLOP/s."""
        settings = {name: self.settings[name] for name in self.sharing_settings}
        with torch.device("meta"):
            sharing = catalog.get("sharing", self.sharing).resolve()(
                data.tasks, encoder_settings(self.settings, data)["width"], **settings
            )
        weights = weights_of(self.settings, data) + sum(p.numel() for p in sharing.parameters())
        return float(15 * 6 * weights * len(data.parts["train"]) / 1.5e10 + 0.5)


class MMoENetwork(_Shared):
    """One bank of experts, a gate a task."""

    name = sharing = "mmoe"
    label = "MMoE"
    sharing_settings = ("experts", "expert", "tower", "top_k", "gate_dropout")
    defaults: ClassVar[Mapping[str, Any]] = {
        **DEFAULTS, "experts": 8, "expert": 64, "tower": 32, "top_k": None, "gate_dropout": 0.0,
    }  # fmt: skip
    space = SearchSpace({**SPACE.ranges, "experts": IntRange(2, 16), "expert": EXPERT, "tower": TOWER})


class CGCNetwork(_Shared):
    """Own experts beside shared ones, one level."""

    name = sharing = "cgc"
    label = "CGC"
    sharing_settings = ("own", "shared", "expert", "tower")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "own": 1, "shared": 2, "expert": 64, "tower": 32}
    space = SearchSpace({
        **SPACE.ranges, "own": IntRange(1, 3), "shared": IntRange(1, 4), "expert": EXPERT, "tower": TOWER,
    })  # fmt: skip


class PLENetwork(_Shared):
    """Own experts beside shared ones, in levels."""

    name = sharing = "ple"
    label = "PLE"
    sharing_settings = ("levels", "own", "shared", "expert", "tower")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "levels": 2, "own": 1, "shared": 2, "expert": 64, "tower": 32}
    space = SearchSpace({
        **SPACE.ranges, "levels": IntRange(1, 3), "own": IntRange(1, 2), "shared": IntRange(1, 3), "expert": EXPERT,
        "tower": TOWER,
    })  # fmt: skip


class CrossStitchNetwork(_Shared):
    """A network a task on the encoder, stitched after every layer."""

    name = sharing = "cross_stitch"
    label = "Cross-stitch"
    sharing_settings = ("layers", "hidden", "own", "tower")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "layers": 2, "hidden": 64, "own": 0.9, "tower": 0}
    space = SearchSpace({**SPACE.ranges, "layers": IntRange(1, 3), "hidden": EXPERT, "own": Choice((0.6, 0.8, 0.9))})


class DSelectKNetwork(_Shared):
    """Every task chooses k of n experts."""

    name = sharing = "dselect_k"
    label = "DSelect-k"
    sharing_settings = ("experts", "k", "expert", "tower", "entropy")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "experts": 8, "k": 2, "expert": 64, "tower": 32, "entropy": 1e-2}
    space = SearchSpace({
        **SPACE.ranges, "experts": Choice((4, 8, 16)), "k": IntRange(1, 4), "expert": EXPERT, "tower": TOWER,
        "entropy": Choice((1e-3, 1e-2, 1e-1)),
    })  # fmt: skip


class MTANNetwork(_Shared):
    """One trunk, soft masks a task."""

    name = sharing = "mtan"
    label = "MTAN"
    sharing_settings = ("blocks", "hidden", "attention", "tower")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "blocks": 2, "hidden": 64, "attention": 32, "tower": 0}
    space = SearchSpace({**SPACE.ranges, "blocks": IntRange(1, 3), "hidden": EXPERT, "attention": Choice((16, 32, 64))})


class AdaTTNetwork(_Shared):
    """Gated fusion of all experts with a residual of the own ones."""

    name = sharing = "adatt"
    label = "AdaTT"
    sharing_settings = ("levels", "own", "shared", "expert", "tower")
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "levels": 2, "own": 1, "shared": 1, "expert": 64, "tower": 32}
    space = SearchSpace({
        **SPACE.ranges, "levels": IntRange(1, 3), "own": IntRange(1, 2), "shared": IntRange(0, 2), "expert": EXPERT,
        "tower": TOWER,
    })  # fmt: skip


class HoMENetwork(_Shared):
    """A hierarchy of normalised experts; the norms are folded into the weights once training is over."""

    name = sharing = "home"
    label = "HoME"
    sharing_settings = ("categories", "meta", "common", "shared", "own", "expert", "rank", "mixed", "tower")
    defaults: ClassVar[Mapping[str, Any]] = {
        **DEFAULTS, "categories": None, "meta": 1, "common": 1, "shared": 1, "own": 1, "expert": 64, "rank": 8, "mixed": 2,
        "tower": 32,
    }  # fmt: skip
    space = SearchSpace({
        **SPACE.ranges, "meta": IntRange(1, 2), "own": IntRange(1, 2), "expert": EXPERT, "rank": Choice((4, 8, 16)),
        "tower": TOWER,
    })  # fmt: skip

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Network:
        fitted = super().fit(data, budget, seed)
        began = time.process_time()
        assert isinstance(fitted.model.sharing, HoME)
        fitted.model.sharing.fold()
        chosen = fitted.config["sharing"]
        fitted.config["sharing"] = {**chosen, "settings": {**chosen["settings"], "folded": True}}
        fitted.record["seconds"] += time.process_time() - began
        return fitted
