"""Packed prediction: if these fail, a served model answers from weights that are no longer its own, or otherwise than trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pluribus.modeling import Features
from pluribus.modeling.experts import pack
from pluribus.sharing import CGC, PLE, MMoE
from pluribus.tasks import Task

TASKS = [Task("a"), Task("b"), Task("c")]
ALL: dict[str, Tensor | None] = dict.fromkeys("abc")
CASES: list[tuple[Any, dict[str, Any]]] = [
    (MMoE, {}),
    (MMoE, {"experts": 3, "expert": (6, 4), "tower": 0}),
    (MMoE, {"experts": 1, "expert": 4}),
    (CGC, {}),
    (CGC, {"own": 2, "expert": [6, 4]}),
    (PLE, {"levels": 1}),
    (PLE, {"own": 2, "shared": 1}),
    (PLE, {"levels": 3, "expert": (6, 4), "tower": 0}),
]


@pytest.fixture(params=CASES, ids=str)
def sharing(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    kind, settings = request.param
    return kind(TASKS, 5, **settings).eval()


def answers(sharing: Any, x: Tensor, rows: Any = None) -> dict[str, Tensor]:
    with torch.inference_mode():
        return {name: found.main.clone() for name, found in sharing(Features(x), rows or ALL).tasks.items()}


def runs_packed(sharing: Any) -> bool:
    with torch.inference_mode():
        return bool(sharing.everything(ALL))


@pytest.mark.parametrize("rows", [1, 9])
def test_packed_answers_alike(sharing: Any, rows: int) -> None:
    """One row or several: what the layers one by one answer, to 1e-6."""
    x = torch.randn(rows, 5)
    before = answers(sharing, x)
    assert not runs_packed(sharing)
    pack(sharing)
    assert runs_packed(sharing)
    for name, value in answers(sharing, x).items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [CGC, PLE])
def test_many_tasks_of_small_experts_are_not_packed(kind: Any) -> None:
    """Packed gates span the experts of all tasks: where these columns would outnumber the experts' own, nothing is packed."""
    sharing = kind(TASKS, 5, expert=3).eval()
    pack(sharing)
    assert not runs_packed(sharing)


def test_a_changed_weight_is_seen(sharing: Any) -> None:
    """Written in place, loaded, cast, trained by an optimiser: never the old answer."""
    x, state = torch.randn(3, 5), copy.deepcopy(sharing.state_dict())
    pack(sharing)
    with torch.no_grad():
        next(sharing.parameters()).mul_(2.0)
    assert not runs_packed(sharing)
    pack(sharing)
    changed = answers(sharing, x)
    sharing.load_state_dict(state)
    assert not runs_packed(sharing)
    pack(sharing)
    before = answers(sharing, x)
    assert any(not torch.allclose(changed[name], before[name]) for name in before)
    sharing.double()
    assert not runs_packed(sharing)
    sharing.float()
    pack(sharing)
    sharing.train()
    optimizer = torch.optim.AdamW(sharing.parameters(), lr=0.1, fused=True)
    torch.stack([found.main.sum() for found in sharing(Features(x), ALL).tasks.values()]).sum().backward()
    optimizer.step()
    sharing.eval()
    after, again = answers(sharing, x), copy.deepcopy(sharing)
    pack(again)
    for name, value in answers(again, x).items():
        torch.testing.assert_close(value, after[name], rtol=1e-6, atol=1e-6)


def test_a_part_of_the_request_is_not_packed(sharing: Any) -> None:
    """Fewer tasks or rows, or gradients wanted: the layers one by one, so that only what is reached runs."""
    x = torch.randn(4, 5)
    whole = answers(sharing, x)
    pack(sharing)
    some = {"c": None, "a": torch.tensor([2])}
    assert not sharing.everything(ALL)  # gradients are on here
    with torch.inference_mode():
        assert not sharing.everything(some)
        assert not sharing.everything({**ALL, "b": torch.tensor([1])})
    found = answers(sharing, x, some)
    torch.testing.assert_close(found["c"], whole["c"])
    value = sharing(Features(x), ALL).tasks["a"].main
    assert value.requires_grad


def test_a_copy_answers_for_itself(sharing: Any) -> None:
    pack(sharing)
    x, other = torch.randn(3, 5), copy.deepcopy(sharing)
    before = answers(sharing, x)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    for value in answers(other, x).values():
        assert value.abs().sum() == 0
    for name, value in answers(sharing, x).items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("kind", [MMoE, CGC, PLE])
def test_norms_fold(kind: Any) -> None:
    """Batch norms in the experts: trained statistics, then folded, packed or not: the same predictions, and the state of the same
    architecture without norms; before that nothing is packed."""
    torch.manual_seed(0)
    sharing = kind(TASKS, 5, expert=(6, 4), norm=True)
    for _ in range(3):
        sharing(Features(3 + 2 * torch.randn(40, 5)), ALL)
    with torch.no_grad():
        for p in sharing.parameters():
            p.add_(0.1 * torch.randn_like(p))
    sharing.eval()
    x = torch.randn(7, 5)
    before = answers(sharing, x)
    pack(sharing)
    assert not runs_packed(sharing)
    assert sharing.normed
    sharing.fold()
    assert not sharing.normed
    pack(sharing)
    assert runs_packed(sharing)
    plain = kind(TASKS, 5, expert=(6, 4)).eval()
    plain.load_state_dict(sharing.state_dict())
    for found in (answers(sharing, x), answers(plain, x)):
        for name, value in found.items():
            torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-5)


def test_norms_in_sparse_mixtures() -> None:
    """top_k with norms: predictions are those of the dense mixture of the chosen experts; a batch of one trains."""
    torch.manual_seed(0)
    sharing = MMoE(TASKS, 5, experts=6, expert=4, norm=True, top_k=2, tower=0)
    sharing(Features(torch.randn(50, 5)), ALL)
    found = sharing(Features(torch.randn(1, 5)), ALL).tasks["a"].main
    found.sum().backward()
    sharing.eval()
    x = torch.randn(12, 5)
    with torch.no_grad():
        expected = torch.einsum("tbe,ebd->tbd", sharing.gates(x), sharing.experts(x))
    for i, value in enumerate(answers(sharing, x).values()):
        torch.testing.assert_close(value, expected[i], rtol=1e-5, atol=1e-6)
