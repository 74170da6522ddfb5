"""Two towers and their self-supervised task: losses by hand, masks, the stream of items, and whom each gradient reaches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.data import ItemTable, Prepared, Table, prepare, split
from pluribus.errors import BadInput
from pluribus.modeling import Budget
from pluribus.tabular.fields import Catalogue, Fields, mean, mean_of_rows, words_of
from pluribus.tabular.retrieval import Labelled
from pluribus.tabular.two_tower import (
    MASKS,
    Frequencies,
    TwoTower,
    TwoTowers,
    TwoTowerSSL,
    contrast,
    feature_codes,
    hidden_features,
    in_batch,
    mutual_information,
)

ITEMS = 40


def data_of(n: int = 300) -> Prepared:
    rng = np.random.default_rng(0)
    items = pd.DataFrame(
        {
            "sku": range(ITEMS),
            "kind": [f"k{i % 5}" for i in range(ITEMS)],
            "group": [f"g{i % 5 // 2}" for i in range(ITEMS)],
            "maker": rng.choice(["m", "n", "o"], ITEMS),
            "colour": rng.choice(["r", "g"], ITEMS),
            "tags": [[f"t{i % 4}", f"u{i % 3}"] for i in range(ITEMS)],
            "price": rng.normal(size=ITEMS),
        }
    )
    kind = rng.integers(5, size=n)
    frame = pd.DataFrame(
        {
            "likes": [f"k{k}" for k in kind],
            "age": rng.normal(size=n),
            "next": 5 * rng.integers(ITEMS // 5, size=n) + kind,
            "before": [[int(i) for i in rng.integers(0, ITEMS, rng.integers(0, 4))] for _ in range(n)],
        }
    )
    given = ItemTable(items, "sku", ["next", "before"])
    table = Table(frame, ["next:next_item"], split="random", items={"item": given})
    return prepare(table, split(table, 0))


@pytest.fixture(scope="module")
def fitted() -> tuple[Prepared, Any]:
    data = data_of()
    return data, TwoTowerSSL(epochs=1).fit(data, Budget(60.0), 0)


@given(st.integers(0, 99), st.integers(2, 12))
def test_in_batch_by_hand(seed: int, size: int) -> None:
    """s_ij = ⟨q_i, x_j⟩/τ − log q_j, without other rows' copies of the own item."""
    generator = torch.Generator().manual_seed(seed)
    queries, items = torch.randn(size, 4, generator=generator), torch.randn(size, 4, generator=generator)
    target, log_q = torch.randint(5, (size,), generator=generator), -torch.rand(size, generator=generator)
    found = in_batch(queries, items, target, log_q, 0.3)
    for i in range(size):
        kept = [j for j in range(size) if j == i or target[j] != target[i]]
        s = {j: float(queries[i] @ items[j]) / 0.3 - float(log_q[j]) for j in kept}
        expected = -s[i] + math.log(sum(math.exp(value - max(s.values())) for value in s.values())) + max(s.values())
        assert float(found[i]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_contrast_of_equal_views_is_log_n() -> None:
    """All z equal: nothing can be recognised, L_self = log N. Two identical, well apart views: near 0."""
    same = F.normalize(torch.ones(17, 5), dim=1)
    assert float(contrast(same, same, 0.1)) == pytest.approx(math.log(17))
    assert float(contrast(torch.eye(8), torch.eye(8), 0.05)) < 1e-6


def test_vectors_of_both_towers_are_of_length_one(fitted: Any) -> None:
    """τ_m is a temperature of cosines: with free lengths it would be none."""
    data, made = fitted
    catalogue, model = made.catalogue(), made.model.eval()
    with torch.no_grad():
        items = model.vectors(catalogue.inputs(torch.arange(catalogue.count + 1)))
        queries = model.queries(data.batch(torch.arange(20), tasks=()).inputs, catalogue, items)
    for z in (items, queries):
        torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z)))


def test_the_self_supervised_task_leaves_the_query_tower_alone(fitted: Any) -> None:
    """∂L_self/∂(query tower) = 0, and it does move the item tower; L = L_main + α L_self."""
    data, made = fitted
    model: TwoTowers = made.model
    torch.manual_seed(0)
    model.zero_grad()
    model.self_supervised(made.catalogue()).backward()  # type: ignore[no-untyped-call]
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert touched == {"fields", "item_tower"}
    found = made.catalogue()
    train = Labelled.of(data, "next", found)

    def loss(alpha: float) -> float:
        torch.manual_seed(3)
        model.alpha, model.frequencies = alpha, Frequencies(ITEMS)
        return model.loss(data, train.rows, train.target, train.weight, train, found).item()

    torch.manual_seed(3)
    alone = model.self_supervised(found).item()
    assert loss(0.7) == pytest.approx(loss(0.0) + 0.7 * alone, rel=1e-5)


def test_items_are_drawn_uniformly_from_the_catalogue() -> None:
    """The second task's stream is the catalogue, not the clicks: an item that nobody clicks comes up as often as any."""
    data = data_of()
    made = TwoTowerSSL(epochs=1, sample=10).fit(data, Budget(60.0), 0)
    model, found = made.model, made.catalogue()
    assert isinstance(model, TwoTowers)
    counts = torch.zeros(ITEMS)
    whole = found.inputs

    def count(rows: Any = None) -> Any:
        counts[rows] += 1
        return whole(rows)

    found.inputs = count  # type: ignore[method-assign]
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(1200):
            model.self_supervised(found)
    expected = 1200 * 10 / ITEMS
    assert ((counts - expected).abs() < 5 * (expected * (1 - 10 / ITEMS)) ** 0.5).all()


@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from(MASKS))
def test_masks(seed: int, k: int, mask: str) -> None:
    """Complementary and CFM masks part the features in two, CFM by the drawn feature's nearest ⌊k/2⌋; RFM hides random halves."""
    torch.manual_seed(seed)
    relations = torch.rand(k, k)
    relations = relations + relations.T
    first, second = hidden_features(mask, relations)
    if mask == "rfm":
        assert first.sum() == second.sum() == k // 2
        return
    assert torch.equal(second, ~first), "the two views part the features"
    if mask == "complementary":
        assert first.sum() == k // 2
        return
    n = min(k // 2, k - 2)
    assert first.sum() == n + 1
    off = relations.clone().fill_diagonal_(-torch.inf)
    possible = [{seed, *off[seed].topk(n).indices.tolist()} for seed in range(k)]
    assert set(first.nonzero()[:, 0].tolist()) in possible


def test_every_feature_is_drawn_and_one_alone_is_never_hidden() -> None:
    torch.manual_seed(0)
    relations = torch.eye(6)
    hidden = torch.stack([hidden_features("rfm", relations)[0] for _ in range(600)]).float().mean(0)
    assert ((hidden - 0.5).abs() < 0.1).all()
    for k in (0, 1):
        first, second = hidden_features("cfm", torch.eye(k))
        assert not first.any()
        assert not second.any()


@settings(max_examples=15)
@given(st.integers(0, 99))
def test_mutual_information_is_scikit_learns(seed: int) -> None:
    """Also symmetric, and the entropy on the diagonal."""
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 5, (80, 4))
    codes[:, 3] = codes[:, 0] // 2
    found = mutual_information(codes)
    for a in range(4):
        for b in range(4):
            assert found[a, b] == pytest.approx(sk.mutual_info_score(codes[:, a], codes[:, b]), abs=1e-9)
    assert np.array_equal(found, found.T)
    p = np.bincount(codes[:, 1]) / 80
    assert found[1, 1] == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum())


def test_features_of_a_catalogue(fitted: Any) -> None:
    """As many columns as can be hidden, in their order; a list counts as its set of values; kind and group are the nearest."""
    made = fitted[1]
    found = made.catalogue()
    codes = feature_codes(found)
    assert codes.shape == (ITEMS, made.model.fields.hideable)
    names = [*found.data.columns.categorical_names, "id", "tags"]
    assert len(names) == codes.shape[1]
    tags = {(i % 4, i % 3): set() for i in range(12)}
    for i in range(ITEMS):
        tags[i % 4, i % 3].add(int(codes[i, -1]))
    assert all(len(each) == 1 for each in tags.values())
    relations = mutual_information(codes[:, :4])
    assert relations[names.index("kind"), names.index("group")] > relations[names.index("kind"), names.index("colour")]


def test_hidden_pieces_are_the_default_and_numbers_stay() -> None:
    """What is hidden cannot be read off the view; what is not hidden, and every number, stays."""
    torch.manual_seed(0)
    fields = Fields(1, (5, 4), {"tags": 6}, 3)
    tags = {"values": torch.tensor([[2, 3], [4, 0]]), "mask": torch.tensor([[True, True], [True, False]])}
    inputs = {"numeric": torch.tensor([[1.5], [torch.nan]]), "categorical": torch.tensor([[2, 3], [4, 1]]), "tags": tags}
    other = {**inputs, "categorical": torch.tensor([[3, 3], [2, 1]]), "tags": {**tags, "values": torch.tensor([[5, 5], [2, 0]])}}
    hidden = torch.tensor([True, False, True])
    assert torch.equal(fields(inputs, hidden), fields(other, hidden))
    assert not torch.equal(fields(inputs), fields(other))
    found = fields(inputs, hidden)
    assert torch.equal(found[0, :3], fields.default[0])
    torch.testing.assert_close(found[0, 3:6], fields.categories.weight[5 + 3])
    assert found[:, 9:].tolist() == [[1.5, 0.0], [0.0, 1.0]]
    assert torch.equal(fields(inputs, dropout=1.0)[:, 6:9], torch.zeros(2, 3)), "every value of the list dropped"


@pytest.mark.parametrize("lengths", [(3, 0, 1), (0, 0)])
def test_means_of_rows_read_what_the_mask_allows(lengths: tuple[int, ...]) -> None:
    """Equal to padding, looking everything up and averaging, in value and gradient; an empty list is zeros."""
    torch.manual_seed(0)
    table = torch.randn(6, 3, requires_grad=True)
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    codes = torch.randint(6, mask.shape, dtype=torch.int32)
    found, expected = mean_of_rows(table, codes, mask), mean(table[codes.long()], mask)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    for one, other in zip(torch.autograd.grad(found, table, slope), torch.autograd.grad(expected, table, slope)):
        torch.testing.assert_close(one, other)


def test_words_are_hashed_the_same_everywhere() -> None:
    found = words_of(["Red shoes, red", None, "SHOES"])
    assert found.lengths.tolist() == [3, 0, 1]
    assert found.row(0)[0] == found.row(0)[2]
    assert found.row(0)[1] == found.row(2)[0]
    assert found.values.min() >= 2


def test_streaming_frequencies_settle() -> None:
    """An item in every third batch gets q = 1/3, one in every batch q = 1."""
    frequencies = Frequencies(3)
    for step in range(1, 901):
        found = frequencies.log_q(torch.tensor([0, 1] if step % 3 == 0 else [0]))
    assert float(found[0]) == pytest.approx(0.0, abs=1e-3)
    assert float(frequencies.log_q(torch.tensor([1]))[0]) == pytest.approx(-math.log(3), abs=0.06)


def test_bad_settings_are_named() -> None:
    data = data_of(100)
    for chosen, message in (({"mask": "cmf"}, "did you mean 'cfm'"), ({"tau": 0.0}, "tau must be a positive number")):
        with pytest.raises(BadInput, match=message):
            TwoTowerSSL(**chosen).fit(data, Budget(5.0), 0)


def test_a_query_without_items_is_read_by_its_other_columns() -> None:
    """An empty list is nothing seen yet, not an error: the row's other columns speak."""
    data = data_of()
    made = TwoTower(epochs=6).fit(data, Budget(60.0), 0)
    found = made.predict(pd.DataFrame({"likes": ["k1", "k3"], "age": [0.0, 0.0], "before": [[], []]}))["next"]
    assert np.mean([int(key) % 5 == 1 for key in found[0][:5]]) > 0.5
    assert np.mean([int(key) % 5 == 3 for key in found[1][:5]]) > 0.5


def test_catalogue_without_attributes_knows_ids_only() -> None:
    data = data_of(100)
    found = Catalogue(data.columns.items["item"], ids=ITEMS, attributes=False)
    inputs = found.inputs()
    assert set(inputs) == {"numeric", "categorical"}
    assert inputs["numeric"].shape == (ITEMS + 1, 0)
    seen = data.columns.items["item"].seen
    expected = np.append(np.where(seen, np.arange(ITEMS) + 2, 1), 1)
    assert inputs["categorical"][:, 0].tolist() == expected.tolist()
