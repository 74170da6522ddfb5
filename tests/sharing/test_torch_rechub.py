"""Peers: torch-rechub's MMoE, PLE and AITM with the same weights give the same answers (oracle by weight copy).

Their linear layers are always followed by a batch norm, in gates too; ours need none there. In eval mode a batch norm is a scale
and a shift, so it is copied into the linear layer before it; a gate has no bias, so its shift is kept at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.modeling import Features, Heads, Sharing
from pluribus.sharing import AITM, PLE, MMoE
from pluribus.tasks import Task

basic = pytest.importorskip("torch_rechub.basic.features")
multi_task = pytest.importorskip("torch_rechub.models.multi_task")

TASKS = [Task(name, "binary", classes=("0", "1")) for name in "abc"]
ROWS, WIDTH = 11, 5


def features() -> list[Any]:
    return [basic.DenseFeature(f"x{i}") for i in range(WIDTH)]


def stirred(model: nn.Module, gates: Sequence[str]) -> nn.Module:
    """Away from the start: moments, scales and shifts; gates have neither shift nor mean, which ours have no place for."""
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and any(gate in name for gate in gates):
            part.bias.data.zero_()
        if isinstance(part, nn.BatchNorm1d):
            nn.init.uniform_(part.weight, 0.5, 2)
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if not any(gate in name for gate in gates):
                nn.init.normal_(part.bias)
                part.running_mean.normal_()  # type: ignore[union-attr]
    return model.eval()


def folded(mlp: Any) -> list[tuple[Tensor, Tensor]]:
    """(weight [in, out], bias) of every linear layer of their MLP, with the batch norm behind it written in."""
    layers, found = list(mlp.mlp), []
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.T, layer.bias
            norm = layers[i + 1] if i + 1 < len(layers) else None
            if isinstance(norm, nn.BatchNorm1d):
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
                weight, bias = weight * scale, (bias - norm.running_mean) * scale + norm.bias
            found.append((weight, bias))
    return found


@torch.no_grad()
def put(layers: Any, mlps: Sequence[Any], heads: Heads | None = None) -> None:
    """Their MLPs into the slices of our stacked layers; an output layer beyond them into the heads."""
    for i, mlp in enumerate(mlps):
        given = folded(mlp)
        for layer, (weight, bias) in zip(layers, given):
            layer.weight[i].copy_(weight)
            if layer.bias is not None:
                layer.bias[i].copy_(bias)
            else:
                assert bias.abs().max() < 1e-6
        if heads is not None:
            assert len(given) == len(layers) + 1
            heads.weight[i].copy_(given[-1][0][:, 0])
            heads.bias[i].copy_(given[-1][1][0])


def answers(sharing: Sharing, heads: Heads, x: Tensor) -> Tensor:
    rows = dict.fromkeys("abc")
    return torch.cat([torch.sigmoid(h) for h in heads(sharing.eval()(Features(x), rows).tasks, rows).values()], 1)


def theirs(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model({f"x{i}": x[:, i] for i in range(WIDTH)})
    return found


def tower() -> list[dict[str, Any]]:
    return [{"dims": [3]} for _ in TASKS]


@pytest.mark.parametrize("expert", [[4], [6, 4]])
def test_mmoe(expert: list[int]) -> None:
    torch.manual_seed(0)
    peer = multi_task.MMOE(features(), ["classification"] * 3, 5, {"dims": expert}, tower())
    stirred(peer, ["gates"])
    ours, heads = MMoE(TASKS, WIDTH, experts=5, expert=expert, tower=3), Heads(TASKS, 3)
    put(ours.experts.layers, peer.experts)
    put([ours.gates], peer.gates)
    put(ours.towers.bank.layers, peer.towers, heads)  # type: ignore[union-attr]
    x = torch.randn(ROWS, WIDTH)
    torch.testing.assert_close(answers(ours, heads, x), theirs(peer, x))


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("counts", [(1, 2), (2, 1)])
def test_ple(levels: int, counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    own, shared = counts
    peer = multi_task.PLE(features(), ["classification"] * 3, levels, own, shared, {"dims": [4]}, tower())
    stirred(peer, ["gate"])
    ours, heads = PLE(TASKS, WIDTH, levels=levels, own=own, shared=shared, expert=4, tower=3), Heads(TASKS, 3)
    level: Any
    for level, cgc in zip(ours.levels, peer.cgc_layers):
        put(level.own.layers, cgc.experts_specific)
        put(level.shared.layers, cgc.experts_shared)
        put([level.gates], cgc.gates_specific)
        if level.shared_gate is not None:
            put([level.shared_gate], [cgc.gate_shared])
    put(ours.towers.bank.layers, peer.towers, heads)  # type: ignore[union-attr]
    x = torch.randn(ROWS, WIDTH)
    torch.testing.assert_close(answers(ours, heads, x), theirs(peer, x))


@torch.no_grad()
def test_aitm() -> None:
    torch.manual_seed(0)
    funnel = [TASKS[0], *(Task(b, "binary", classes=("0", "1"), after=a) for a, b in ("ab", "bc"))]
    peer = multi_task.AITM(features(), 3, {"dims": [4]}, tower())
    stirred(peer, [])
    ours, heads = AITM(funnel, WIDTH, hidden=4, tower=3), Heads(funnel, 3)
    step: Any
    for i in range(3):
        step = getattr(ours, f"step_{i}")
        ((weight, bias),) = folded(peer.bottoms[i])
        step.f.weight.copy_(weight.T)
        step.f.bias.copy_(bias)
        if i:
            ((weight, bias),) = folded(peer.info_gates[i - 1])
            step.g.weight.copy_(weight.T)
            step.g.bias.copy_(bias)
            layer = peer.aits[i - 1]
            step.h.weight.copy_(torch.cat((layer.v_layer.weight, layer.q_layer.weight, layer.k_layer.weight)))
            step.h.bias.zero_()  # their attention has none
    put(ours.towers.bank.layers, peer.towers, heads)  # type: ignore[union-attr]
    x = torch.randn(ROWS, WIDTH)
    torch.testing.assert_close(answers(ours, heads, x), theirs(peer, x))
