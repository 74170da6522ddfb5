"""What the Gram matrix tells for free: who fights whom, who helps whom, how many tasks there really are, how far from Pareto.

Sources: conflict ratio and cosines: Yu et al. (2020), PCGrad; affinity and grouping: Fifty et al. (2021), Efficiently
Identifying Task Groupings (TAG); Pareto stationarity: Désidéri (2012), Sener & Koltun (2018).

    conflict ratio       share of pairs with G_ij < 0
    cosines              C_ij = G_ij / √(G_ii G_jj)
    affinity             Ẑ_{i→j} = η G_ij / ℓ_j ≈ Z_{i→j} = 1 − ℓ_j(θ − η g_i)/ℓ_j(θ), TAG's lookahead to first order in η
    effective tasks      T² / Σ_ij C_ij²: T for orthogonal gradients, 1 for parallel (or antiparallel) ones
    Pareto gap           √(min_{w ∈ simplex} wᵀ G w / mean_t G_tt): 0 where some convex combination of the gradients vanishes

Where TAG's code differs: it pays a lookahead forward pass a task; here the Gram that a balancer measured anyway is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pluribus.balancing.decision import Decision
from pluribus.balancing.graph import places, stopped
from pluribus.balancing.heads import from_heads, seeds_of
from pluribus.balancing.hearing import Features, features_of, listen, outside_autocast
from pluribus.balancing.layers import gram_of
from pluribus.balancing.processes import Processes
from pluribus.errors import BadInput
from pluribus.linalg.min_norm import min_norm


def cosines(gram: Tensor) -> Tensor:
    """C [T, T]; a zero gradient has cosine 0 with all, itself included."""
    norm = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(norm > 0, 1 / norm, 0.0)
    return (gram * scale[:, None] * scale).clamp(-1, 1)


def conflict_ratio(gram: Tensor) -> Tensor:
    """The share of pairs i < j with G_ij < 0; 0 for one task."""
    T = gram.shape[0]
    return (gram < 0).sum() / 2 / max(T * (T - 1) / 2, 1)


def affinity(gram: Tensor, losses: Tensor, lr: float = 1.0) -> Tensor:
    """Ẑ [T, T]: the relative fall of loss j (column) that a step of size lr along task i's gradient (row) promises."""
    return lr * gram / losses.abs().clamp_min(1e-12)


def effective_tasks(gram: Tensor) -> Tensor:
    """The effective number of tasks, in [1, T] (0 where every gradient is zero)."""
    C = cosines(gram)
    return C.diagonal().sum() ** 2 / C.square().sum().clamp_min(1e-30)


def pareto_gap(gram: Tensor) -> Tensor:
    """The length of the shortest convex combination of the gradients over their root mean square length, in [0, 1]."""
    w = min_norm(gram)
    mean = gram.diagonal().mean()
    return ((w @ gram @ w).clamp_min(0) / mean.clamp_min(torch.finfo(gram.dtype).tiny)).sqrt()


SCALARS = ("conflict_ratio", "effective_tasks", "pareto_gap")


@outside_autocast
def at_features(losses: Mapping[str, Tensor], features: Features, *, processes: Processes | None = None) -> Decision:
    """What `Diagnostics.observe` takes, from losses and the shared features they were computed from: the Gram matrix of the
    tasks' gradients there, whatever balances them, if anything. One pass a task through its head; the graph stays.

    losses, features, processes: as `balancing.combine` takes them. A task that does not reach the features has a zero row.
    """
    first = features if isinstance(features, Tensor) else next(iter(features))
    heard = listen(losses, "unchecked", processes or Processes.running(), first)
    z = features_of(features, heard)
    rows: list[list[Tensor]] = [[] for _ in z]
    at = places(z)
    with stopped(z if len(z) > 1 else ()):
        for loss in heard.tensors:
            for row, f, g in zip(rows, z, from_heads(loss, at, seeds_of(z))):
                row.append(torch.zeros_like(f, requires_grad=False) if g is None else g)
    with torch.no_grad():
        local = gram_of([torch.stack(row) for row in rows]) if heard.tensors else heard.values.new_zeros(0, 0)
        return Decision(heard.present, heard.values, gram=heard.widen(local), source="features", why="asked for")


class Diagnostics:
    """Averages over the steps that were observed; tasks may come and go. Nothing is copied to the host before it is read.

    window: a cosine map is kept every so many observed steps (`cosine_maps`). lr: η of the affinity.

    ``diagnostics.observe(balancer.last)`` after each call of a door; steps without a Gram matrix count for the weights only.
    """

    def __init__(self, *, window: int = 100, lr: float = 1.0) -> None:
        if window < 1:
            raise BadInput(f"window is {window}", where="Diagnostics", remedy="give a whole number from 1")
        self.window, self.lr = window, lr
        self.tasks: list[str] = []
        self.steps = 0
        self.measured = 0
        self._sums: dict[str, Tensor] = {}
        self._recent: dict[str, Tensor] = {}
        self._maps: list[tuple[int, tuple[str, ...], Tensor, Tensor]] = []
        self._places: dict[tuple[str, ...], Tensor] = {}

    @torch.no_grad()
    def observe(self, step: Any) -> None:
        """Take up one `Decision`."""
        if step is None or step.skipped:
            return
        self.steps += 1
        like = step.losses if step.gram is None else step.gram
        at = self._at(step.tasks, like)
        if step.weights is not None:
            self._add("weights", at, step.weights)
            self._add("weighed", at, torch.ones_like(step.weights))
        if step.gram is None or step.source == "held":
            return
        self.measured += 1
        G, grid = step.gram, (at[:, None], at[None, :])
        C = cosines(G)
        self._add("pairs", grid, torch.ones_like(G))
        self._add("conflicts", grid, (G < 0).to(G.dtype))
        self._add("cosine", grid, C)
        self._add("affinity", grid, affinity(G, step.losses.to(G.dtype), self.lr))
        scalars = torch.stack([conflict_ratio(G), effective_tasks(G), pareto_gap(G)]).to(G.dtype)
        first = (at.new_zeros(1), torch.arange(3, device=at.device))
        self._add("scalars", first, scalars)
        for name, where, value in (("cosine", grid, C), ("pairs", grid, torch.ones_like(G)), ("scalars", first, scalars)):
            self._add(name, where, value, self._recent)
        if self.measured % self.window == 0:
            T, seen = len(self.tasks), self._recent["pairs"]
            values = (self._recent["cosine"] / seen.clamp_min(1))[:T, :T]
            self._maps.append((self.steps, tuple(self.tasks), values, self._recent["scalars"][0, :3] / self.window))
            self._recent = {}

    def cosine_map(self) -> dict[str, dict[str, float]]:
        """The mean cosine of each pair over the steps in which both were present."""
        return self._table("cosine")

    def cosine_maps(self) -> list[tuple[int, tuple[str, ...], Tensor]]:
        """The map over time: (step, tasks, mean cosines [T, T] of the window that ends there)."""
        return [(step, tasks, values.cpu()) for step, tasks, values, _ in self._maps]

    def scalars(self) -> dict[str, float]:
        """Conflict ratio, effective number of tasks and Pareto gap, means over what was measured; empty before that."""
        return dict(zip(SCALARS, (self._sums["scalars"][0, :3] / self.measured).tolist())) if self.measured else {}

    def record(self, maps: int = 8) -> dict[str, Any]:
        """Everything measured, as plain JSON: scalars, matrices as nested lists in the order of "tasks", and the means of up to
        `maps` windows spread over the run ("over_time"). Empty where nothing was measured."""
        if not self.measured:
            return {}
        spread = sorted({round(i * (len(self._maps) - 1) / max(1, maps - 1)) for i in range(maps)}) if self._maps else []
        return {
            "tasks": list(self.tasks),
            "steps": self.steps,
            "measured": self.measured,
            **self.scalars(),
            **{name: self._mean(name).tolist() for name in ("cosine", "conflicts", "affinity")},
            "over_time": [
                {
                    "measured": (i + 1) * self.window,
                    **dict(zip(SCALARS, scalars.tolist())),
                    "tasks": list(tasks),
                    "cosine": values.tolist(),
                }
                for i in spread
                for _, tasks, values, scalars in [self._maps[i]]
            ],
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything observed; `load_state_dict` goes on from it."""
        return {
            "tasks": list(self.tasks),
            "steps": self.steps,
            "measured": self.measured,
            "sums": dict(self._sums),
            "recent": dict(self._recent),
            "maps": [list(each) for each in self._maps],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.tasks, self.steps, self.measured = list(state["tasks"]), state["steps"], state["measured"]
        self._sums, self._recent = ({name: value.clone() for name, value in state[key].items()} for key in ("sums", "recent"))
        self._maps = [(step, tuple(tasks), values, scalars) for step, tasks, values, scalars in state["maps"]]
        self._places = {}

    def affinity(self) -> Tensor:
        """Ẑ [T, T] averaged, in the order of `tasks`: rows help columns. For `group_tasks`."""
        return self._mean("affinity")

    def summary(self) -> dict[str, Any]:
        """What a log or a report shows: plain numbers by name."""
        found: dict[str, Any] = {"steps": self.steps, "measured": self.measured, "tasks": list(self.tasks)}
        if "weights" in self._sums:
            mean = self._sums["weights"][0] / self._sums["weighed"][0].clamp_min(1)
            found["weights"] = dict(zip(self.tasks, mean.tolist()))
        if self.measured:
            found.update(self.scalars())
            found["conflicts"] = self._table("conflicts")
            found["cosine"] = self._table("cosine")
            found["affinity"] = self._table("affinity")
        return found

    def _at(self, tasks: tuple[str, ...], like: Tensor) -> Tensor:
        if tasks not in self._places:
            self.tasks += [task for task in tasks if task not in self.tasks]
            self._places[tasks] = torch.tensor([self.tasks.index(task) for task in tasks], device=like.device)
        return self._places[tasks]

    def _add(self, name: str, at: Any, value: Tensor, sums: dict[str, Tensor] | None = None) -> None:
        sums = self._sums if sums is None else sums
        size = max(len(self.tasks), 3)
        old = sums.get(name)
        if old is None or old.shape[0] < size:
            wide = value.new_zeros(size, size)
            if old is not None:
                wide[: old.shape[0], : old.shape[0]] = old
            sums[name] = wide
        where = at if isinstance(at, tuple) else (at.new_zeros(1), at)
        sums[name].index_put_(where, value.to(sums[name].dtype), accumulate=True)

    def _mean(self, name: str) -> Tensor:
        if not self.measured:
            raise BadInput("no Gram matrix was observed", where="Diagnostics", remedy="use a balancer of gradients, every=1")
        T = len(self.tasks)
        wide = [self._sums[key] for key in (name, "pairs")]
        return (wide[0] / wide[1].clamp_min(1))[:T, :T].cpu()

    def _table(self, name: str) -> dict[str, dict[str, float]]:
        values = self._mean(name).tolist()
        return {a: dict(zip(self.tasks, row)) for a, row in zip(self.tasks, values)}


@dataclass(frozen=True)
class Group:
    """Tasks trained in one network: those it serves, and helpers that are trained with them but served elsewhere."""

    serves: tuple[str, ...]
    helpers: tuple[str, ...] = ()


EXACT = 12  # up to so many tasks the grouping is exact, at 3^T steps


def group_tasks(affinity: Tensor, k: int, *, tasks: Sequence[str] | None = None) -> list[Group]:
    """At most k groups that serve each task once and maximise Σ_j mean_{i in j's group, i ≠ j} Z_{i→j} (alone: 0).

    affinity: [T, T], rows help columns. tasks: names (default "0", "1", …). Groups may share helpers, as in TAG.
    Exact for T ≤ 12; beyond, tasks are merged greedily and then moved while that helps.
    """
    T = affinity.shape[0]
    names = [str(t) for t in range(T)] if tasks is None else list(tasks)
    if affinity.shape != (T, T) or len(names) != T:
        raise BadInput(f"affinity has shape {tuple(affinity.shape)} for {len(names)} tasks", where="group_tasks")
    if not k >= 1:
        raise BadInput(f"k is {k}", where="group_tasks", remedy="give a whole number from 1")
    if not bool(affinity.isfinite().all()):
        raise BadInput("affinity is not finite", where="group_tasks")
    Z = affinity.double().cpu()
    groups = _exact(Z, k) if T <= EXACT else _greedy(Z, k)
    return [
        Group(tuple(names[t] for t in sorted(serves)), tuple(names[t] for t in sorted(all_ - serves)))
        for serves, all_ in sorted(groups, key=lambda group: min(group[0]))
    ]


def _gains(Z: Tensor, members: set[int]) -> dict[int, float]:
    """What each member gains from the others: mean_{i ≠ j} Z_{i→j}."""
    if len(members) == 1:
        return dict.fromkeys(members, 0.0)
    return {j: sum(float(Z[i, j]) for i in members if i != j) / (len(members) - 1) for j in members}


def _exact(Z: Tensor, k: int) -> list[tuple[set[int], set[int]]]:
    """best(A) = max_{S ⊇ A} Σ_{j ∈ A} gain(S, j) for every set A served, then the best partition into at most k such sets."""
    T = Z.shape[0]
    full = 1 << T
    best = torch.full((full,), -torch.inf, dtype=torch.float64)
    best[0] = 0
    trained = torch.zeros(full, dtype=torch.long)
    for S in range(1, full):
        members = [t for t in range(T) if S >> t & 1]
        gain = _gains(Z, set(members))
        sets, value = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.float64)
        for j in members:  # all subsets A of S, with the sum of their gains
            sets, value = torch.cat([sets, sets | 1 << j]), torch.cat([value, value + gain[j]])
        better = (value > best[sets] + 1e-15) & (sets > 0)
        best[sets[better]], trained[sets[better]] = value[better], S
    layers = [torch.full((full,), -torch.inf, dtype=torch.float64)]
    layers[0][0] = 0
    picks = []
    for _ in range(min(k, T)):
        value, pick = layers[-1].clone(), torch.zeros(full, dtype=torch.long)
        for A in range(1, full):
            inner, low = [t for t in range(T) if A >> t & 1], A & -A
            parts = torch.tensor([low])
            for j in inner[1:]:  # the parts of A that hold its first task
                parts = torch.cat([parts, parts | 1 << j])
            total = best[parts] + layers[-1][A ^ parts]
            top = int(total.argmax())
            if total[top] > value[A] + 1e-12:
                value[A], pick[A] = total[top], parts[top]
        layers.append(value)
        picks.append(pick)
    groups, left = [], full - 1
    for pick in reversed(picks):
        if left and pick[left]:
            A = int(pick[left])
            S = int(trained[A])
            groups.append(({t for t in range(T) if A >> t & 1}, {t for t in range(T) if S >> t & 1}))
            left ^= A
    return groups


def _greedy(Z: Tensor, k: int) -> list[tuple[set[int], set[int]]]:
    """Merge the two groups whose union is worth most until k are left, then move single tasks while that helps."""

    def worth(group: set[int]) -> float:
        return sum(_gains(Z, group).values()) if group else 0.0

    groups = [{t} for t in range(Z.shape[0])]
    while len(groups) > 1:
        change, a, b = max(
            (worth(groups[a] | groups[b]) - worth(groups[a]) - worth(groups[b]), a, b)
            for a in range(len(groups))
            for b in range(a)
        )
        if len(groups) <= k and change <= 0:
            break
        groups[b] |= groups.pop(a)
    moved = True
    while moved:
        moved = False
        for t in range(Z.shape[0]):
            home = next(group for group in groups if t in group)
            for other in groups:
                now = worth(home) + worth(other)
                if other is not home and worth(home - {t}) + worth(other | {t}) > now + 1e-12:
                    home.discard(t)
                    other.add(t)
                    moved = True
                    break
        groups = [group for group in groups if group]
    return [(group, group) for group in groups]
