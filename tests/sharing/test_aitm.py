"""AITM: if these fail, a step does not hear the one before it, or a request runs more than its ancestors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pluribus.modeling import Features
from pluribus.sharing import AITM, Imputed
from pluribus.tasks import Task

TASKS = [Task("b", "binary", after=("a",)), Task("a", "binary"), Task("c", "binary", after=("b",)), Task("d")]


def hidden(sharing: Any, x: Tensor, names: str = "abcd") -> dict[str, Tensor]:
    return {name: found.main for name, found in sharing(Features(x), dict.fromkeys(names)).tasks.items()}


def test_by_hand() -> None:
    """Oracle: equations (3)–(8) with the attention written as a sum over two candidates."""
    torch.manual_seed(0)
    sharing, x = AITM(TASKS, 5, hidden=4, tower=0), torch.randn(6, 5)
    z: dict[str, Tensor] = {}
    for name, parent in (("a", None), ("d", None), ("b", "a"), ("c", "b")):
        part: Any = getattr(sharing, f"step_{sharing.index[name]}")
        q = torch.relu(part.f(x))
        if parent is None:
            z[name] = q
            continue
        p = torch.relu(part.g(z[parent]))
        h = [layer.chunk(3, -1) for layer in (part.h(p), part.h(q))]
        scores = torch.stack([(h2 * h3).sum(-1) / 2 for _, h2, h3 in h], -1).softmax(-1)
        z[name] = scores[:, :1] * h[0][0] + scores[:, 1:] * h[1][0]
    for names in ("abcd", "c", "da"):
        for name, value in hidden(sharing, x, names).items():
            torch.testing.assert_close(value, z[name])


def test_a_request_runs_its_ancestors_only() -> None:
    sharing = AITM(TASKS, 5)
    assert set(sharing.reads("b")) == {"step_1", "step_0", "towers"}
    torch.manual_seed(0)
    hidden(sharing, torch.randn(3, 5), "b")["b"].sum().backward()
    assert all(p.grad is None for p in [*sharing.step_2.parameters(), *sharing.step_3.parameters()])  # type: ignore[operator]
    assert all(p.grad is not None for p in sharing.step_1.parameters())  # type: ignore[operator]


def test_imputed_errors_follow_the_request() -> None:
    """One non-negative number per row that is asked for, for tasks that follow another; the architecture inside is unchanged."""
    torch.manual_seed(0)
    sharing, x = Imputed(TASKS, 5), torch.randn(20, 5)
    rows = {"b": torch.tensor([3, 7]), "d": None}
    whole, some = sharing(Features(x), dict.fromkeys("abcd")), sharing(Features(x), rows)
    assert set(whole.extra["imputed"]) == {"b", "c"}
    assert (whole.extra["imputed"]["c"] >= 0).all()
    torch.testing.assert_close(some.extra["imputed"]["b"], whole.extra["imputed"]["b"][[3, 7]])
    torch.testing.assert_close(whole.tasks["a"].main, sharing.inside(Features(x), {"a": None}).tasks["a"].main)
    assert sharing.slices("d").keys() == {f"inside.{name}" for name in sharing.inside.slices("d")}
    assert {"error.weight", "error.bias"} <= set(sharing.slices("c"))
    assert "error" not in sharing.reads("a")
    assert sharing.error is not None
    with torch.no_grad():
        sharing.error.bias.fill_(50.0)
    assert (sharing(Features(x), dict.fromkeys("abcd")).extra["imputed"]["c"] > 10).all()  # a cross-entropy has no bound of 1
