"""Serving many adapters within a budget. If these fail: memory grows, a batch gets another's adapter, or threads clash."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.conftest import Encoder, shake
from torch import Tensor, nn

from pluribus.adapters import LoRA, Pool, write_peft
from pluribus.errors import BadInput

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(3))
NAMES = [f"t{i}" for i in range(12)]


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))


def library(model: nn.Module, names: list[str]) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Tensor]]:
    """States by name, and the answers of each alone."""
    lora = LoRA(model, names, rank=2)
    shake(lora)
    states, answers = {name: lora.task_state(name) for name in names}, {}
    from pluribus.adapters import route

    for name in names:
        with torch.no_grad(), route(name):
            answers[name] = model(X)
    lora.detach()
    return states, answers


def make(room: int) -> tuple[Pool, nn.Module, dict[str, Tensor]]:
    model = backbone()
    states, answers = library(model, NAMES)
    lora = LoRA(model, ["first"], rank=2)
    each = sum(t[0].nbytes for t in lora.stacked().values())
    pool = Pool(lora, budget=room * each, load=lambda name: (states[name], None), known=[*NAMES, "first"])
    return pool, model, answers


@given(asked=st.lists(st.lists(st.sampled_from(NAMES), min_size=2, max_size=2), max_size=20), room=st.integers(2, 6))
def test_least_recently_used_goes_first(asked: list[list[str]], room: int) -> None:
    """Against a list kept by hand: answers, residents and their order, the budget."""
    pool, model, answers = make(room)
    kept = ["first"]
    for names in asked:
        with torch.no_grad(), pool.route(names):
            got = model(X)
        for i, name in enumerate(names):
            torch.testing.assert_close(got[i], answers[name][i], rtol=1e-4, atol=1e-5)
        for name in dict.fromkeys(names):
            if name in kept:
                kept.remove(name)
            elif len(kept) >= room:
                kept.remove(next(k for k in kept if k not in names or names.index(k) > names.index(name)))
            kept.append(name)
        assert list(pool.resident) == kept
        assert pool.used <= pool.budget
        assert pool.adapters.capacity == room


def test_what_is_in_use_stays() -> None:
    pool, _, _ = make(2)
    with pool.route(["t0", "t1"]):
        with pytest.raises(BadInput, match="no room for 't2'"), pool.route("t2"):
            pass
        with pytest.raises(BadInput, match="in use by a running batch"):
            pool.evict("t0")
        with pytest.raises(BadInput, match="in use by a running batch"):
            pool.put("t0", {})
    assert pool.resident == ("t0", "t1")
    with pool.route("t2"):
        assert pool.resident == ("t1", "t2")
    with pytest.raises(BadInput, match="unknown task 't99'"), pool.route("t99"):
        pass
    with pytest.raises(BadInput, match="budget"):
        Pool(pool.adapters, budget=10)


def test_what_cannot_be_loaded_again_is_not_evicted() -> None:
    pool, _, _ = make(2)
    pool.evict("first")
    state = pool.adapters.task_state(pool.resident[0]) if pool.resident else None
    assert state is None
    with pool.route("t0"):
        mine = pool.adapters.task_state("t0")
    pool.put("trained here", mine)
    with pool.route("t1"):
        assert set(pool.resident) == {"trained here", "t1"}


def test_threads_share_a_small_pool() -> None:
    """Eight threads, twelve adapters, room for ten: every answer is its own task's, whatever is loaded and evicted meanwhile."""
    pool, model, answers = make(10)
    wrong: list[str] = []

    def work(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for _ in range(40):
            name = NAMES[int(torch.randint(12, (1,), generator=g))]
            with torch.no_grad(), pool.route([name, name]):
                got = model(X)
            if not torch.allclose(got, answers[name], atol=1e-5):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.evictions > 20
    assert not pool._pins


def test_heads_of_different_sizes(tmp_path: Path) -> None:
    """PEFT folders with heads of 2 and 5 classes in one batch; their bytes count."""
    model = backbone()
    lora = LoRA(model, ["a", "b"], where="0", rank=2)
    shake(lora)
    torch.manual_seed(0)
    heads = {"a": torch.randn(2, 8), "b": torch.randn(5, 8)}
    for name, weight in heads.items():
        write_peft(lora, name, tmp_path / name, heads={"score.weight": weight})
    each = sum(t[0].nbytes for t in lora.stacked().values())
    for name in ("a", "b"):
        lora.evict(name)
    pool = Pool.of_peft(lora, {name: tmp_path / name for name in heads}, budget=5 * each)
    with torch.no_grad(), pool.route(["b", "a", "b"]):
        z = model(torch.randn(3, 1, 8))[:, 0]
        found = pool.logits(z)
    torch.testing.assert_close(found["b"][1], z[[0, 2]] @ heads["b"].T)
    torch.testing.assert_close(found["a"][1], z[[1]] @ heads["a"].T)
    assert pool.used == 2 * each + 4 * (2 * 9 + 5 * 9)


def test_adding_does_not_move_the_bank(encoder: Encoder) -> None:
    """The bank is allocated once: parameters and their memory stay where they are."""
    lora = LoRA(encoder, ["a"], rank=2)
    each = sum(t[0].nbytes for t in lora.stacked().values())
    pool = Pool(lora, budget=100 * each)
    places = [p.data_ptr() for p in lora.parameters()]
    state = lora.task_state("a")
    for i in range(99):
        pool.put(f"n{i}", state)
    assert [p.data_ptr() for p in lora.parameters()] == places
    assert sum(p.nbytes for p in lora.stacked().values()) == 100 * each
    with pytest.raises(BadInput, match="no room"):
        pool.put("one more", state)
