"""APEM: if these fail, a field hears what it must not, the selector picks nothing, or the funnel's probabilities rise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Features
from pluribus.modeling.funnels import ESMM, Calibrated, whole_way
from pluribus.tabular.apem import APEM, APEMNetwork, GroupLayer, GroupTransformer, SqueezeExcitation, _PatternSelector, assigned
from pluribus.tasks import Task

TASKS = [Task("a", "binary"), Task("b", "binary", after=("a",)), Task("c", "binary", after=("b",))]


@pytest.fixture(scope="module")
def funnel() -> Prepared:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 5))
    a = rng.random(800) < 1 / (1 + np.exp(-1.5 * x[:, 0]))
    b = a & (rng.random(800) < 1 / (1 + np.exp(-x[:, 1])))
    c = b & (rng.random(800) < 1 / (1 + np.exp(-x[:, 2])))
    frame = pd.DataFrame(x, columns=list("pqrst")).assign(word=rng.choice(["u", "v"], 800), a=a * 1, b=b * 1, c=c * 1)
    table = Table(frame, TASKS, split="random")
    return prepare(table, split(table, 0))


def inputs_of(data: Prepared, rows: int = 32) -> Any:
    return data.batch(torch.arange(rows), tasks=()).inputs


def weights(attention: Any, asked: Tensor, read: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax weights [B, h, Q, K] and the answer [B, Q, d] of multi-head attention, written out."""
    d, heads = asked.shape[-1], attention.heads
    w, b = attention.qkv.weight[0], attention.qkv.bias[0]
    q, k, v = (t @ w[:, i * d : (i + 1) * d] + b[i * d : (i + 1) * d] for i, t in enumerate((asked, read, read)))
    q, k, v = (t.reshape(*t.shape[:-1], heads, d // heads).transpose(-2, -3) for t in (q, k, v))
    p = (q @ k.transpose(-1, -2) / math.sqrt(d // heads) + bias).softmax(-1)
    y = (p @ v).transpose(-2, -3).flatten(-2)
    return p, y @ attention.out.weight[0] + attention.out.bias[0]


@pytest.mark.parametrize("learned", [True, False])
def test_group_attention_by_hand(learned: bool) -> None:
    """Oracle: gather and scatter written as softmaxes; with given groups a field's weights on other groups' vectors are 0, and
    its output does not move with a field of another group."""
    torch.manual_seed(0)
    layer = GroupLayer(8, groups=2, inducing=3, heads=2, dropout=0.0).eval()
    x = torch.randn(4, 5, 8, requires_grad=True)
    membership = torch.randn(5, 2).log_softmax(-1) if learned else torch.tensor([[0, -1e9]] * 2 + [[-1e9, 0]] * 3)
    heard = membership.repeat_interleave(3, 1)
    _, h = weights(layer.gather, layer.inducing.expand(4, -1, -1), x, heard.T)
    p, y = weights(layer.scatter, x, h, heard)
    one = torch.nn.functional.layer_norm(x + y, (8,))
    ff = layer.feed_forward
    hidden = torch.nn.functional.gelu(one @ ff.first.weight[0] + ff.first.bias[0])
    two = torch.nn.functional.layer_norm(one + hidden @ ff.second.weight[0] + ff.second.bias[0], (8,))
    found = layer(x, membership)
    torch.testing.assert_close(found, two, rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(found[:, 0].square().sum(), x)
    if learned:
        assert (slope.abs().sum((0, 2)) > 0).all()
    else:
        assert float(p[:, :, :2, 3:].detach().abs().max()) == 0
        assert (slope[:, 2:] == 0).all()
        assert (slope[:, :2].abs().sum((0, 2)) > 0).all()


def test_inducing_vectors_bound_the_rank() -> None:
    """Fields mix through m vectors: the composed weights F × F have rank m, and full rank with m = F orthogonal vectors."""
    torch.manual_seed(0)
    fields = 6
    for m in (2, fields):
        layer = GroupLayer(8, groups=1, inducing=m, heads=1, dropout=0.0).double()
        with torch.no_grad():
            layer.inducing.copy_(4 * torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0][:m])
        x, none = 2 * torch.randn(3, fields, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        gathered, h = weights(layer.gather, layer.inducing.expand(3, -1, -1), x, none)
        scattered, _ = weights(layer.scatter, x, h, none)
        assert torch.linalg.matrix_rank((scattered @ gathered)[:, 0], rtol=1e-9).tolist() == [m] * 3


def test_squeeze_and_excitation_by_hand() -> None:
    torch.manual_seed(0)
    excite, x = SqueezeExcitation(6, 8), torch.randn(4, 6, 8)
    s = torch.stack([(x[:, f] * excite.squeeze).sum(-1) for f in range(6)], 1) / math.sqrt(8)
    hidden = torch.relu(s @ excite.down.weight.T + excite.down.bias)
    a = torch.sigmoid(hidden @ excite.up.weight.T + excite.up.bias)
    torch.testing.assert_close(excite(x), x * a[..., None])


def test_permutation_of_fields() -> None:
    """Fields in another order, with their groups and their weights in squeeze and excitation: the same tokens in that order."""
    torch.manual_seed(0)
    layer, excite = GroupLayer(8, 2, 3, 2, 0.0).eval(), SqueezeExcitation(6, 8)
    x, membership, order = torch.randn(4, 6, 8), torch.randn(6, 2).log_softmax(-1), torch.randperm(6)
    other = SqueezeExcitation(6, 8)
    with torch.no_grad():
        other.squeeze.copy_(excite.squeeze)
        other.down.weight.copy_(excite.down.weight[:, order])
        other.down.bias.copy_(excite.down.bias)
        other.up.weight.copy_(excite.up.weight[order])
        other.up.bias.copy_(excite.up.bias[order])
    torch.testing.assert_close(other(layer(x[:, order], membership[order])), excite(layer(x, membership))[:, order])


def test_cost_is_linear_in_fields() -> None:
    """Twice the fields take at most twice the arithmetic of a group layer; attention over all pairs would take more."""
    layer = GroupLayer(8, 2, 4, 2, 0.0).eval().requires_grad_(False)
    flops = []
    for fields in (32, 64):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(2, fields, 8), torch.zeros(fields, 2))
        flops.append(counter.get_total_flops())
    assert 1.8 < flops[1] / flops[0] <= 2


def selector(**settings: Any) -> _PatternSelector:
    torch.manual_seed(0)
    return _PatternSelector(TASKS, 6, 8, tower=0, **settings).eval()


def test_selector_by_hand() -> None:
    """Oracle: r = σ(⟨W_k X_f, u_t + W_t mean X⟩/√d) with loops over tasks, rows and fields; p_t = concat(r X)."""
    made, x = selector(), torch.randn(3, 6, 8)
    assert made.u is not None
    assert made.key is not None
    assert made.adapt is not None
    shared = made(Features(x), dict.fromkeys("abc"))
    for t, name in enumerate("abc"):
        for row in range(3):
            u = made.u[t] + x[row].mean(0) @ made.adapt.weight[t] + made.adapt.bias[t]
            pieces = []
            for f in range(6):
                key = x[row, f] @ made.key.weight[0] + made.key.bias[0]
                r = torch.sigmoid(key @ u / math.sqrt(8))
                torch.testing.assert_close(shared.extra["relevance"][name][row, f], r)
                pieces.append(r * x[row, f])
            torch.testing.assert_close(shared.tasks[name].main[row], torch.cat(pieces))
    rows = torch.tensor([2, 0])
    some = made(Features(x), {"c": rows})
    torch.testing.assert_close(some.extra["relevance"]["c"], shared.extra["relevance"]["c"][rows])


def test_relevance_of_one_is_no_selector() -> None:
    made, without, x = selector(adaptive=False), selector(selector=False), torch.randn(3, 6, 8)
    assert made.key is not None
    assert made.u is not None
    with torch.no_grad():  # every logit is huge: r = 1
        made.key.weight.zero_()
        made.key.bias.fill_(100.0)
        made.u.fill_(100.0)
    plain = without(Features(x), dict.fromkeys("abc"))
    for name, one in made(Features(x), dict.fromkeys("abc")).tasks.items():
        torch.testing.assert_close(one.main, x.flatten(1))
        torch.testing.assert_close(one.main, plain.tasks[name].main)
    assert not [name for name, _ in without.named_parameters()]


def test_hard_masks_pass_the_gradient_straight_through() -> None:
    """k fields weigh 1, the others 0; the gradient of the pattern with respect to r is as for a soft mask of any field."""
    hard, soft, x = selector(top_k=2), selector(), torch.randn(3, 6, 8)
    shared = hard(Features(x), {"b": None})
    kept = shared.tasks["b"].main.reshape(3, 6, 8).abs().sum(-1) > 0
    assert kept.sum(1).tolist() == [2, 2, 2]
    best = shared.extra["relevance"]["b"].topk(2, -1).indices
    assert torch.gather(kept, 1, best).all()
    torch.testing.assert_close(shared.tasks["b"].main.reshape(3, 6, 8)[kept], x[kept])
    slopes = []
    for made in (hard, soft):
        made(Features(x), {"b": None}).tasks["b"].main.sum().backward()
        assert made.key is not None
        assert made.key.weight.grad is not None
        slopes.append(made.key.weight.grad)
    torch.testing.assert_close(slopes[0], slopes[1])
    assert selector(top_k=6).top_k is None, "all fields: nothing to choose"


@pytest.mark.parametrize("whole", [False, True])
def test_the_whole_way_falls(funnel: Prepared, whole: bool) -> None:
    """P_k is non-increasing along the funnel by construction, whatever the weights."""
    torch.manual_seed(1)
    model = APEM.of(funnel.tasks, funnel.columns, whole=whole)
    with torch.no_grad():
        model.heads.weight.mul_(20)
    p = whole_way(funnel.tasks, {k: v.double().numpy() for k, v in model.predict(inputs_of(funnel, 200)).items()})
    assert (p["b"] <= p["a"]).all()
    assert (p["c"] <= p["b"]).all()
    assert ("whole" in model(inputs_of(funnel)).extra) is whole
    assert set(model(inputs_of(funnel)).extra["relevance"]) == {"a", "b", "c"}


def test_gradients_reach_every_parameter(funnel: Prepared) -> None:
    for settings in ({}, {"top_k": 2}, {"groups": {"user": ["p", "q"], "item": ["word"]}}, {"layers": 2, "whole": True}):
        torch.manual_seed(0)
        model = APEM.of(funnel.tasks, funnel.columns, **settings)  # type: ignore[arg-type]
        objective = Calibrated(funnel.tasks) if settings.get("whole") else ESMM(funnel.tasks)
        losses = objective.losses(model, funnel.batch(torch.arange(256)))
        torch.stack([*losses.means().values(), *losses.penalties.values()]).sum().backward()
        silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
        assert not [name for name in silent if "categorical" not in name], silent


def test_groups_are_given_by_columns(funnel: Prepared) -> None:
    groups = {"user": ["q", "word"], "item": ["p"]}
    assert assigned(groups, funnel.columns).tolist() == [1, 0, 2, 2, 2, 0]
    encoder = GroupTransformer.of(funnel.columns, groups=groups)
    assert encoder.groups == 3
    assert not [name for name, _ in encoder.named_parameters() if "affinity" in name]
    belongs = torch.nn.functional.one_hot(assigned(groups, funnel.columns), 3).float()
    assert torch.equal(encoder.membership.exp(), belongs)  # a field of another group is not heard at all


def test_candidate_settings_reach_the_model(funnel: Prepared) -> None:
    short: dict[str, Any] = {"epochs": 1, "width": 8}
    fitted = APEMNetwork(groups={"user": ["p"]}, top_k=2, depth=2, calibrator=0.5, adaptive=False, **short).fit(
        funnel, Budget(60.0), 0
    )
    model: Any = fitted.model
    assert (model.whole, model.sharing.top_k, model.sharing.adapt, len(model.encoder.layers)) == (True, 2, None, 2)
    assert model.encoder.groups == 2
    calibrated = APEMNetwork(calibrator=0.5).objective(funnel)
    assert isinstance(calibrated, Calibrated)
    assert calibrated.alpha == 0.5
    assert isinstance(APEMNetwork().objective(funnel), ESMM)
    assert APEMNetwork().unfit(funnel.only(["a"])) is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "groups must be a whole number of at least 1, not 0"),
        ({"groups": {"user": ["pp"]}}, "unknown column 'pp'; did you mean 'p'"),
        ({"groups": {"user": ["p"], "item": ["p"]}}, "column 'p' is in two groups"),
        ({"groups": {"user": []}}, "groups, 'user': names no column"),
        ({"inducing": 0}, "inducing must be a whole number of at least 1"),
        ({"heads": 3}, "3 heads cannot share a width of 16"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1"),
        ({"embedding": "plre"}, "unknown numeric embedding 'plre'; did you mean 'plr'"),
    ],
)
def test_bad_settings(funnel: Prepared, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        APEM.of(funnel.tasks, funnel.columns, **settings)
