"""MultiTab-Net: its layers against torch, who reads whom under which mask, context rows, parameters and cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pluribus.errors import BadInput
from pluribus.tabular import MultiTabEncoder, MultiTabNet
from pluribus.tabular.embeddings import EMBEDDINGS
from pluribus.tabular.multitab_net import MASKS, column_mask, small
from pluribus.tasks import Task

EDGES = [np.linspace(-2, 2, 6), np.array([-1.0, 0.0, 1.0])]
TASKS = [Task("a"), Task("b", kind="binary", classes=("0", "1")), Task("c")]


def _inputs(*shape: int) -> dict[str, Tensor]:
    x = torch.randn(*shape, 2)
    x[..., 0, 1] = torch.nan
    return {"numeric": x, "categorical": torch.randint(0, 4, (*shape, 1))}


def _net(tower: int = 8, tokens: int = 3, **settings: Any) -> MultiTabNet:
    torch.manual_seed(0)
    encoder = MultiTabEncoder(EDGES, [4], tower=0, hidden=16, tokens=tokens, **settings)
    net = MultiTabNet(TASKS, encoder, tower).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) / 3)  # the small start would hide dependence behind rounding
    return net


def _reach(net: MultiTabNet) -> Tensor:
    """[task, token] whether an output of the task has a gradient at the token."""
    encoder: Any = net.encoder
    found = []
    for name in net.tasks:
        (gradient,) = torch.autograd.grad(net(_inputs(5))[name].sum(), encoder.special)
        found.append(gradient.abs().sum(1) > 0)
    return torch.stack(found)


def test_no_gradient_between_task_tokens_through_one_layer() -> None:
    """Oracle (autograd, exact): T↛T in one column layer keeps a task's output from every other task's token."""
    assert torch.equal(_reach(_net(mask="task_to_task")), torch.eye(3, dtype=torch.bool))
    assert torch.equal(_reach(_net(mask="both")), torch.eye(3, dtype=torch.bool))
    assert bool(_reach(_net(mask="none")).all())
    assert bool(_reach(_net(mask="feature_to_task")).all())  # tasks read tasks


def test_the_leak_at_depth_two() -> None:
    """T↛T alone lets tasks meet in the features from the second layer on; with F↛T too they never do."""
    assert bool(_reach(_net(mask="task_to_task", depth=2)).all())
    for depth in (2, 3):
        assert torch.equal(_reach(_net(mask="both", depth=depth)), torch.eye(3, dtype=torch.bool))


def test_features_that_do_not_read_tasks_tell_from_the_second_layer_on() -> None:
    """In one column layer nobody reads the features' answers, so that F↛T changes nothing; in two it does."""
    inputs = _inputs(5)
    for depth, same in ((1, True), (2, False)):
        masked, free = (_net(mask=mask, depth=depth)(inputs)["a"] for mask in ("feature_to_task", "none"))
        assert torch.allclose(masked, free, rtol=1e-4, atol=1e-5) is same


@pytest.mark.parametrize("depth", [1, 3])
def test_removing_a_token_changes_no_other_task(depth: int) -> None:
    """Under both masks the network without task c answers for a and b as before."""
    net = _net(mask="both", depth=depth)
    fewer = MultiTabNet(TASKS[:2], MultiTabEncoder(EDGES, [4], tower=0, hidden=16, tokens=2, mask="both", depth=depth), 8).eval()
    with torch.no_grad():
        for (name, p), (_, q) in zip(fewer.named_parameters(), net.named_parameters()):
            p.copy_(q[: len(p)] if p.shape != q.shape else q), name
    inputs = _inputs(6)
    for task in ("a", "b"):
        torch.testing.assert_close(fewer(inputs)[task], net(inputs)[task])


def test_masks_by_hand() -> None:
    """Rows ask, columns are read; two tasks, one feature."""
    expected = {
        "task_to_task": [[1, 0, 1], [0, 1, 1], [1, 1, 1]],
        "feature_to_task": [[1, 1, 1], [1, 1, 1], [0, 0, 1]],
        "both": [[1, 0, 1], [0, 1, 1], [0, 0, 1]],
    }
    for name, rows in expected.items():
        mask = column_mask(name, 2, 1)  # type: ignore[arg-type]
        assert mask is not None
        assert mask.int().tolist() == rows
    assert column_mask("none", 2, 1) is None
    assert column_mask("task_to_task", 1, 4) is None


def test_a_column_layer_equals_torch() -> None:
    """Oracle: torch's encoder layer (pre-norm, GELU) under the same mask, with our weights; all tokens and tasks' alone."""
    net: Any = _net(mask="task_to_task", depth=2, width=8, heads=2).encoder
    inputs = _inputs(5)
    t = torch.cat((net.special.expand(5, -1, -1), net.tokens(inputs["numeric"][None], inputs["categorical"][None])[0]), 1)
    for block in net.columns:
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True)
        with torch.no_grad():
            for name, own in (
                ("self_attn.in_proj_", block.attention.qkv),
                ("self_attn.out_proj.", block.attention.out),
                ("linear1.", block.feed_forward.first),
                ("linear2.", block.feed_forward.second),
            ):
                layer.get_parameter(f"{name}weight").copy_(own.weight[0].T)
                layer.get_parameter(f"{name}bias").copy_(own.bias[0])
        t = layer(t, src_mask=~net.may)
    torch.testing.assert_close(net(inputs, {}).main, t[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [False, True])
def test_a_row_depends_on_itself_alone(rows: bool) -> None:
    """Also with row layers: a row reads the context rows, not whoever is asked about beside it."""
    net = _net(rows=rows, context=6, depth=2)
    if rows:
        net.encoder.read_context(_inputs(6))  # type: ignore[operator]
    inputs = _inputs(7)
    together = net(inputs)
    backwards = net({name: value.flip(0) for name, value in inputs.items()})
    for i in (0, 3):
        alone = net({name: value[i : i + 1] for name, value in inputs.items()})
        for task in net.tasks:
            torch.testing.assert_close(alone[task][0], together[task][i])
            torch.testing.assert_close(backwards[task][6 - i], together[task][i])


def test_context_rows_are_read() -> None:
    """Other context rows, other predictions; their missing cells come back as missing; they lie in the state."""
    net: Any = _net(rows=True, context=6)
    inputs, first, second = _inputs(5), _inputs(6), _inputs(6)
    net.encoder.read_context(first)
    a = net(inputs)["a"].detach().clone()
    assert net.state_dict()["encoder.context_missing"].any()
    assert not net.state_dict()["encoder.context_numeric"].isnan().any()
    net.encoder.read_context(second)
    assert not torch.allclose(net(inputs)["a"], a)
    net.encoder.read_context(first)
    torch.testing.assert_close(net(inputs)["a"], a)
    net.encoder.read_context({**first, "numeric": first["numeric"].nan_to_num(0.0)})
    assert not torch.allclose(net(inputs)["a"], a)  # a missing cell is no zero


def test_a_row_layer_by_hand() -> None:
    """A row's tokens as one vector read the context rows' vectors, and the residuals are its own."""
    net: Any = _net(rows=True, context=4, width=4, heads=2).encoder
    block, size = net.across[0], 6 * 4
    t = torch.randn(1, 3 + 4, 6, 4)
    found = net._across(0, t, None)[0]
    x = t[0].reshape(7, size)
    z = torch.nn.functional.layer_norm(x, (size,))
    q, k, v = (z @ block.attention.qkv.weight[0] + block.attention.qkv.bias[0]).chunk(3, 1)
    heads = []
    for h in range(2):
        own = slice(h * size // 2, (h + 1) * size // 2)
        heads.append(torch.softmax(q[:, own] @ k[3:, own].T / (size / 2) ** 0.5, 1) @ v[3:, own])
    y = x + torch.cat(heads, 1) @ block.attention.out.weight[0] + block.attention.out.bias[0]
    expected = y + block.feed_forward(torch.nn.functional.layer_norm(y, (size,))[None, None])[0, 0]
    torch.testing.assert_close(found.reshape(7, size), expected, rtol=1e-4, atol=1e-4)


def test_single_token() -> None:
    """One token for all heads: the towers alone tell the tasks apart."""
    net: Any = _net(tokens=1)
    assert net.encoder.special.shape == (1, 16)
    outputs = net(_inputs(4))
    assert set(outputs) == {"a", "b", "c"}
    with torch.no_grad():
        for p in (*net.sharing.parameters(), net.heads.weight, net.heads.bias):
            p.copy_(p[:1].expand_as(p))
    outputs = net(_inputs(4))
    torch.testing.assert_close(outputs["a"], outputs["b"])


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_copies_are_separate_networks(embedding: Any) -> None:
    torch.manual_seed(0)
    bank = MultiTabEncoder(EDGES, [4], embedding=embedding, copies=3).eval()
    one = MultiTabEncoder(EDGES, [4], embedding=embedding).eval()
    same, own = _inputs(5), _inputs(3, 5)
    with torch.no_grad():
        for p in bank.parameters():
            p.copy_(torch.randn_like(p) / 3)
        for i in range(3):
            for whole, part in zip(bank.parameters(), one.parameters()):
                each = len(whole) // 3
                part.copy_(whole[i * each : (i + 1) * each])
            torch.testing.assert_close(bank.run(same)[i], one(same, {}).main, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(bank.run(own)[i], one({k: v[i] for k, v in own.items()}, {}).main, rtol=1e-4, atol=1e-5)


def test_parameters_and_cost() -> None:
    """The figures of the docstring, counted on the model."""
    e, hidden, context, tasks = 8, 16, 10, 3
    length = tasks + 3
    one = MultiTabEncoder(EDGES, [4], width=e, heads=2, hidden=hidden, tokens=tasks, tower=0)
    rows = MultiTabEncoder(EDGES, [4], width=e, heads=2, hidden=hidden, tokens=tasks, tower=0, rows=True, context=context)
    layer = sum(p.numel() for p in one.columns.parameters())
    across = sum(p.numel() for p in rows.across.parameters())
    assert layer == 4 * e**2 + 2 * e * hidden + 5 * e + hidden
    wide = length * e
    assert across == 4 * wide**2 + 2 * wide * hidden + 5 * wide + hidden
    x = torch.randn(1, 20, length, e)
    attention = 2 * length * e
    assert _flops(lambda: rows.columns[0](x)) == 20 * 2 * length * (4 * e**2 + 2 * e * hidden + attention)
    last = 20 * 2 * (2 * length * e**2 + tasks * (2 * e**2 + 2 * e * hidden + attention))
    assert _flops(lambda: one.columns[0](x, queries=tasks)) == last
    whole = torch.randn(1, 20, length, e)  # rows and context rows together; keys and values of the context rows only
    asked = 20 * (2 * wide**2 + 2 * wide * hidden + 2 * context * wide) + context * 2 * wide**2
    assert _flops(lambda: rows._across(0, whole, None)) == 2 * asked


def _flops(call: Any) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


def test_initial_weights() -> None:
    """N(0, 0.01²), biases 0, the packed projection wider."""
    torch.manual_seed(0)
    net = MultiTabEncoder(EDGES, [4], tokens=3, tower=0)
    first: Any = net.columns[0]
    assert float(first.feed_forward.first.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert float(first.attention.qkv.weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert not first.attention.qkv.bias.any()
    assert not net.tokens.bias.any()
    frequencies = MultiTabEncoder(EDGES, [4], embedding="plr", sigma=1.0).tokens.values.c  # type: ignore[union-attr]
    assert float(frequencies.detach().std()) > 0.5
    small(net)


def test_bad_settings(mixed: Any) -> None:
    with pytest.raises(BadInput, match="unknown mask 'task_to_tasks'; did you mean 'task_to_task'"):
        MultiTabEncoder(EDGES, [4], mask="task_to_tasks")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="unknown kind of tokens 'singel'; did you mean 'single'"):
        MultiTabNet.of(mixed.tasks, mixed.columns, tokens="singel")
    with pytest.raises(BadInput, match="a tower reads one token"):
        MultiTabEncoder(EDGES, [4], tokens=2)
    with pytest.raises(BadInput, match="context must be a whole number"):
        MultiTabEncoder(EDGES, [4], context=0)
    assert set(MASKS) == {"task_to_task", "feature_to_task", "both", "none"}
