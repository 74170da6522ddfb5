"""MTLoRA's forking trunk. If these fail: a task's stream hears another's, the trunk hears a task, or an equation is off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.adapters.conftest import shake
from torch import Tensor, nn

from pluribus.adapters import MTLoRA, MTLoRAPlus, fork, route
from pluribus.adapters.sites import blocks
from pluribus.errors import BadInput


class Merge(nn.Module):
    """Two neighbouring tokens become one of twice the width."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reduction(x.reshape(len(x), -1, 32))
        return out


class Hierarchy(nn.Module):
    """Two stages of two blocks, halved in length and doubled in width between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)

        def stage(width: int) -> nn.ModuleList:
            return nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True) for _ in range(2))

        self.stages, self.merge = nn.ModuleList([stage(16), stage(32)]), Merge()
        for p in self.parameters():
            nn.init.normal_(p, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        for i, stage in enumerate(self.stages):
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
            x = self.merge(x) if i == 0 else x
        return x


X = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(3))
TASKS = ["a", "b"]
LAST = ["stages.0.1", "stages.1.1"]


def run(model: nn.Module, tasks: list[str] = TASKS, x: Tensor = X) -> tuple[Tensor, dict[str, list[Tensor]]]:
    with fork(tasks) as r:
        out: Tensor = model(x)
    return out, r.streams


@pytest.fixture
def model() -> Hierarchy:
    return Hierarchy().eval()


@pytest.mark.parametrize("kind", [MTLoRA, MTLoRAPlus])
def test_at_the_start_all_streams_are_the_frozen_net(kind: Any, model: Hierarchy) -> None:
    with torch.no_grad():
        plain, inside = model(X), []
        for path in LAST:
            model.get_submodule(path).register_forward_hook(lambda m, a, y: inside.append(y))
        model(X)
    adapters = kind(model, TASKS, rank=4, task_rank=2, downsampling="merge.reduction")
    assert list(adapters.forks) == LAST
    frozen = inside[:2]
    out, streams = run(model)
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    for task in TASKS:
        for stream, wanted in zip(streams[task], frozen, strict=True):
            torch.testing.assert_close(stream, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["matrix", "matrixv2"])
def test_a_forking_block_by_hand(mode: str, model: Hierarchy) -> None:
    """The equations of the paper's block, pre-computed with plain tensors, for both modes: every map's frozen term is that of the
    shared stream."""
    adapters = MTLoRA(model, TASKS, forks=["stages.0.0"], rank=4, task_rank=2, scale=3.0, task_scale=0.5, mode=mode)
    shake(adapters)
    block: Any = model.stages[0][0]  # type: ignore[index]
    with torch.no_grad():
        got, streams = run(block)
        adapters.detach()

        def path(name: str) -> str:
            return f"stages/0/0/{name}"

        def shared(name: str, x: Tensor) -> Tensor:
            bank: Any = adapters.shared[path(name)]
            return 3.0 * x @ bank.A[0].T @ bank.B[0].T

        def own(name: str, t: int, z: Tensor) -> Tensor:
            bank: Any = adapters.sites[path(name)]
            return 0.5 * z @ bank.A[t].T @ bank.B[t].T

        def layer(name: str, x: Tensor, zs: list[Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, list[Tensor]]:
            frozen = x @ weight.T + bias
            y = frozen + shared(name, x)
            start = frozen if mode == "matrix" else y
            return y, [start + own(name, t, z) for t, z in enumerate(zs)]

        attention = block.self_attn
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        q, k, v = (X @ w.T + b + shared(f"self_attn/{n}", X) for n, w, b in zip("qkv", weights, biases))
        q, k, v = (t.view(3, 6, 4, 4).transpose(1, 2) for t in (q, k, v))
        inner = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 6, 16)
        out = attention.out_proj
        a, a_t = layer("self_attn/out_proj", inner, [inner, inner], out.weight, out.bias)
        u, u_t = block.norm1(X + a), [block.norm1(X + each) for each in a_t]
        f, f_t = layer("linear1", u, u_t, block.linear1.weight, block.linear1.bias)
        m, m_t = layer("linear2", F.relu(f), [F.relu(each) for each in f_t], block.linear2.weight, block.linear2.bias)
        torch.testing.assert_close(got, block.norm2(u + m), rtol=1e-3, atol=1e-3)
        for t, task in enumerate(TASKS):
            torch.testing.assert_close(streams[task][0], block.norm2(u_t[t] + m_t[t]), rtol=1e-3, atol=1e-3)


def test_tasks_do_not_hear_one_another(model: Hierarchy) -> None:
    """B of one task changes its own streams only, and not the next stage; gradients of others are exactly zero; shared updates of
    a last block's fc2 leave that stage's task streams alone (`matrix`) and reach the later ones."""
    adapters = MTLoRA(model, TASKS, rank=4, task_rank=2)
    shake(adapters)
    out, streams = run(model)
    streams["a"][0].square().sum().backward(retain_graph=True)
    streams["a"][1].square().sum().backward()
    for site in adapters.sites.values():
        assert (site.B.grad[1] == 0).all()  # type: ignore[index, union-attr]
        assert (site.B.grad[0] != 0).any()  # type: ignore[index, union-attr]
    with torch.no_grad():
        first: Any = adapters.sites["stages/0/1/linear2"]
        change = torch.randn_like(first.B[0])
        first.B[0] += change
        after, moved = run(model)
        assert torch.equal(after, out)
        assert not torch.allclose(moved["a"][0], streams["a"][0], atol=1e-2)
        assert torch.equal(moved["a"][1], streams["a"][1])
        assert all(torch.equal(x, y) for x, y in zip(moved["b"], streams["b"]))
        first.B[0] -= change
        bank: Any = adapters.shared["stages/0/1/linear2"]
        bank.B += torch.randn_like(bank.B)
        after, moved = run(model)
        torch.testing.assert_close(moved["a"][0], streams["a"][0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(moved["a"][1], streams["a"][1], atol=1e-2)
        assert not torch.allclose(after, out, atol=1e-2)


def test_one_pass_is_a_pass_for_each_task(model: Hierarchy) -> None:
    """All tasks at once, or one after another, or some: the same streams."""
    shake(MTLoRA(model, ["a", "b", "c"], rank=4, task_rank=2))
    with torch.no_grad():
        out, together = run(model, ["a", "b", "c"])
        for task in "abc":
            alone_out, alone = run(model, [task])
            torch.testing.assert_close(alone_out, out, rtol=1e-4, atol=1e-4)
            for x, y in zip(alone[task], together[task], strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="unknown task 'z'"):
        run(model, ["z"])


def test_streams_may_leave_after_the_downsampling(model: Hierarchy) -> None:
    """Patch merging takes every stream with the same weights; MTLoRA trains it, MTLoRA+ gives it an update and freezes it."""
    plus = MTLoRAPlus(
        model,
        TASKS,
        forks={"stages.0.1": "merge", "stages.1.1": "stages.1.1"},
        rank=4,
        task_rank=2,
        downsampling="merge.reduction",
    )
    shake(plus)
    assert not plus.base_parameters()
    bank: Any = plus.shared["merge/reduction"]
    with torch.no_grad():
        _, streams = run(model)
        plus.detach()
        before = MTLoRAPlus(model, TASKS, rank=4, task_rank=2, downsampling="merge.reduction")
        before.load_tensors(plus.state_dict(), "state")
        _, unmerged = run(model)
        before.detach()
        for task in TASKS:
            x = unmerged[task][0].reshape(3, 3, 32)
            wanted = model.merge(x) + 4.0 * x @ bank.A[0].T @ bank.B[0].T
            torch.testing.assert_close(streams[task][0], wanted, rtol=1e-3, atol=1e-3)
    trained = MTLoRA(model, TASKS, rank=4, task_rank=2, downsampling="merge.reduction", train=["*norm*"])
    assert model.merge.reduction.weight.requires_grad
    assert len(trained.base_parameters()) == 2 + 4 * 4
    assert not model.stages[0][0].linear1.weight.requires_grad  # type: ignore[index, union-attr]


def test_counts() -> None:
    """Σ r (in + out): shared updates on every map, one per task on o, fc1 and fc2 of the last blocks."""
    adapters = MTLoRA(Hierarchy(), ["a", "b", "c"], rank=4, task_rank=2)
    shared = own = 0
    for d in (16, 32):
        shared += 2 * 4 * (4 * (d + d) + 2 * (d + 2 * d))
        own += 3 * 2 * ((d + d) + 2 * (d + 2 * d))
    assert sum(p.numel() for p in adapters.shared.parameters()) == shared
    assert sum(p.numel() for p in adapters.sites.parameters()) == own


def test_rows_with_one_task_each(model: Hierarchy) -> None:
    """Under an ordinary route: shared plus the row's own update in the forking blocks; and it merges."""
    adapters = MTLoRA(model, TASKS, rank=4, task_rank=2, forks=["stages.1.1"])
    shake(adapters)
    path = "stages.1.1.linear1"
    x = torch.randn(2, 3, 32)
    with torch.no_grad(), route(["a", "b"]):
        got = model.get_submodule(path)(x)
    adapters.detach()
    s: Any = adapters.shared[path.replace(".", "/")]
    t: Any = adapters.sites[path.replace(".", "/")]
    with torch.no_grad():
        y = model.get_submodule(path)(x) + 4.0 * x @ s.A[0].T @ s.B[0].T
        wanted = torch.stack([y[i] + 4.0 * x[i] @ t.A[i].T @ t.B[i].T for i in range(2)])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_swin_forks_as_well() -> None:
    """Windows, shifts and patch merging of transformers' Swin: all streams are the net at the start, apart afterwards."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4, drop_path_rate=0.0
    )
    swin = transformers.SwinModel(config).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = swin(image).last_hidden_state
    assert len(blocks(swin)) == 4
    adapters = MTLoRAPlus(swin, TASKS, rank=4, task_rank=2, downsampling="downsample.reduction")
    with torch.no_grad(), fork(TASKS) as r:
        out = swin(image).last_hidden_state
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    assert [s.shape for s in r.streams["a"]] == [(2, 64, 16), (2, 16, 32)]
    shake(adapters)
    with torch.no_grad(), fork(["a"]) as one:
        swin(image)
    with torch.no_grad(), fork(TASKS) as both:
        swin(image)
    for x, y in zip(one.streams["a"], both.streams["a"], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(both.streams["a"][0], both.streams["b"][0], atol=1e-2)


def test_bad_forks(model: Hierarchy) -> None:
    with pytest.raises(BadInput, match=r"unknown block 'stages\.0\.2'"):
        MTLoRA(model, TASKS, forks=["stages.0.2"])
    with pytest.raises(BadInput, match="unknown mode"):
        MTLoRA(model, TASKS, mode="matrixv3")
    with pytest.raises(BadInput, match="no adapted map lies in a forking block"):
        MTLoRA(model, TASKS, where="q", rank=4)
