"""Shared bottom with weights that stay: a grid of points, the one with the best validation skill is kept.

The plainest thing that a balancer has to beat beside equal weights: one task's loss counts four times as much as the others',
for each task in turn; beyond eleven tasks eleven seeded points of the simplex. As under every balancer the weights are those of
the gradients in the shared part; heads learn from their own task's plain loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from pluribus.balancing import Balancer, EqualWeighting
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.tabular.joint_networks import SharedBottomEqual

FAVOUR = 4.0
MOST = 12


def points(tasks: Sequence[str]) -> list[dict[str, float]]:
    """The grid: equal weights first; weights sum to the number of tasks."""
    T = len(tasks)
    if T < MOST:
        rows = np.vstack([np.ones(T), 1 + (FAVOUR - 1) * np.eye(T)])
    else:
        rows = np.vstack([np.ones(T), np.random.default_rng(0).dirichlet(np.ones(T), MOST - 1)])
    return [dict(zip(tasks, (T * row / row.sum()).tolist())) for row in rows]


class SharedBottomFixed(SharedBottomEqual):
    """Setting `point`: which point of the grid."""

    name = "shared_bottom_fixed"
    label = "Shared bottom, fixed weights of a grid"
    defaults: ClassVar[Mapping[str, Any]] = {**SharedBottomEqual.defaults, "point": 0}

    def grid(self, data: Prepared) -> list[dict[str, Any]]:
        return [{"point": k} for k in range(len(points([task.name for task in data.tasks])))]

    def balancer(self, data: Prepared) -> Balancer:
        grid, point = points([task.name for task in data.tasks]), self.settings["point"]
        if not (isinstance(point, int) and 0 <= point < len(grid)):
            raise BadInput(f"point is {point!r}", where=f"candidate {self.name!r}", remedy=f"a whole number below {len(grid)}")
        return EqualWeighting(preference=grid[point])
