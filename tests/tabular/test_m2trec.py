"""M2TRec: an item is its attributes and nothing else, padding does not exist, and a catalogue may grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.data import ItemTable, Prepared, Table, prepare, split
from pluribus.modeling import Budget, load
from pluribus.tabular.fields import Catalogue
from pluribus.tabular.m2trec import RIVALS, M2TRec, M2TRecNetwork, SessionIds, sampled_softmax
from pluribus.tabular.retrieval import Labelled, Retrieval, vectors_of

ITEMS = 36


def catalogue(**changes: Any) -> pd.DataFrame:
    made = {
        "sku": [f"i{i}" for i in range(ITEMS)],
        "kind": [f"k{i % 6}" for i in range(ITEMS)],
        "brand": [f"b{i % 4}" for i in range(ITEMS)],
        "price": np.arange(ITEMS) / 9.0,
        "tags": [[f"t{i % 3}", f"u{i % 2}"] for i in range(ITEMS)],
    }
    return pd.DataFrame({**made, **changes})


def data_of(items: pd.DataFrame | None = None, n: int = 400, only: int = ITEMS) -> Prepared:
    """Sessions over the first `only` items."""
    rng = np.random.default_rng(0)
    kind = rng.integers(6, size=n)
    viewed = [[f"i{6 * rng.integers(only // 6) + k}" for _ in range(rng.integers(1, 6))] for k in kind]
    frame = pd.DataFrame({"viewed": viewed, "next": [f"i{6 * rng.integers(only // 6) + (k + 1) % 6}" for k in kind]})
    given = ItemTable(catalogue() if items is None else items, "sku", ["viewed", "next"])
    table = Table(frame, ["next:next_item"], split="random", items={"item": given})
    return prepare(table, split(table, 0))


def fit(data: Prepared, epochs: int = 2, **settings: Any) -> Retrieval:
    return M2TRecNetwork(epochs=epochs, width=16, **settings).fit(data, Budget(60.0), 0)


def model_of(fitted: Retrieval) -> M2TRec:
    assert isinstance(fitted.model, M2TRec)
    return fitted.model


def test_identical_attributes_score_alike() -> None:
    """There is no id: two items with the same attributes cannot be told apart."""
    items = catalogue()
    twin = items.iloc[[7]].assign(sku="twin")
    data = data_of(pd.concat([items, twin], ignore_index=True))
    scores = fit(data).item_scores(data, np.arange(50))
    assert torch.equal(scores[:, 7], scores[:, ITEMS])
    assert not torch.equal(scores[:, 7], scores[:, 8])
    ids = SessionIds(epochs=1, width=16).fit(data, Budget(60.0), 0).item_scores(data, np.arange(50))
    assert not torch.equal(ids[:, 7], ids[:, ITEMS]), "with ids, they can"


def test_a_growing_catalogue_changes_nothing_else(tmp_path: Path) -> None:
    """No parameter and no other item's score, bit for bit; the new item is scored by its attributes; folders remember it."""
    data = data_of()
    fitted = fit(data)
    rows = np.arange(60)
    state = {name: value.clone() for name, value in fitted.model.state_dict().items()}
    before = fitted.item_scores(data, rows)
    fitted.add_items(item=catalogue().iloc[[3]].assign(sku="late"))
    after = fitted.item_scores(data, rows)
    assert torch.equal(after[:, :ITEMS], before)
    torch.testing.assert_close(after[:, ITEMS], before[:, 3])
    assert all(torch.equal(value, state[name]) for name, value in fitted.model.state_dict().items())
    fitted.save(tmp_path / "m")
    assert torch.equal(load(tmp_path / "m").item_scores(data, rows), after)  # type: ignore[attr-defined]


@pytest.mark.parametrize("candidate", [M2TRecNetwork, SessionIds])
def test_padding_invariance(candidate: type[M2TRecNetwork]) -> None:
    """A session's query is the same alone and beside a longer one, to rounding; what stands behind the mask is not read."""
    data = data_of()
    fitted = candidate(epochs=1, width=16).fit(data, Budget(60.0), 0)
    lengths = data.ragged["viewed"].lengths
    short, long = int(lengths.argmin()), int(lengths.argmax())
    ready, vectors = fitted.ready()
    inputs = data.batch(torch.tensor([short, long])).inputs
    assert inputs["viewed"]["values"].shape[1] > lengths[short]
    with torch.no_grad():
        alone = fitted.model.queries(data.batch(torch.tensor([short])).inputs, ready, vectors)
        beside = fitted.model.queries(inputs, ready, vectors)
        values = torch.where(inputs["viewed"]["mask"], inputs["viewed"]["values"], 9)
        spoilt = fitted.model.queries({**inputs, "viewed": {**inputs["viewed"], "values": values}}, ready, vectors)
    torch.testing.assert_close(alone[0], beside[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(beside, spoilt)


def test_the_session_is_read_both_ways_and_in_order() -> None:
    """Bidirectional: the first place's output depends on the last item; and positions matter."""
    data = data_of()
    model = model_of(fit(data))
    x = torch.randn(1, 4, 16)
    mask = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        other = x.clone()
        other[0, 3] = torch.randn(16)
        first = model.encoder(x, src_key_padding_mask=~mask)[0, 0]
        assert not torch.allclose(first, model.encoder(other, src_key_padding_mask=~mask)[0, 0])
        assert not torch.allclose(model.encode(x, mask), model.encode(x.flip(1), mask))
        model.position.zero_()
        torch.testing.assert_close(model.encode(x, mask), model.encode(x.flip(1), mask))


def test_vectors_by_hand() -> None:
    """v = Linear(category embeddings ∥ mean over a list's values ∥ number ∥ whether it is missing)."""
    data = data_of(catalogue(price=[np.nan, *np.arange(1, ITEMS)]))
    fitted = fit(data)
    model, items = model_of(fitted), data.items["item"]
    fields = model.fields
    for row in (0, 5):
        codes = torch.from_numpy(items.categorical[row].astype(np.int64)) + torch.tensor([0, items.columns.cardinalities[0]])
        pieces = [*fields.categories.weight[codes], fields.elements[0].weight[items.ragged["tags"].row(row)].mean(0)]
        number = float(items.numeric[row, 0])
        end = torch.tensor([0.0, 1.0]) if np.isnan(number) else torch.tensor([number, 0.0])
        expected = model.item(torch.cat([*pieces, end]))
        torch.testing.assert_close(fitted.ready()[1][row], expected, rtol=1e-5, atol=1e-6)


def test_what_is_not_in_the_catalogue_is_the_unknown_item() -> None:
    data = data_of()
    found = Catalogue(data.columns.items["item"])
    assert found.rows(torch.tensor([[0, 1, 2, ITEMS + 1]])).tolist() == [[ITEMS, ITEMS, 0, ITEMS - 1]]
    last = found.inputs(torch.tensor([ITEMS]))
    assert last["categorical"].tolist() == [[1, 1]]
    assert last["numeric"].isnan().all()
    assert not last["tags"]["mask"].any()


def _loss(data: Prepared, model: M2TRec, **changes: Any) -> Tensor:
    """The training loss on the training rows, without dropout or unseen attributes."""
    vars(model).update(changes)
    found = Catalogue(data.columns.items["item"])
    train = Labelled.of(data, "next", found)
    return model.loss(data, train.rows, train.target, train.weight, train, found)


@pytest.mark.parametrize("rivals", RIVALS)
def test_loss_by_hand(rivals: str) -> None:
    """L = CE of ⟨W h, v_j⟩ over the catalogue, or the items that training rows mention, + λ Σ_a CE_a."""
    data = data_of(only=24)
    fitted = fit(data, category_weight=0.5, rivals=rivals)
    model = model_of(fitted).eval()
    found = Catalogue(data.columns.items["item"])
    train = Labelled.of(data, "next", found)
    assert train.mentioned.tolist() == list(range(24))
    with torch.no_grad():
        batch = data.batch(train.rows).inputs["viewed"]
        vectors = vectors_of(model, found)
        h = model.encode(vectors[found.rows(batch["values"])], batch["mask"])
        whole = F.cross_entropy(model.query(h) @ vectors[: 24 if rivals == "mentioned" else ITEMS].T, train.target)
        expected = whole.clone()
        codes = torch.from_numpy(found.data.categorical)[train.target].long()
        for a, head in enumerate(model.classes.values()):
            expected = expected + 0.5 * F.cross_entropy(head(h), codes[:, a])
        torch.testing.assert_close(_loss(data, model), expected)
        torch.testing.assert_close(_loss(data, model, weight=0.0), whole)
    assert set(model.classes) == {"0", "1"}
    assert not model_of(fit(data, epochs=1, category_weight=0.0)).classes


def test_an_unknown_attribute_is_no_label() -> None:
    """CE_a is over items whose attribute is known; else the network would learn to predict that a cell is empty."""
    data = data_of(catalogue(kind=[None if i % 6 == 2 else f"k{i % 6}" for i in range(ITEMS)]))
    model = model_of(fit(data, category_weight=0.5)).eval()
    found = Catalogue(data.columns.items["item"])
    train = Labelled.of(data, "next", found)
    codes = torch.from_numpy(found.data.categorical)[train.target].long()
    with torch.no_grad():
        batch = data.batch(train.rows).inputs["viewed"]
        h = model.encode(vectors_of(model, found)[found.rows(batch["values"])], batch["mask"])
        attributes = torch.zeros(())
        for a, head in model.classes.items():
            code = codes[:, int(a)]
            known = code >= 2
            attributes = attributes + F.cross_entropy(head(h[known]), code[known])
        without = _loss(data, model, weight=0.0)
        assert 0 < (codes < 2).sum() < len(codes)
        torch.testing.assert_close(_loss(data, model, weight=0.5), without + 0.5 * attributes)


def test_sampled_softmax_estimates_the_whole() -> None:
    """The estimated sum over the other items is unbiased, whatever q; with many draws the loss is the full softmax's."""
    generator = torch.Generator().manual_seed(0)
    items, queries = torch.randn(30, 8, generator=generator), 0.5 * torch.randn(6, 8, generator=generator)
    target = torch.randint(30, (6,), generator=generator)
    share = torch.rand(30, generator=generator) + 0.05
    share /= share.sum()
    s = queries @ items.T
    exact = F.cross_entropy(s, target, reduction="none")

    def loss(draws: int) -> Tensor:
        drawn = torch.multinomial(share, draws, replacement=True, generator=generator)
        expected = (draws * share[drawn]).log()
        return sampled_softmax(queries, items[target], items[drawn], expected, target[:, None] == drawn)

    torch.testing.assert_close(loss(200_000), exact, atol=0.02, rtol=0)
    positive = (queries * items[target]).sum(1)
    sums = torch.stack([(loss(5) + positive).exp() - positive.exp() for _ in range(6000)])
    whole = s.exp().sum(1) - positive.exp()
    standard_error = sums.std(0) / 6000**0.5
    assert ((sums.mean(0) - whole).abs() < 4 * standard_error).all()


def test_a_large_catalogue_is_sampled_in_training() -> None:
    """Beyond `softmax` items the loss comes near the full one, and training by it still learns."""
    data = data_of()
    fitted = fit(data, epochs=1, category_weight=0.0)
    model = model_of(fitted).eval()
    with torch.no_grad():
        full = _loss(data, model)
        torch.manual_seed(0)
        model.softmax = 30
        some = torch.stack([_loss(data, model) for _ in range(60)]).mean()
    assert abs(float(some - full)) < 0.1
    learnt = fit(data, epochs=8, softmax=20)
    curve = [value for value in learnt.record["curves"]["next"] if value is not None]
    assert max(curve) > 20 / ITEMS + 0.2


def test_cold_items_are_found_by_their_attributes() -> None:
    """Items in no training row are ranked by what they are; a transformer over ids knows them only by chance."""
    data = data_of(only=24, n=900)
    cold = np.arange(24, ITEMS)
    rows = data.parts["test"]
    recall = {}
    for candidate in (M2TRecNetwork, SessionIds):
        scores = candidate(epochs=8, width=16).fit(data, Budget(60.0), 0).item_scores(data, rows)[:, cold]
        kinds = torch.from_numpy(cold % 6)
        wanted = torch.tensor([(int(data.ragged["viewed"].row(int(row))[0]) - 2 + 1) % 6 for row in rows])
        best = kinds[scores.topk(2).indices]  # two cold items of each kind
        recall[candidate.name] = float((best == wanted[:, None]).float().mean())
    assert recall["m2trec"] > 0.5, "by chance it is a sixth"
    assert recall["session_ids"] < 0.4
