"""DTRN: if these fail, padding or another task's weights reach a task, or an item is not the same item in another column."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pluribus.data.items import ItemTable
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Supervised, load
from pluribus.sharing import PLE, MMoE, SharedBottom, Star
from pluribus.study.plan import make
from pluribus.tabular.dtrn import DTRN, DTRNNetwork, Interest, Items, Refinement, sequences_of_items, target_of


def frame(rows: int = 1200, seed: int = 0) -> pd.DataFrame:
    """A shop of 12 items: whether a row's item is liked depends on what was clicked, whether it is bought on what was bought."""
    rng = np.random.default_rng(seed)
    item = rng.integers(0, 12, rows)
    lists, near = {}, {}
    for name in ("clicked", "bought"):
        lists[name] = [[f"i{j}" for j in rng.integers(0, 12, rng.integers(0, 6))] for _ in range(rows)]
        near[name] = np.array([sum(int(word[1:]) % 3 == i % 3 for word in each) for each, i in zip(lists[name], item)])
    like = (near["clicked"] + 0.3 * rng.normal(size=rows) > 1).astype(int)
    buy = (near["bought"] + 0.3 * rng.normal(size=rows) > 1).astype(int)
    return pd.DataFrame(
        {
            "age": rng.normal(size=rows),
            "city": rng.choice(["x", "y"], rows),
            "item": [f"i{j}" for j in item],
            **lists,
            "like": like,
            "buy": buy,
        }
    )


def made(**roles: Any) -> Prepared:
    table = Table(frame(), ["like:binary", "buy:binary"], split="random", **roles)
    return prepare(table, split(table, 0))


@pytest.fixture(scope="module")
def shop() -> Prepared:
    return made()


@pytest.fixture(scope="module")
def joined() -> Prepared:
    """The same with a table of items, of which two are never mentioned."""
    items = pd.DataFrame({"key": [f"i{j}" for j in range(14)], "colour": ["red", "blue"] * 7})
    return made(items={"items": ItemTable(items, "key", ["item", "clicked", "bought"])})


def batch(data: Prepared, rows: int = 40) -> Any:
    return data.batch(torch.arange(rows), tasks=())


def interest(**settings: Any) -> Interest:
    torch.manual_seed(0)
    return Interest(2, 8, longest=10, heads=2, dropout=0.0, **settings).eval()


def shaken(module: torch.nn.Module) -> None:
    """No weight is zero any more."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))


def case(rows: int = 5, longest: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([[0, 3, 6, 1, 2], [2, 0, 1, 6, 4]])[:, :rows]
    mask = torch.arange(longest) < lengths[..., None]
    return torch.randn(rows, 8), torch.randn(2, rows, longest, 8) * mask[..., None], mask, torch.randn(3, 8)


def test_interest_by_hand() -> None:
    """Oracle: per task, behaviour and row, the block on the elements alone, written as softmaxes with the pair's own norms."""
    extractor = interest()
    shaken(extractor)
    e, s, mask, q = case()
    found = extractor(e, s, mask, q)
    assert extractor.hyper is not None
    assert extractor.kind is not None
    attention: Any = extractor.attention[0]
    feed: Any = extractor.feed_forward[0]
    w, b = attention.qkv.weight[0], attention.qkv.bias[0]
    for t in range(3):
        for n in range(2):
            change = extractor.hyper(torch.cat((q[t], extractor.kind[n]))).reshape(2, 2, 8)
            gamma, beta = extractor.plain + change
            for row in range(5):
                length = int(mask[n, row].sum())
                if not length:
                    torch.testing.assert_close(found[t, row, n], extractor.empty[n])
                    continue
                h = s[n, row, :length] + extractor.place[:length].flip(0)
                z = gamma[0] * torch.nn.functional.layer_norm(h, (8,)) + beta[0]
                queries, keys, values = (z @ w + b).reshape(length, 3, 2, 4).permute(1, 2, 0, 3)
                p = (queries @ keys.transpose(-1, -2) / math.sqrt(4)).softmax(-1)
                read = (p @ values).transpose(0, 1).reshape(length, 8) @ attention.out.weight[0] + attention.out.bias[0]
                h = h + read
                z = gamma[1] * torch.nn.functional.layer_norm(h, (8,)) + beta[1]
                hidden = torch.nn.functional.gelu(z @ feed.first.weight[0] + feed.first.bias[0])
                h = h + hidden @ feed.second.weight[0] + feed.second.bias[0]
                score = torch.stack([extractor.score(torch.cat((e[row], one, e[row] * one, e[row] - one)))[0] for one in h])
                expected = (score[:, None] * h).sum(0)
                torch.testing.assert_close(found[t, row, n], expected, rtol=1e-4, atol=1e-5)


def test_a_silent_hypernetwork_is_the_plain_extractor() -> None:
    """Before training all tasks have the same interests, those of the plain shared extractor."""
    extractor, plain = interest(), interest(hyper=False)
    state = extractor.state_dict()
    plain.load_state_dict({name: value for name, value in state.items() if not name.startswith(("hyper", "kind"))})
    e, s, mask, q = case()
    found = extractor(e, s, mask, q)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found, plain(e, s, mask, q))
    shaken(extractor)
    loud = extractor(e, s, mask, q)
    assert float((loud[0] - loud[1]).detach().abs().max()) > 1e-3


def test_padding_says_nothing() -> None:
    """Longer padding, whatever stands in it, leaves the interests as they are."""
    extractor = interest()
    shaken(extractor)
    e, s, mask, q = case()
    longer = torch.cat((s, torch.full((2, 5, 3, 8), 1e3)), 2)
    padded = torch.nn.functional.pad(mask, (0, 3))
    torch.testing.assert_close(extractor(e, longer, padded, q), extractor(e, s, mask, q), rtol=1e-4, atol=1e-5)
    noise = torch.where(mask[..., None], s, 7.0)
    torch.testing.assert_close(extractor(e, noise, mask, q), extractor(e, s, mask, q), rtol=1e-4, atol=1e-5)


def test_order_is_heard() -> None:
    """The latest element has the first place, in rows of any length."""
    extractor = interest()
    shaken(extractor)
    e, s, mask, q = case()
    turned = s.clone()
    turned[0, 2] = s[0, 2].flip(0)
    assert float((extractor(e, turned, mask, q) - extractor(e, s, mask, q)).detach().abs().max()) > 1e-3


def test_refinement_of_one_is_the_identity() -> None:
    torch.manual_seed(0)
    refine, x, q = Refinement(3, 6, 8), torch.randn(3, 5, 6, 8), torch.randn(3, 8)
    assert torch.equal(refine(x, q, None), x)
    shaken(refine)
    other = refine(x, q, None)
    torch.testing.assert_close(refine(x[1:2], q[1:2], torch.tensor([1]))[0], other[1])
    squeezed = torch.cat((x[2].mean(-1), q[2].expand(5, -1)), -1)
    first, last = refine.bank.layers
    a = torch.relu(squeezed @ first.weight[2] + first.bias[2]) @ last.weight[2] + last.bias[2]  # type: ignore[operator, index]
    torch.testing.assert_close(other[2], x[2] * (2 * torch.sigmoid(a))[..., None])


def test_refinements_are_apart(shop: Prepared) -> None:
    """A loss of one task gives no gradient to the refinement, the vector and the head of another."""
    torch.manual_seed(0)
    model = DTRN.of(shop.tasks, shop.columns, sharing="shared_bottom")
    shaken(model)
    Supervised().losses(model, shop.batch(torch.arange(64), ["like"])).sums["like"].backward()  # type: ignore[no-untyped-call]
    assert model.refinement is not None
    for p in [*model.refinement.parameters(), model.q]:
        assert p.grad is not None
        assert p.grad[0].abs().sum() > 0
        assert (p.grad[1] == 0).all()
    assert {id(model.q)} <= {id(p) for p, _ in model.parameters_of("buy")}


def test_gradients_reach_every_parameter(shop: Prepared) -> None:
    torch.manual_seed(0)
    model = DTRN.of(shop.tasks, shop.columns)
    shaken(model)
    losses = Supervised().losses(model, shop.batch(torch.arange(300)))
    torch.stack(list(losses.means().values())).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not [name for name in silent if name not in ("interest.plain", "encoder.tokens.categorical.table")], silent


def test_an_item_is_the_same_in_every_column(shop: Prepared, joined: Prepared) -> None:
    """The target item and the elements of both sequences meet in one embedding, with an item table and without."""
    for data in (shop, joined):
        assert sequences_of_items(data.columns) == ["clicked", "bought"]
        assert target_of(data.columns, ["clicked", "bought"]) == "item"
        items = Items(data.columns, "item", ["clicked", "bought"], 4)
        inputs = batch(data, 200).inputs
        e = items.one(inputs)
        s, mask = items.lists(inputs)
        raw = frame()
        by_word: dict[str, Tensor] = {}
        for row in range(200):
            by_word.setdefault(raw["item"][row], e[row])
            for n, name in enumerate(("clicked", "bought")):
                assert int(mask[n, row].sum()) == len(raw[name][row])
                for place, word in enumerate(raw[name][row]):
                    torch.testing.assert_close(s[n, row, place], by_word.setdefault(word, s[n, row, place]))
            torch.testing.assert_close(e[row], by_word[raw["item"][row]])
        assert len({tuple(value.tolist()) for value in by_word.values()}) == 12


def test_items_that_training_does_not_mention_are_unseen(joined: Prepared) -> None:
    """They share one vector, and the catalogue may grow: the new items share it too."""
    items = Items(joined.columns, "item", ["clicked"], 4)
    assert len(items.table) == 2 + 12
    assert items.code(0)[-2:].tolist() == [1, 1]
    grown = joined.columns.grown({"items": pd.DataFrame({"key": ["new"], "colour": ["red"]})})
    again = Items(grown, "item", ["clicked"], 4)
    again.load_state_dict(items.state_dict())
    assert again.code(0)[-1] == 1


def test_any_sharing_reads_the_bottoms(shop: Prepared) -> None:
    for name, kind in (("ple", PLE), ("mmoe", MMoE), ("shared_bottom", SharedBottom), ("star", Star)):
        torch.manual_seed(0)
        model = DTRN.of(shop.tasks, shop.columns, sharing=name).eval()
        assert isinstance(model.sharing, kind)
        inputs = batch(shop).inputs
        shaken(model)
        whole = model(inputs)
        features = model.encoder(inputs, {})
        x = model.bottoms(features, ["like", "buy"])
        assert x.shape == (2, 40, 5, 16)  # age, city, the item, two interests; the item is no second field
        for i, task in enumerate(("like", "buy")):
            alone = model.sharing(type(features)(x[i].flatten(1)), {task: None})
            torch.testing.assert_close(model.heads(alone.tasks, {task: None})[task], whole[task])


def test_switches_do_what_they_say(shop: Prepared) -> None:
    plain = DTRN.of(shop.tasks, shop.columns, hyper=False, refine=False)
    assert plain.refinement is None
    assert plain.interest is not None
    assert plain.interest.hyper is None
    shaken(plain)
    x = plain.bottoms(plain.eval().encoder(batch(shop).inputs, {}), ["like", "buy"])
    torch.testing.assert_close(x[0], x[1])
    one = DTRN.of(shop.tasks, shop.columns, behaviours=["bought"], depth=2)
    assert one.interest is not None
    assert (len(one.interest.empty), len(one.interest.attention)) == (1, 2)


def test_no_sequences_leave_the_refinement(mixed: Prepared) -> None:
    model = DTRN.of(mixed.tasks, mixed.columns)
    assert model.interest is None
    assert model.refinement is not None
    assert DTRNNetwork().unfit(mixed) == "no column of sequences of items"


def test_candidate_learns_what_was_clicked(shop: Prepared, joined: Prepared, tmp_path: Path) -> None:
    """Better than chance on both tasks, of which each needs its own sequence; it travels as a folder and predicts a new table."""
    for data in (shop, joined):
        fitted = DTRNNetwork(epochs=6, patience=6, sharing="shared_bottom").fit(data, Budget(120.0), 0)
        assert min(max(value for value in each if value is not None) for each in fitted.record["curves"].values()) > 0.65
    fitted.save(tmp_path / "model")
    again = load(tmp_path / "model")
    rows = np.arange(50)
    before, after = (one.scores(joined, rows, ["like", "buy"]) for one in (fitted, again))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    new = frame(20, seed=5)
    new.at[0, "clicked"] = []
    new.at[1, "bought"] = ["never", "heard"]
    new.loc[2, "item"] = "of"
    assert again.predict(new)["like__p"].between(0, 1).all()
    assert again.costs().flops_per_row > 0


def test_onnx_is_refused_in_one_line(shop: Prepared, tmp_path: Path) -> None:
    from pluribus.tabular import export_onnx

    fitted = DTRNNetwork(epochs=1, sharing="shared_bottom").fit(shop, Budget(60.0), 0)
    with pytest.raises(BadInput, match="a network that reads sequences cannot be exported as ONNX"):
        export_onnx(fitted, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_any_balancer(shop: Prepared) -> None:
    value = make("dtrn+upgrad", {"epochs": 1}).fit(shop, Budget(60.0), 0).scores(shop, np.arange(9), ["buy"])["buy"]
    assert np.isfinite(value).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "itme"}, "unknown column 'itme'; did you mean 'item'"),
        ({"behaviours": ["click"]}, "unknown column of sequences 'click'; did you mean 'clicked'"),
        ({"sharing": "plee"}, "unknown sharing 'plee'; did you mean 'ple'"),
        ({"heads": 3}, "3 heads cannot share a width of 16"),
        ({"depth": 0}, "depth must be a whole number of at least 1"),
    ],
)
def test_bad_settings(shop: Prepared, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        DTRN.of(shop.tasks, shop.columns, **settings)


def test_a_target_that_nobody_clicked_is_named_or_refused() -> None:
    data = frame().assign(item=[f"other{i % 9}" for i in range(1200)])
    table = Table(data, ["like:binary", "buy:binary"], split="random")
    found = prepare(table, split(table, 0))
    assert "no column holds the target item" in (DTRNNetwork().unfit(found) or "")
    assert DTRNNetwork(target="item").unfit(found) is None
    with pytest.raises(BadInput, match="no column holds the target item of the sequences"):
        DTRN.of(found.tasks, found.columns)


def test_items_of_two_tables_do_not_mix() -> None:
    one = pd.DataFrame({"key": [f"i{j}" for j in range(12)], "colour": ["red", "blue"] * 6})
    data = made(items={"a": ItemTable(one, "key", ["item", "clicked"]), "b": ItemTable(one, "key", ["bought"])})
    with pytest.raises(BadInput, match="do not share their items"):
        DTRN.of(data.tasks, data.columns)
