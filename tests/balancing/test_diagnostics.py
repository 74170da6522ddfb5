"""Figures read from the Gram matrix, and groups of tasks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pluribus.balancing import MGDA, Decision, EqualWeighting, backward, combine
from pluribus.balancing.diagnostics import (
    Diagnostics,
    affinity,
    at_features,
    conflict_ratio,
    cosines,
    effective_tasks,
    group_tasks,
    pareto_gap,
)
from pluribus.errors import BadInput

J = torch.tensor([[1.0, 0, 0], [0, 2, 0], [-3, 0, 0]], dtype=torch.float64)
G = J @ J.T


def test_figures_of_a_known_gram() -> None:
    """One conflicting pair of three; two directions in three tasks; 0 lies in the hull of the first and the third."""
    assert conflict_ratio(G).item() == pytest.approx(1 / 3)
    torch.testing.assert_close(cosines(G), torch.tensor([[1.0, 0, -1], [0, 1, 0], [-1, 0, 1]], dtype=torch.float64))
    assert effective_tasks(G).item() == pytest.approx(9 / 5)
    assert effective_tasks(torch.eye(4)).item() == pytest.approx(4)
    assert effective_tasks(torch.ones(4, 4)).item() == pytest.approx(1)
    assert pareto_gap(G).item() == pytest.approx(0, abs=1e-7)
    assert pareto_gap(torch.eye(4, dtype=torch.float64)).item() == pytest.approx(0.5)
    assert pareto_gap(torch.ones(3, 3, dtype=torch.float64)).item() == pytest.approx(1)


@pytest.mark.parametrize("gram", [torch.zeros(3, 3), torch.zeros(1, 1), torch.ones(1, 1)])
def test_figures_stay_finite(gram: Tensor) -> None:
    for figure in (conflict_ratio, cosines, effective_tasks, pareto_gap):
        assert figure(gram).isfinite().all()


def test_affinity_is_the_lookahead_as_the_step_shrinks() -> None:
    """Ẑ from the Gram against TAG's own definition, at two step sizes: the error must fall with η²."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)

    def losses() -> Tensor:
        return (net(x) - y).square().mean(0)

    parameters = list(net.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses()]
    gram = torch.stack([torch.stack([sum((a * b).sum() for a, b in zip(r, s)) for s in rows]) for r in rows])
    before = losses().detach()

    def error(lr: float) -> float:
        found = torch.empty(3, 3, dtype=torch.float64)
        for i, row in enumerate(rows):
            with torch.no_grad():
                for p, g in zip(parameters, row):
                    p -= lr * g
                found[i] = 1 - losses() / before
                for p, g in zip(parameters, row):
                    p += lr * g
        return (found - affinity(gram, before, lr)).abs().max().item()

    assert error(1e-3) < 1e-4
    assert error(1e-4) < 0.02 * error(1e-3)


def step(tasks: tuple[str, ...], gram: Tensor) -> Decision:
    return Decision(tasks, torch.ones(len(tasks), dtype=gram.dtype), torch.ones(len(tasks), dtype=gram.dtype), gram, "full")


def test_averages_count_only_steps_in_which_both_were_present() -> None:
    seen = Diagnostics(window=2)
    seen.observe(step(("a", "b", "c"), G))
    seen.observe(step(("c", "b"), torch.ones(2, 2, dtype=torch.float64)))
    seen.observe(step(("d",), torch.ones(1, 1, dtype=torch.float64)))
    seen.observe(step(("d", "a"), -torch.ones(2, 2, dtype=torch.float64) + 2 * torch.eye(2, dtype=torch.float64)))
    cosine = seen.cosine_map()
    assert cosine["b"]["c"] == pytest.approx(0.5)
    assert cosine["a"]["c"] == pytest.approx(-1)
    assert cosine["a"]["d"] == pytest.approx(-1)
    summary = seen.summary()
    assert summary["tasks"] == ["a", "b", "c", "d"]
    assert summary["measured"] == 4
    assert summary["conflict_ratio"] == pytest.approx((1 / 3 + 0 + 0 + 1) / 4)
    assert summary["conflicts"]["a"]["c"] == pytest.approx(1)
    steps, names, first = seen.cosine_maps()[0]
    assert (steps, names) == (2, ("a", "b", "c"))
    assert first[1, 2].item() == pytest.approx(0.5)
    assert len(seen.cosine_maps()) == 2


def test_skipped_and_held_steps_measure_nothing() -> None:
    seen = Diagnostics()
    seen.observe(None)
    seen.observe(Decision(("a",), torch.ones(1), skipped=True))
    held = step(("a", "b", "c"), G)
    held.source = "held"
    seen.observe(held)
    assert (seen.steps, seen.measured) == (1, 0)
    assert set(seen.summary()["weights"]) == {"a", "b", "c"}
    with pytest.raises(BadInput, match=r"no Gram"):
        seen.affinity()


def test_the_doors_feed_it(build: Any) -> None:
    net, balancer, seen = build("mlp"), MGDA(), Diagnostics()
    cells = {"a": torch.arange(5), "b": torch.arange(5, 10), "c": torch.arange(10, 15)}
    for _ in range(3):
        losses, z = net.losses(net.make(15), cells)
        combine(losses, balancer, features=z)
        seen.observe(balancer.last)
        seen.observe(backward(losses, balancer, shared=net.shared, gram="full"))
    summary = seen.summary()
    assert summary["measured"] == 6
    assert 0 <= summary["pareto_gap"] <= 1
    assert 1 <= summary["effective_tasks"] <= 3
    equal = EqualWeighting()
    combine(losses, equal)
    other = Diagnostics()
    other.observe(equal.last)
    assert other.summary()["weights"] == {"a": 1, "b": 1, "c": 1}


def value(Z: Tensor, groups: list[Any]) -> float:
    total = 0.0
    for group in groups:
        members = [int(t) for t in (*group.serves, *group.helpers)]
        for j in map(int, group.serves):
            others = [i for i in members if i != j]
            total += sum(Z[i, j].item() for i in others) / max(len(others), 1)
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_grouping_is_exact_for_few_tasks(seed: int, k: int) -> None:
    """Against every choice of at most k groups out of all subsets, each task served by its best one."""
    T = 4
    Z = torch.randn(T, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    subsets = [set(s) for n in range(1, T + 1) for s in itertools.combinations(range(T), n)]

    def gain(S: set[int], j: int) -> float:
        return sum(Z[i, j].item() for i in S if i != j) / max(len(S) - 1, 1)

    best = max(
        sum(max(gain(S, j) for S in choice if j in S) for j in range(T))
        for n in range(1, k + 1)
        for choice in itertools.combinations(subsets, n)
        if set().union(*choice) == set(range(T))
    )
    groups = group_tasks(Z, k)
    assert value(Z, groups) == pytest.approx(best)
    assert len(groups) <= k
    assert sorted(t for g in groups for t in g.serves) == [str(t) for t in range(T)]


@pytest.mark.parametrize("T", [6, 15])
def test_two_camps_are_found(T: int) -> None:
    """Exact and greedy: tasks that help only their own camp."""
    camp = torch.arange(T) % 2
    Z = torch.where(camp[:, None] == camp, 1.0, -1.0)
    groups = group_tasks(Z, 2, tasks=[f"t{t}" for t in range(T)])
    assert {frozenset(g.serves) for g in groups} == {frozenset(f"t{t}" for t in range(T) if t % 2 == c) for c in (0, 1)}


def test_a_task_that_everyone_hurts_stays_alone() -> None:
    Z = torch.tensor([[0, 1, -1.0], [1, 0, -1.0], [-1, -1, 0]])
    assert {g.serves for g in group_tasks(Z, 3)} == {("0", "1"), ("2",)}


def test_bad_groupings() -> None:
    with pytest.raises(BadInput, match=r"k is 0"):
        group_tasks(torch.eye(3), 0)
    with pytest.raises(BadInput, match=r"shape"):
        group_tasks(torch.ones(3, 2), 2)
    with pytest.raises(BadInput, match=r"not finite"):
        group_tasks(torch.full((2, 2), torch.nan), 2)
    with pytest.raises(BadInput, match=r"window"):
        Diagnostics(window=0)


def _watched(steps: int) -> tuple[Diagnostics, list[torch.Tensor]]:
    torch.manual_seed(3)
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    heads = torch.randn(3, 4, dtype=torch.float64)
    diagnostics, grams = Diagnostics(window=2), []
    for step in range(steps):
        losses = {name: ((z * (1 + step)) @ heads[t] - t).square().mean() for t, name in enumerate("abc")}
        seen = at_features(losses, z)
        diagnostics.observe(seen)
        rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in losses.values()])
        grams.append(rows @ rows.T)
        torch.testing.assert_close(seen.gram, grams[-1])
        sum(losses.values()).backward()  # type: ignore[union-attr]  # the graph is still there
    return diagnostics, grams


def test_at_features_is_the_gram_of_plain_autograd() -> None:
    """If this fails, the report's cosines of networks without a balancer of gradients are not theirs."""
    diagnostics, grams = _watched(5)
    record = diagnostics.record()
    expected = torch.stack([cosines(G) for G in grams]).mean(0)
    torch.testing.assert_close(torch.tensor(record["cosine"], dtype=torch.float64), expected)
    assert record["conflict_ratio"] == pytest.approx(float(torch.stack([conflict_ratio(G).double() for G in grams]).mean()))
    first = torch.stack([cosines(G) for G in grams[:2]]).mean(0)
    assert [moment["measured"] for moment in record["over_time"]] == [2, 4]
    torch.testing.assert_close(torch.tensor(record["over_time"][0]["cosine"], dtype=torch.float64), first)
    assert Diagnostics().record() == {}


def test_what_was_observed_can_be_taken_up() -> None:
    """If this fails, a resumed training reports another history of its gradients."""
    whole, _ = _watched(5)
    other = Diagnostics(window=2)
    other.load_state_dict(_watched(3)[0].state_dict())
    assert other.record() == _watched(3)[0].record()
    assert whole.record()["measured"] == 5
