"""Routes: if these fail, a row is answered with another task's adapter, or with none."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tests.adapters.conftest import Encoder, shake
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pluribus.adapters import LoRA, TaskHeads, route
from pluribus.errors import BadInput

X = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(3))
ROWS = ["a", "b", "c", "a"]


@pytest.fixture
def lora(encoder: Encoder) -> LoRA:
    made = LoRA(encoder, ["a", "b", "c", "d"], rank=4)
    shake(made)
    return made


def answers(model: nn.Module, rows: Any, x: Tensor = X, **more: Any) -> Tensor:
    with torch.no_grad(), route(rows, **more):
        out: Tensor = model(x)
    return out


def test_a_mixed_batch_is_each_row_alone(encoder: Encoder, lora: LoRA) -> None:
    mixed = answers(encoder, ROWS)
    for i, task in enumerate(ROWS):
        torch.testing.assert_close(mixed[i], answers(encoder, task, X[i : i + 1])[0], rtol=1e-4, atol=1e-5)
    ids = torch.tensor([2, 0, 1, 2])
    torch.testing.assert_close(answers(encoder, ids, names=("b", "c", "a")), mixed)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(answers(encoder, [ROWS[i] for i in order], X[order]), mixed[order])


def test_no_route_and_unknown_tasks_are_errors(encoder: Encoder, lora: LoRA) -> None:
    with pytest.raises(BadInput, match="no route is set"):
        encoder(X)
    with pytest.raises(BadInput, match="unknown task 'e'"):
        answers(encoder, ["a", "e", "a", "a"])
    with pytest.raises(BadInput, match="names 3 rows, the model got an input of shape"):
        answers(encoder, ["a", "b", "c"])
    with pytest.raises(BadInput, match="names 2 rows, the model got an input of shape"):  # 2 divides the batch of 4
        answers(encoder, ["a", "b"])
    with pytest.raises(BadInput, match="outside 0 to 1"):
        answers(encoder, torch.tensor([0, 2, 0, 0]), names=("a", "b"))
    with pytest.raises(BadInput, match="names no row"):
        answers(encoder, [])
    with route("a"), pytest.raises(BadInput, match="unknown task 'z'"), route("z"):
        encoder(X)
    with pytest.raises(BadInput, match="no route"):  # the blocks were left
        encoder(X)


def test_threads_have_their_own_routes(encoder: Encoder, lora: LoRA) -> None:
    """Sixteen threads with different routes at once; and a thread that sets none has none, whatever its parent set."""
    wanted = {task: answers(encoder, task) for task in "abcd"}
    wrong: list[str] = []
    start = threading.Barrier(16)

    def work(task: str) -> None:
        start.wait()
        wrong.extend(task for _ in range(10) if not torch.equal(answers(encoder, task), wanted[task]))

    threads = [threading.Thread(target=work, args=("abcd"[i % 4],)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    seen: list[str] = []

    def without() -> None:
        try:
            encoder(X)
        except BadInput as error:
            seen.append(str(error))

    with route("a"):
        thread = threading.Thread(target=without)
        thread.start()
        thread.join()
    assert "no route is set" in seen[0]


class Checkpointed(nn.Module):
    """Layers whose activations are computed again in the backward pass."""

    def __init__(self, encoder: Encoder, reentrant: bool | None) -> None:
        super().__init__()
        self.layers, self.reentrant = encoder.encoder.layers, reentrant

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)
        return {"out": x, "also": (x[:, 0],)}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_the_forwards_route(reentrant: bool) -> None:
    """Two forwards with different routes, one backward after both blocks were left (or inside a third): the gradients are those
    without checkpointing."""
    found = []
    for how in (None, reentrant):
        torch.manual_seed(0)
        model = Checkpointed(Encoder(), how)
        lora = LoRA(model, ["a", "b", "c"], rank=4)
        shake(lora)
        for rows in (None, "c"):
            x = X.clone().requires_grad_()
            outs = []
            for tasks in (["a", "b", "b", "a"], ["c", "a", "c", "b"]):
                with route(tasks):
                    outs.append(model(x)["out"].square().sum())
            lora.zero_grad()
            if rows is None:
                (outs[0] + 2 * outs[1]).backward()
            else:
                with route(rows):
                    (outs[0] + 2 * outs[1]).backward()
            found.append([x.grad, *(p.grad.clone() for p in lora.parameters() if p.grad is not None)])
    for mine in found[1:]:
        assert len(mine) == len(found[0])
        for a, b in zip(found[0], mine):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="no route is set"):  # nothing is left over from the backward pass
        model(X)


def test_gradients_that_cannot_reach_the_adapters_are_an_error(encoder: Encoder) -> None:
    """Reentrant checkpointing over frozen inputs cuts the graph: training would do nothing without a word."""
    model = Checkpointed(encoder, True).train()
    LoRA(model, ["a"], rank=2)
    with route("a"), pytest.raises(BadInput, match="no gradient reaches the adapters"):
        model(X)


def _compiler_missing() -> str | None:
    try:
        torch.compile(lambda x: x + 1, backend="aot_eager")(torch.zeros(1))
    except Exception as error:
        return f"torch.compile does not run here: {error}"[:200]
    return None


def test_compiled_models_follow_the_route() -> None:
    """One compilation serves every route; gradients too; an unknown task or no route stays an error."""
    why = _compiler_missing()
    if why:
        pytest.skip(why)
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8))
    lora = LoRA(model, ["a", "b", "c", "d"], rank=4)
    shake(lora)
    compiled: Any = torch.compile(model, backend="aot_eager")
    counter = torch._dynamo.utils.counters["stats"]
    for i, rows in enumerate((ROWS, ["d", "b", "a", "b"], ["b", "b", "c", "d"], ["a", "d", "d", "c"])):
        if i == 2:
            seen = counter["unique_graphs"]
        grads = []
        for run in (compiled, model):
            lora.zero_grad()
            with route(rows):
                out = run(X)
            out.square().sum().backward()
            grads.append([out.detach(), *(p.grad.clone() for p in lora.parameters() if p.grad is not None)])
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert counter["unique_graphs"] == seen  # not one compilation per route
    with pytest.raises(BadInput, match="no route"):
        compiled(X)
    with pytest.raises(BadInput, match="unknown task"), route("zz"):
        compiled(X)


def test_one_backward_is_the_sum_of_the_tasks(encoder: Encoder, lora: LoRA) -> None:
    """Float64, 1e-10: rows of different tasks in one forward and one backward, heads with different class counts; absent tasks
    get exactly zero."""
    encoder.double(), lora.double()
    heads = TaskHeads({"a": 2, "b": 5, "c": 3, "d": 4}, 16).double()
    x, labels = X.double(), torch.tensor([1, 4, 2, 0])

    def grads() -> list[Tensor]:
        found = [p.grad.clone() for p in [*lora.parameters(), *heads.parameters()] if p.grad is not None]
        lora.zero_grad(), heads.zero_grad()
        return found

    with route(ROWS):
        logits = heads(encoder(x)[:, 0])
    assert logits.shape == (4, 5)
    assert torch.isneginf(logits[0, 2:]).all()
    nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    for bank in lora.sites.values():
        assert (bank.B.grad[3] == 0).all()  # type: ignore[index, union-attr]
    mixed = grads()
    for task in "abc":
        mine = [i for i, name in enumerate(ROWS) if name == task]
        with route(task):
            own = heads(encoder(x[mine])[:, 0])
        assert own.shape[1] == heads.classes[task]
        nn.functional.cross_entropy(own, labels[mine], reduction="sum").backward()
    for a, b in zip(mixed, grads()):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_heads_split_by_task() -> None:
    heads = TaskHeads({"a": 2, "b": 3}, 4)
    z = torch.randn(3, 4)
    with route(["b", "a", "b"]):
        parts = heads.split(heads(z))
    assert parts["b"][0].tolist() == [0, 2]
    torch.testing.assert_close(parts["b"][1], z[[0, 2]] @ heads.weight[2:].T + heads.bias[2:])
    torch.testing.assert_close(parts["a"][1], z[[1]] @ heads.weight[:2].T + heads.bias[:2])
    with pytest.raises(BadInput, match="unknown task 'c'"), route(["c"]):
        heads(z[:1])
    tokens = torch.randn(3, 7, 4)  # tagging: logits per token
    with route(["b", "a", "b"]):
        assert heads(tokens).shape == (3, 7, 3)
