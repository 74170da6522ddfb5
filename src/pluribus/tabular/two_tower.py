"""Two towers and in-batch softmax, and the self-supervised task that keeps rare items' towers honest.

Yao, Yi, Cheng, Yu, Chen, Menon, Hong, Chi, Tjoa, Kang, Ettinger, "Self-supervised Learning for Large-scale Item Recommendations",
CIKM 2021; the estimate of q is Yi et al., "Sampling-bias-corrected Neural Modeling for Large Corpus Item Recommendations",
RecSys 2019 (algorithm 2).

    s_ij = ⟨z_qi, z_xj⟩ / τ_m − log q_j                   main: softmax over the batch's items, q_j how likely j is in a batch
    L_self = −mean_i log softmax_j(⟨z_i, z'_j⟩ / τ)_i     two views of the same N items through the same tower
    L = L_main + α L_self                                  the N items are drawn uniformly from the catalogue, not from clicks

A view hides some of the k categorical features (replaced by a learned default) and drops values of features with several:

- "rfm": each view hides a random half;
- "complementary": the second hides what the first shows;
- "cfm": a feature drawn at random and its ⌊k/2⌋ features of the highest mutual information over the catalogue are hidden in the
  first view, all others in the second, so that neither is easily guessed from the other.

Where the paper leaves it open, or public code differs:

- all z are of length one, in the main task too; two rows of a batch with one item do not count against each other;
- with k ≤ 2 features the hidden set would be everything: at least one feature is left to be hidden in the second view; with one
  feature nothing is hidden, and views differ by dropout alone;
- a feature with several values, and a text, is one feature: its mutual information is that of the whole set of values;
- the public re-implementation (TensorFlow 1) leaves the drawn feature itself out of the hidden set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pluribus.data.columns import FittedColumns
from pluribus.data.prepared import Prepared
from pluribus.errors import unknown
from pluribus.modeling import Choice, LogUniform, SearchSpace
from pluribus.tabular.fields import Catalogue, Fields, mean
from pluribus.tabular.m2trec import mean_of
from pluribus.tabular.retrieval import Labelled, Ranking, RankingCandidate

MASKS = ("rfm", "complementary", "cfm")
DELAY = 0.05  # of the streaming estimate: the weight of the newest interval


class TwoTowers(Ranking):
    """Query tower over a row's columns, lists and items, item tower over attributes (and, with `ids`, the item itself).

    joined: the query's columns of items, each of which adds the mean of their vectors to the query. alpha: α; 0 leaves the second
    task out. tau_main, tau: τ_m and τ. mask: one of `MASKS`. drop: share of dropped values. sample: N.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        columns: FittedColumns,
        *,
        width: int,
        size: int,
        hidden: int,
        alpha: float,
        tau_main: float,
        tau: float,
        mask: str,
        drop: float,
        sample: int,
    ) -> None:
        super().__init__()
        self.joined = [name for name, e in columns.sequences.items() if e.items is not None]
        lists = {name: columns.ragged_size(name) for name in columns.sequences if name not in self.joined}
        self.query_fields = Fields(len(columns.numbers), columns.cardinalities, lists, size)
        self.query_tower = tower(self.query_fields.width + width * len(self.joined), hidden, width)
        self.fields = catalogue.fields(size)
        self.item_tower = tower(self.fields.width, hidden, width)
        self.alpha, self.tau_main, self.tau, self.mask, self.drop, self.sample = alpha, tau_main, tau, mask, drop, sample
        self.relations: Tensor | None = None
        self.frequencies = Frequencies(catalogue.count)

    def vectors(self, inputs: Mapping[str, Any], hidden: Tensor | None = None, drop: float = 0.0) -> Tensor:
        return F.normalize(self.item_tower(self.fields(inputs, hidden, drop)), dim=1)

    def queries(self, inputs: Mapping[str, Any], catalogue: Catalogue, items: Tensor) -> Tensor:
        pieces = [self.query_fields(inputs)]
        for name in self.joined:
            codes, mask = inputs[name]["values"], inputs[name]["mask"]
            pieces.append(mean(items[catalogue.rows(codes)], mask))
        return F.normalize(self.query_tower(torch.cat(pieces, 1)), dim=1)

    def loss(self, data: Prepared, rows: Tensor, target: Tensor, weight: Tensor, train: Labelled, catalogue: Catalogue) -> Tensor:
        inputs = data.batch(rows, tasks=()).inputs
        needed = [target, *(catalogue.rows(inputs[name]["values"]).flatten() for name in self.joined)]
        used, at = torch.unique(torch.cat(needed), return_inverse=True)
        vectors = self.vectors(catalogue.inputs(used))
        items = vectors[at[: len(target)]]
        where = torch.zeros(catalogue.count + 1, dtype=torch.int64)
        where[used] = torch.arange(len(used))
        whole = vectors[where] if self.joined else vectors
        log_q = self.frequencies.log_q(target)
        total = mean_of(in_batch(self.queries(inputs, catalogue, whole), items, target, log_q, self.tau_main), weight)
        if self.alpha:
            total = total + self.alpha * self.self_supervised(catalogue)
        return total

    def self_supervised(self, catalogue: Catalogue) -> Tensor:
        """L_self on items drawn uniformly from the catalogue, without repetition."""
        rows = torch.randperm(catalogue.count)[: self.sample]
        inputs = catalogue.inputs(rows)
        if self.relations is None:
            codes = feature_codes(catalogue)
            known = mutual_information(codes) if self.mask == "cfm" else np.zeros((codes.shape[1],) * 2)
            self.relations = torch.from_numpy(known)
        first, second = hidden_features(self.mask, self.relations)
        return contrast(self.vectors(inputs, first, self.drop), self.vectors(inputs, second, self.drop), self.tau)


def tower(inputs: int, hidden: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, width))


def in_batch(queries: Tensor, items: Tensor, target: Tensor, log_q: Tensor, tau: float) -> Tensor:
    """−log softmax over the batch's items [B], corrected by log q_j [B]; other rows' copies of the own item are left out."""
    s = queries @ items.T / tau - log_q
    same = (target[:, None] == target) & ~torch.eye(len(target), dtype=torch.bool)
    return F.cross_entropy(s.masked_fill(same, -torch.inf), torch.arange(len(target)), reduction="none")


def contrast(z: Tensor, other: Tensor, tau: float) -> Tensor:
    """L_self of two views [N, d] of the same items, of length one: N ways to be wrong, one to be right."""
    return F.cross_entropy(z @ other.T / tau, torch.arange(len(z)))


class Frequencies:
    """A streaming estimate of how likely an item is in a batch (Yi et al. 2019, algorithm 2): B_j, the mean number of steps
    between two batches that hold it, moves by `DELAY` towards each interval that is seen; q_j = 1 / B_j."""

    def __init__(self, items: int) -> None:
        self.last, self.interval, self.step = torch.zeros(items), torch.full((items,), 100.0), 0

    def log_q(self, items: Tensor) -> Tensor:
        """Count these items' batch, and return log q of each [B]."""
        self.step += 1
        found = torch.unique(items)
        self.interval[found] = (1 - DELAY) * self.interval[found] + DELAY * (self.step - self.last[found])
        self.last[found] = self.step
        return -self.interval[items].clamp_min(1.0).log()


def hidden_features(mask: str, relations: Tensor) -> tuple[Tensor, Tensor]:
    """Which features the two views hide ([k] bool each), drawn from torch's global generator. relations: [k, k] mutual
    information."""
    k = len(relations)
    if k < 2:
        nothing = torch.zeros(k, dtype=torch.bool)
        return nothing, nothing
    if mask == "cfm":
        first = torch.zeros(k, dtype=torch.bool)
        seed = int(torch.randint(k, ()))
        related = relations[seed].clone()
        related[seed] = -torch.inf
        first[related.topk(min(k // 2, k - 2)).indices] = True
        first[seed] = True
        return first, ~first
    first = torch.zeros(k, dtype=torch.bool)
    first[torch.randperm(k)[: k // 2]] = True
    if mask == "complementary":
        return first, ~first
    second = torch.zeros(k, dtype=torch.bool)
    second[torch.randperm(k)[: k // 2]] = True
    return first, second


def mutual_information(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """MI(a, b) = Σ p(a, b) log(p(a, b) / p(a) p(b)) between the columns of codes [n, k]: [k, k], symmetric, entropies on the
    diagonal."""
    k = codes.shape[1]
    columns = [np.unique(codes[:, a], return_inverse=True)[1] for a in range(k)]
    entropy = [_entropy(np.bincount(column)) for column in columns]
    found = np.zeros((k, k))
    for a in range(k):
        for b in range(a + 1):
            joint = np.unique(columns[a] * (columns[b].max(initial=0) + 1) + columns[b], return_counts=True)[1]
            found[a, b] = found[b, a] = max(0.0, entropy[a] + entropy[b] - _entropy(joint)) if a != b else entropy[a]
    return found


def _entropy(counts: NDArray[np.int64]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def feature_codes(catalogue: Catalogue) -> NDArray[np.int64]:
    """The hideable features of the catalogue's items as codes [I, k]; a list's code stands for its whole set of values."""
    data = catalogue.data
    found = [data.categorical[:-1, a].astype(np.int64) for a in range(data.categorical.shape[1])]
    for ragged in data.ragged.values():
        if ragged.values.dtype == np.int32:
            sets = [tuple(sorted(set(ragged.row(i).tolist()))) for i in range(catalogue.count)]
            index = {each: code for code, each in enumerate(dict.fromkeys(sets))}
            found.append(np.array([index[each] for each in sets], np.int64))
    return np.stack(found, 1) if found else np.empty((catalogue.count, 0), np.int64)


class TwoTower(RankingCandidate):
    """Two towers, in-batch softmax. Settings: width of z, embedding size, hidden units of a tower, tau_main, ids (whether the
    item tower knows the item itself beside its attributes)."""

    name = "two_tower"
    label = "Two towers"
    per_task = True
    reads = frozenset({"sequence"})
    needs_session = False
    defaults: ClassVar[Mapping[str, Any]] = {
        **RankingCandidate.defaults,
        "width": 32,
        "size": 16,
        "hidden": 128,
        "tau_main": 0.1,
        "ids": True,
    }
    space = SearchSpace({"width": Choice((32, 64)), "tau_main": LogUniform(0.05, 0.3), "lr": LogUniform(5e-4, 5e-3)})
    second: ClassVar[Mapping[str, Any]] = {"alpha": 0.0, "tau": 0.1, "mask": "cfm", "drop": 0.0, "sample": 512}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        mask = self.settings.get("mask", self.second["mask"])
        if mask not in MASKS:
            raise unknown("mask", str(mask), MASKS, where=f"candidate {self.name!r}")

    def config(self, data: Prepared) -> dict[str, Any]:
        second = {name: self.settings.get(name, value) for name, value in self.second.items()}
        items = data.columns.items[self.items_of(data)]
        chosen = {name: self.settings[name] for name in ("width", "size", "hidden", "tau_main")}
        ids = len(items) if self.settings["ids"] else None
        return {"ids": ids, "attributes": True, "settings": {**chosen, **second}}

    @staticmethod
    def build(catalogue: Catalogue, columns: Any, settings: Mapping[str, Any]) -> TwoTowers:
        return TwoTowers(catalogue, columns, **settings)


class TwoTowerSSL(TwoTower):
    """The same, with the self-supervised task. Settings beside: alpha α, tau τ, mask ("rfm", "complementary", "cfm"), drop (share
    of values dropped), sample N."""

    name = "two_tower_ssl"
    label = "Two towers, self-supervised"
    per_task = False
    defaults: ClassVar[Mapping[str, Any]] = {
        **TwoTower.defaults,
        "alpha": 0.3,
        "tau": 0.1,
        "mask": "cfm",
        "drop": 0.2,
        "sample": 512,
    }
    space = SearchSpace(
        {**TwoTower.space.ranges, "alpha": LogUniform(0.05, 1.0), "tau": LogUniform(0.05, 0.5), "mask": Choice(MASKS)}
    )
