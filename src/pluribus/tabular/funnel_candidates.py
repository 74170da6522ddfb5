"""Funnels as candidates: ESMM, ESCM² (two risks) and AITM, where the table's tasks follow one another (`Task(after=…)`).

What the columns hold, and what the verdict judges: a step's column `TASK__p` is P(step | the step before it happened), at
every row; its own cells are the rows where the step before happened, and there it is judged, like any specialist trained on them
alone. The probability of the whole way (click *and* buy, over all exposures) is the product along the chain:
`pluribus.modeling.funnels.whole_way`. ESMM and ESCM² give the conditional probability themselves; AITM's network gives
P(whole way), and answers with the ratio of two of them, cut at 1 (`Handed`).

- encoder, its settings and search space are the specialists'; `sharing` is any sharing architecture of the catalog below it
  (shared bottom, MMoE, PLE, …) with its defaults and the towers' width, `balancer` any balancer (a study spells it `esmm+NAME`);
- a table without a funnel is `unfit`; tasks outside the funnel train beside it as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pluribus import catalog
from pluribus.balancing import Balancer
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Choice, LogUniform, Objective, SearchSpace
from pluribus.modeling.funnels import ESCM2, ESMM, Calibrated, WholeWay, chains
from pluribus.sharing import AITM
from pluribus.tabular.joint_networks import JointNetwork, balancer_of, tower_of
from pluribus.tabular.mlp import TabularMLP
from pluribus.tabular.network import Network
from pluribus.tabular.settings import DEFAULTS, SPACE, encoder_settings
from pluribus.tabular.sharing_candidates import examined
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

HIDDEN = Choice((32, 64, 128))


def no_funnel(tasks: Sequence[Task]) -> str | None:
    """Why these tasks are not a funnel, or None where they are."""
    try:
        found = chains(tasks)
    except BadInput as error:
        return str(error)
    return None if any(len(chain) > 1 for chain in found.values()) else "no task comes after another; declare it with `after`"


class Handed(WholeWay):
    """AITM on the tabular MLP."""

    @classmethod
    def of(cls, tasks: Sequence[Task], columns: FittedColumns, *, hidden: int = 64, tower: int = 32, **settings: Any) -> Handed:
        """The model for tables that `columns` encodes; settings: those of `TabularMLP`."""
        encoder = TabularMLP.of(columns, **settings)
        return cls(tasks, encoder, AITM(tasks, encoder.width, hidden=hidden, tower=tower))


class _FunnelNetwork(JointNetwork):
    """A joint network that needs a funnel."""

    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "sharing": "shared_bottom", "tower": 64, "balancer": "equal"}
    space = SearchSpace({**SPACE.ranges, "sharing": Choice(("shared_bottom", "mmoe", "ple")), "tower": Choice((0, 32, 64, 128))})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        catalog.get("sharing", self.settings.get("sharing", "shared_bottom"))
        named = catalog.get("balancer", self.settings["balancer"])
        if named.name != "equal":
            vars(self)["label"] = f"{self.label}, {named.resolve().__name__}"

    def balancer(self, data: Prepared) -> Balancer:
        return balancer_of(self.settings, data)

    def unfit(self, data: Prepared) -> str | None:
        return super().unfit(data) or no_funnel(data.tasks)

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Network:
        return examined(super().fit(data, budget, seed), data)

    def part(self) -> tuple[str, dict[str, Any]]:
        """The sharing architecture's name and settings."""
        return self.settings["sharing"], tower_of(self.settings["sharing"], self.settings["tower"])

    def config(self, data: Prepared) -> dict[str, Any]:
        name, settings = self.part()
        encoder = {"name": "tabular_mlp", "settings": encoder_settings(self.settings, data)}
        return {"encoder": encoder, "sharing": {"name": name, "settings": settings}}


class ESMMNetwork(_FunnelNetwork):
    """Every step judged over all exposures by the product of the steps' probabilities."""

    name = "esmm"
    label = "ESMM"

    def objective(self, data: Prepared) -> Objective:
        return ESMM(data.tasks)


class _ESCM2Network(_FunnelNetwork):
    defaults: ClassVar[Mapping[str, Any]] = {**_FunnelNetwork.defaults, "lambda_c": 0.1, "lambda_g": 1.0, "clip": 15.0}
    space = SearchSpace({**_FunnelNetwork.space.ranges, "lambda_c": LogUniform(0.03, 1.0)})

    def objective(self, data: Prepared) -> Objective:
        chosen = {name: self.settings[name] for name in ("lambda_c", "lambda_g", "clip")}
        return ESCM2(data.tasks, risk="dr" if self.name == "escm2_dr" else "ips", **chosen)


class ESCM2IPSNetwork(_ESCM2Network):
    """ESMM and the conditional step's own risk, corrected by inverse propensities."""

    name = "escm2_ips"
    label = "ESCM², inverse propensities"


class ESCM2DRNetwork(_ESCM2Network):
    """ESMM and the conditional step's own risk, doubly robust: inverse propensities and an imputed error."""

    name = "escm2_dr"
    label = "ESCM², doubly robust"

    def part(self) -> tuple[str, dict[str, Any]]:
        inside = self.settings["sharing"]
        return "imputed", {"inside": inside, **tower_of(inside, self.settings["tower"])}


class AITMNetwork(_FunnelNetwork):
    """What a step knows is handed to the next; alpha weighs the behavioural calibrator (0: without it)."""

    name = "aitm"
    label = "AITM"
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "hidden": 64, "tower": 32, "alpha": 0.6, "balancer": "equal"}
    space = SearchSpace({**SPACE.ranges, "hidden": HIDDEN, "tower": Choice((0, 32, 64)), "alpha": Choice((0.0, 0.3, 0.6, 1.0))})

    def part(self) -> tuple[str, dict[str, Any]]:
        return "aitm", {"hidden": self.settings["hidden"], "tower": self.settings["tower"]}

    def config(self, data: Prepared) -> dict[str, Any]:
        settings = {**encoder_settings(self.settings, data), **self.part()[1]}
        return {"architecture": {"name": "aitm", "settings": settings}}

    def objective(self, data: Prepared) -> Objective:
        return Calibrated(data.tasks, alpha=self.settings["alpha"])
