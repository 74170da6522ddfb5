"""FT-Transformer: against the authors' package and torch's attention, in copies, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.tabular import FTTransformer
from pluribus.tabular.attention import Attention, AttentionBlock, FeedForward
from pluribus.tabular.embeddings import EMBEDDINGS, PLR, PiecewiseLinear
from pluribus.tabular.tokens import Tokens

EDGES = [np.linspace(-2, 2, 6), np.array([-1.0, 0.0, 1.0])]


def _inputs(*shape: int) -> dict[str, Tensor]:
    x = torch.randn(*shape, 2)
    x[..., 0, 1] = torch.nan
    return {"numeric": x, "categorical": torch.randint(0, 4, (*shape, 1))}


@pytest.mark.peer
def test_equals_the_authors() -> None:
    """Oracle: rtdl_revisiting_models, its weights put in; the scale and shift of its norms go into the Linear that follows."""
    rtdl = pytest.importorskip("rtdl_revisiting_models")
    torch.manual_seed(0)
    d, hidden = 16, int(16 * 4 / 3)
    theirs = rtdl.FTTransformer(
        n_cont_features=2,
        cat_cardinalities=[4],
        d_out=3,
        n_blocks=3,
        d_block=d,
        attention_n_heads=4,
        attention_dropout=0.0,
        ffn_d_hidden_multiplier=4 / 3,
        ffn_dropout=0.0,
        residual_dropout=0.0,
    ).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "normalization" in name:
                p.copy_(torch.randn_like(p))
    ours = FTTransformer(EDGES, [4], width=d, depth=3, heads=4).eval()
    with torch.no_grad():
        ours.cls[0] = theirs.cls_embedding.weight
        ours.tokens.weight[0, :, 0] = theirs.cont_embeddings.weight
        ours.tokens.bias[0] = torch.cat((theirs.cont_embeddings.bias, theirs.cat_embeddings.bias))
        ours.tokens.categorical.table[0] = theirs.cat_embeddings.embeddings[0].weight
        for i, (block, own) in enumerate(zip(theirs.backbone.blocks, ours.blocks)):
            own_any: Any = own
            linears = [getattr(block["attention"], f"W_{x}") for x in "qkv"]
            weight, bias = torch.cat([x.weight for x in linears]), torch.cat([x.bias for x in linears])
            if i > 0:
                weight, bias = _absorbed(block["attention_normalization"], weight, bias)
            _put(own_any.attention.qkv, weight, bias)
            _put(own_any.attention.out, block["attention"].W_out.weight, block["attention"].W_out.bias)
            first = block["ffn"].linear1
            _put(own_any.feed_forward.first, *_absorbed(block["ffn_normalization"], first.weight, first.bias))
            _put(own_any.feed_forward.second, block["ffn"].linear2.weight, block["ffn"].linear2.bias)
            assert block["ffn"].linear2.weight.shape == (d, hidden)
        ours.scale[0] = theirs.backbone.output.normalization.weight - 1
        ours.bias[0] = theirs.backbone.output.normalization.bias
    inputs = {"numeric": torch.randn(9, 2), "categorical": torch.randint(0, 4, (9, 1))}
    expected = theirs(inputs["numeric"], inputs["categorical"])
    found = theirs.backbone.output.linear(ours(inputs, {}).main)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _absorbed(norm: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight * norm.weight, bias + weight @ norm.bias


def _put(layer: Any, weight: Tensor, bias: Tensor) -> None:
    layer.weight[0], layer.bias[0] = weight.T, bias


def copy_into(theirs: nn.TransformerEncoderLayer, ours: AttentionBlock) -> None:
    """Put the weights of a block into torch's layer."""
    attention, ff = ours.attention, ours.feed_forward
    with torch.no_grad():
        for name, layer in (
            ("self_attn.in_proj_", attention.qkv),
            ("self_attn.out_proj.", attention.out),
            ("linear1.", ff.first),
            ("linear2.", ff.second),
        ):
            theirs.get_parameter(f"{name}weight").copy_(layer.weight[0].T)
            theirs.get_parameter(f"{name}bias").copy_(layer.bias[0])


def test_block_equals_torch() -> None:
    """Oracle: torch's encoder layer, pre-norm with GELU, with our weights put in."""
    torch.manual_seed(0)
    ours = AttentionBlock(Attention(8, 2), FeedForward(8, 20)).eval()
    theirs = nn.TransformerEncoderLayer(8, 2, 20, 0.0, "gelu", batch_first=True, norm_first=True)
    copy_into(theirs, ours)
    x = torch.randn(5, 7, 8)
    torch.testing.assert_close(ours(x[None])[0], theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(x[None], queries=2)[0], theirs(x)[:, :2], rtol=1e-4, atol=1e-5)
    mask = torch.rand(7, 7) < 0.5
    mask.fill_diagonal_(True)
    torch.testing.assert_close(ours(x[None], None, mask)[0], theirs(x, src_mask=~mask), rtol=1e-4, atol=1e-5)


def test_tokens_by_hand() -> None:
    """b_j + x_j w_j where the number is there, b_j + m_j where not; b_c + the category's row; bins times the feature's matrix."""
    torch.manual_seed(0)
    x, codes = torch.tensor([[0.5, torch.nan]]), torch.tensor([[2]])
    plain = Tokens(EDGES, [4], 3)
    t = plain(x[None], codes[None])[0, 0]
    torch.testing.assert_close(t[0], plain.bias[0, 0] + 0.5 * plain.weight[0, 0, 0])
    torch.testing.assert_close(t[1], plain.bias[0, 1] + plain.weight[0, 1, 1])
    torch.testing.assert_close(t[2], plain.bias[0, 2] + plain.categorical.table[0, 2])
    bins = Tokens(EDGES, [4], 3, embedding="piecewise_linear", bins=8)
    assert isinstance(bins.values, PiecewiseLinear)
    t = bins(x[None], codes[None])[0, 0]
    e = bins.values(torch.tensor([[[0.5, 0.0]]]), torch.ones(1, 1, 2))[0, 0]
    torch.testing.assert_close(t[0], bins.bias[0, 0] + e[:5] @ bins.weight[0, 0, :5])
    torch.testing.assert_close(t[1], bins.bias[0, 1] + bins.weight[0, 1, 5])
    periodic = Tokens(EDGES, [4], 3, embedding="plr")
    assert isinstance(periodic.values, PLR)
    t = periodic(x[None], codes[None])[0, 0]
    e = periodic.values(torch.tensor([[[0.5, 0.0]]]), torch.tensor([[[1.0, 0.0]]]))[0, 0]
    torch.testing.assert_close(t[0], periodic.bias[0, 0] + e[:3])
    torch.testing.assert_close(t[1], periodic.bias[0, 1] + periodic.weight[0, 1, 0])


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_copies_are_separate_networks(embedding: Any) -> None:
    """Slice i of a bank is the network with slice i's weights, on shared rows, on own rows, and among a selection."""
    torch.manual_seed(0)
    bank = FTTransformer(EDGES, [4], width=8, depth=2, heads=2, embedding=embedding, copies=3).eval()
    one = FTTransformer(EDGES, [4], width=8, depth=2, heads=2, embedding=embedding).eval()
    same, own = _inputs(5), _inputs(3, 5)
    with torch.no_grad():
        for i in range(3):
            for whole, part in zip(bank.parameters(), one.parameters()):
                each = len(whole) // 3
                part.copy_(whole[i * each : (i + 1) * each])
            torch.testing.assert_close(bank.run(same)[i], one(same, {}).main)
            torch.testing.assert_close(bank.run(own)[i], one({k: v[i] for k, v in own.items()}, {}).main)
            torch.testing.assert_close(bank.run(same, torch.tensor([2, i]))[1], one(same, {}).main)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_missing_numbers_never_reach_a_gradient(embedding: Any) -> None:
    """What stands in a missing cell changes nothing, and no gradient is NaN."""
    torch.manual_seed(0)
    net = FTTransformer(EDGES, [4], width=8, depth=2, heads=2, embedding=embedding)
    net(_inputs(6), {}).main.sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def test_order_of_columns_does_not_matter() -> None:
    """Attention is over a set: columns exchanged together with their weights give the same features."""
    torch.manual_seed(0)
    net = FTTransformer(EDGES[:1] * 3, [], width=8, depth=2, heads=2).eval()
    other = FTTransformer(EDGES[:1] * 3, [], width=8, depth=2, heads=2).eval()
    other.load_state_dict(net.state_dict())
    order = [2, 0, 1]
    with torch.no_grad():
        other.tokens.weight.copy_(net.tokens.weight[:, order])
        other.tokens.bias.copy_(net.tokens.bias[:, order])
    x, codes = torch.randn(6, 3), torch.zeros(6, 0, dtype=torch.int32)
    a = net({"numeric": x, "categorical": codes}, {}).main
    b = other({"numeric": x[:, order], "categorical": codes}, {}).main
    torch.testing.assert_close(a, b)


def test_bounded_pieces_change_nothing() -> None:
    """Without gradients rows go through in pieces: the same features."""
    torch.manual_seed(0)
    net = FTTransformer(EDGES, [4], width=8, depth=2, heads=2).eval()
    inputs = _inputs(50)
    whole = net(inputs, {}).main
    net.piece = 7
    with torch.no_grad():
        torch.testing.assert_close(net(inputs, {}).main, whole)


def test_no_columns_of_a_kind() -> None:
    for edges, cardinalities in (([], [4, 5]), (EDGES, [])):
        net = FTTransformer(edges, cardinalities, width=8, heads=2)
        inputs = {"numeric": torch.randn(3, len(edges)), "categorical": torch.zeros(3, len(cardinalities), dtype=torch.int32)}
        assert net(inputs, {}).main.shape == (3, 8)


def test_bad_settings() -> None:
    with pytest.raises(BadInput, match="5 heads cannot share a width of 16"):
        FTTransformer(EDGES, [4], width=16, heads=5)
    with pytest.raises(BadInput, match="did you mean 'plr_lite'"):
        FTTransformer(EDGES, [4], embedding="plrlite")  # type: ignore[arg-type]


def test_reglu_by_hand() -> None:
    torch.manual_seed(0)
    ff = FeedForward(4, 6, gated=True)
    x = torch.randn(1, 2, 3, 4)
    h = x @ ff.first.weight[0] + ff.first.bias[0]
    expected = (h[..., :6] * F.relu(h[..., 6:])) @ ff.second.weight[0] + ff.second.bias[0]
    torch.testing.assert_close(ff(x), expected)
