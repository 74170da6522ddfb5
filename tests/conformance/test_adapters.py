"""Every adapter of the catalog keeps the protocol: rows are told apart, absent tasks do not move, the model is given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.adapters.conftest import Encoder, shake
from tests.conformance.entries import entries_for
from torch import Tensor, nn

from pluribus import catalog
from pluribus.adapters import Bottleneck, LoRA, TaskHeads, load, route
from pluribus.errors import BadInput
from pluribus.training import SliceAdamW

TASKS = ["a", "b", "c"]
X = torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(3))
ROWS = ["a", "b", "c", "a", "c", "c"]


def sources(model: nn.Module) -> Bottleneck:
    made = Bottleneck(model, ["s1", "s2"], reduction=4)
    shake(made)
    return made


def modules(model: nn.Module) -> LoRA:
    made = LoRA(model, ["m1", "m2"], rank=4)
    shake(made)
    return made


SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "bottleneck": {"reduction": 4},
    "compacter": {"reduction": 4},
    "hyperformer": {"embedding": 6},
    "poly": {"rank": 4, "skills": 3},
    "mhr": {"rank": 4, "skills": 3, "heads": 2},
    "mhr_z": {"rank": 4, "skills": 3, "heads": 2},
    "mhr_mu": {"rank": 4},
    "smora": {"rank": 8, "active": 2},
    "mixlora": {"experts": 4, "rank": 4},
    "mtlora": {"rank": 4, "task_rank": 2},
    "mtlora_plus": {"rank": 4, "task_rank": 2},
}
MADE: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    **{name: lambda model: {"sources": sources(model)} for name in ("adapterfusion", "scalearn")},
    **{name: lambda model: {"sources": sources(model)} for name in ("scalearn_uniform", "scalearn_pp", "scalearn_uniform_pp")},
    "lorahub": lambda model: {"modules": modules(model)},
}
NAMES = [entry.name for entry in entries_for(__name__, "adapter", "backbone")]
SILENT = {name for name in NAMES if not name.startswith("scalearn")} - {"prefix", "prompt", "lorahub", "adapterfusion"}
"""Methods that start as the model was; the others say in their docstrings how they start."""
OWN = set(NAMES) - {"smora", "mixlora"}
"""Methods in which a task has parameters of its own."""


def make(name: str, model: nn.Module) -> Any:
    torch.manual_seed(1)
    given = MADE[name](model) if name in MADE else SMALL.get(name, {})
    torch.manual_seed(1)
    return catalog.get("adapter", name).resolve()(model, TASKS, **given)


def answers(model: nn.Module, rows: Any, x: Tensor = X) -> Tensor:
    with torch.no_grad(), route(rows):
        out: Tensor = model(x)
    return out


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


def test_starts_as_the_model_was(name: str, model: Encoder) -> None:
    with torch.no_grad():
        base = model(X)
    make(name, model)
    got = answers(model, ROWS)
    assert torch.allclose(got, base, atol=1e-5) == (name in SILENT)


def test_a_mixed_batch_is_each_row_alone(name: str, model: Encoder) -> None:
    """Whatever rows are beside it; and a task that is asked for alone."""
    shake(make(name, model))
    mixed = answers(model, ROWS)
    for i, task in enumerate(ROWS):
        torch.testing.assert_close(answers(model, task, X[i : i + 1])[0], mixed[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(answers(model, [task], X[i : i + 1])[0], mixed[i], rtol=1e-4, atol=1e-4)
    other = answers(model, "b", X)
    assert torch.allclose(other[0], mixed[0], atol=1e-4) == (name not in OWN)


def test_unknown_tasks_and_no_route_are_errors(name: str, model: Encoder) -> None:
    make(name, model)
    with pytest.raises(BadInput, match="no route is set"):
        model(X)
    with pytest.raises(BadInput, match="unknown task 'z'"):
        answers(model, ["a", "z", "a", "a", "a", "a"])
    with pytest.raises(BadInput, match="the route names 2 rows"):
        answers(model, ["a", "b"], X[:5])


def test_absent_tasks_stay_bit_identical(name: str, model: Encoder) -> None:
    """One forward and one backward over mixed rows; weights and moments of the absent task's slices do not move by a bit,
    although it trained before and weight decay and momentum are on. The model never moves."""
    adapters = make(name, model)
    model.train()
    before_model = {n: p.clone() for n, p in model.state_dict().items()}
    own = [n for n in adapters.slices("b") if dict(adapters.named_parameters())[n].requires_grad]
    assert bool(own) == (name in OWN)
    named = {n: p for n, p in adapters.named_parameters() if p.requires_grad}
    heads = TaskHeads({"a": 2, "b": 3, "c": 2}, 16)
    optimiser = SliceAdamW(
        [*named.values(), *heads.parameters()], stacked=[*(named[n] for n in own), *heads.parameters()], lr=0.05, weight_decay=0.1
    )

    def step(rows: list[str]) -> None:
        with route(rows) as r:
            logits = heads(model(X)[:, 0])
        loss = nn.functional.cross_entropy(logits, torch.ones(6, dtype=torch.int64)) + r.penalty()
        optimiser.zero_grad()
        loss.backward()
        active: dict[nn.Parameter, Tensor] = {}
        for holder, params in ((adapters, named), (heads, dict(heads.named_parameters()))):
            for task in dict.fromkeys(rows):
                for n, where in holder.slices(task).items():
                    if n in params:
                        p = params[n]
                        active[p] = torch.cat((active.get(p, torch.arange(0)), torch.arange(len(p))[where]))
        optimiser.step(active=active)

    step(["a", "b", "c", "a", "b", "c"])
    slices = {n: s for n, s in adapters.slices("b").items() if n in own}
    kept = {n: named[n][s].detach().clone() for n, s in slices.items()}
    moments = {n: {k: v[slices[n]].clone() for k, v in optimiser.state[named[n]].items()} for n in own}
    others = {n: p.detach().clone() for n, p in named.items()}
    for _ in range(2):
        step(["a", "c", "a", "c", "a", "c"])
    for n in own:
        assert torch.equal(named[n][slices[n]], kept[n]), n
        for key, value in optimiser.state[named[n]].items():
            assert torch.equal(value[slices[n]], moments[n][key]), (n, key)
    assert any(not torch.equal(p, others[n]) for n, p in named.items())
    assert all(torch.equal(p, before_model[n]) for n, p in model.state_dict().items())


def test_saved_and_loaded(name: str, model: Encoder, tmp_path: Path) -> None:
    adapters = make(name, model)
    shake(adapters)
    wanted = answers(model, ROWS)
    adapters.save(tmp_path / "folder")
    adapters.detach()
    load(model, tmp_path / "folder")
    torch.testing.assert_close(answers(model, ROWS), wanted, rtol=1e-5, atol=1e-5)


def test_detaching_gives_the_model_back(name: str, model: Encoder) -> None:
    """Outputs, state dict, modules, hooks, flags: bit for bit."""
    with torch.no_grad():
        base = model(X)
    state = {n: p.clone() for n, p in model.state_dict().items()}
    kinds = [(n, type(m)) for n, m in model.named_modules()]
    adapters = make(name, model)
    shake(adapters)
    answers(model, ROWS)
    assert list(model.state_dict()) == list(state)
    adapters.detach()
    with torch.no_grad():
        assert torch.equal(model(X), base)
    assert all(torch.equal(p, state[n]) for n, p in model.state_dict().items())
    assert [(n, type(m)) for n, m in model.named_modules()] == kinds
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_tasks_come_and_go(name: str, model: Encoder) -> None:
    """A task with another's state answers as it; an evicted one is unknown; the others do not change."""
    adapters = make(name, model)
    shake(adapters)
    before = answers(model, ROWS)
    adapters.add("d", adapters.task_state("a"))
    torch.testing.assert_close(answers(model, [{"a": "d"}.get(task, task) for task in ROWS]), before, rtol=1e-5, atol=1e-5)
    adapters.evict("a")
    with pytest.raises(BadInput, match="unknown task 'a'"):
        answers(model, ROWS)
    adapters.add("e")
    torch.testing.assert_close(answers(model, [{"a": "d"}.get(task, task) for task in ROWS]), before, rtol=1e-5, atol=1e-5)


def test_merging_is_exact_or_refused(name: str, model: Encoder) -> None:
    adapters = make(name, model)
    shake(adapters)
    wanted = answers(model, "b")
    state = {n: p.clone() for n, p in model.state_dict().items()}
    if name in (
        "bottleneck",
        "prefix",
        "prompt",
        "compacter",
        "hyperformer",
        "adapterfusion",
        "smora",
        "mixlora",
    ) or name.startswith("scalearn"):
        with pytest.raises(BadInput, match="no change of weights"):
            adapters.merge("b")
        return
    adapters.merge("b")
    with torch.no_grad():
        torch.testing.assert_close(model(X), wanted, rtol=1e-4, atol=1e-5)
    adapters.unmerge()
    assert all(torch.equal(p, state[n]) for n, p in model.state_dict().items())
    torch.testing.assert_close(answers(model, "b"), wanted)
