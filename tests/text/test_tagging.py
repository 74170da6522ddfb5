"""Tags: the kind's loss and start, the order of classes, and spans against sets of spans counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.tasks import Task
from pluribus.text.tagging import TAGGING, check_metrics, is_bio, ordered, spans

CLASSES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_order_of_classes() -> None:
    """Metrics read spans off the indices: both tags of every type, in pairs, whatever was seen."""
    assert ordered(["I-PER", "O", "B-LOC"]) == CLASSES
    assert ordered(["NOUN", "ADJ", "NOUN"]) == ("ADJ", "NOUN")
    assert not is_bio(["O"])


def test_spans_by_hand() -> None:
    """A tag that continues nothing of its type begins a span, as in the CoNLL-2000 scorer."""
    found = spans(["B-PER", "I-PER", "O", "I-LOC", "I-PER", "B-PER"])
    assert found == [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "PER"), (5, 6, "PER")]
    assert spans([]) == []
    assert spans(["O", "O"]) == []
    assert spans(["B-LOC"]) == [(0, 1, "LOC")]


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=7), min_size=1, max_size=6))
def test_span_f1_equals_sets_of_spans(rows: list[list[tuple[int, int]]]) -> None:
    """The vectorised metric, against one that builds sets of spans row by row."""
    width = max(map(len, rows)) + 1
    p, y = np.zeros((len(rows), width)), np.full((len(rows), width), -1.0)
    said, true = set(), set()
    for i, row in enumerate(rows):
        for j, (a, b) in enumerate(row):
            p[i, j], y[i, j] = a, b
        said |= {(i, *span) for span in spans([CLASSES[a] for a, _ in row])}
        true |= {(i, *span) for span in spans([CLASSES[b] for _, b in row])}
    found = metrics.compute("span_f1", p, y)
    if not said and not true:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(2 * len(said & true) / (len(said) + len(true)))
    p[y < 0] = 3  # what is said where there is no word does not count
    again = metrics.compute("span_f1", p, y)
    assert again == found or np.isnan(found)


def test_a_row_of_weight_two_counts_twice() -> None:
    p, y = np.array([[1, 2, 0], [3, 0, 0]]), np.array([[1, 2, -1], [1, 0, 0]])
    for name in ("token_accuracy", "span_f1"):
        twice = metrics.compute(name, p[[0, 1, 1]], y[[0, 1, 1]])
        assert metrics.compute(name, p, y, weight=[1, 2]) == pytest.approx(twice)
    assert metrics.compute("token_accuracy", p, y) == pytest.approx(4 / 5)


def test_best_constant_of_tags() -> None:
    """The commonest tag everywhere; a task whose specialists do no better has no skill."""
    y = np.array([[0, 0, 1], [0, -1, -1]])
    best = metrics.constant("token_accuracy", y, classes=5)
    np.testing.assert_array_equal(best, [0, 0, 0])
    assert metrics.of_constant("token_accuracy", best, y) == pytest.approx(3 / 4)


@given(seed=st.integers(0, 30))
def test_start_is_the_best_constant(seed: int) -> None:
    """No constant outputs have a lower mean loss than the start's."""
    r = np.random.default_rng(seed)
    values = torch.tensor(np.where(np.arange(6) < r.integers(1, 7, 40)[:, None], r.integers(0, 4, (40, 6)), -1)).float()
    outputs = TAGGING.start(values, 4).clone().requires_grad_()
    TAGGING.loss(outputs.expand(40, 6, -1), values).mean().backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, torch.zeros(4), atol=2e-3, rtol=0)


def test_loss_by_hand_and_beyond_the_longest_sequence() -> None:
    """Mean over a row's words of −log p; words without an output are left out."""
    outputs = torch.randn(2, 3, 4)
    values = torch.tensor([[1.0, 2.0, -1.0, -1.0], [0.0, 3.0, 1.0, 2.0]])
    log_p = outputs.log_softmax(-1)
    by_hand = -torch.stack(((log_p[0, 0, 1] + log_p[0, 1, 2]) / 2, (log_p[1, 0, 0] + log_p[1, 1, 3] + log_p[1, 2, 1]) / 3))
    torch.testing.assert_close(TAGGING.loss(outputs, values), by_hand)
    empty = TAGGING.loss(outputs, torch.full((2, 1), -1.0))
    torch.testing.assert_close(empty, torch.zeros(2))


def test_a_domain_kind_is_found_by_name() -> None:
    """A saved task of this kind loads without anybody importing the text package first."""
    task = Task("tags", "tagging", classes=CLASSES)
    assert task.width == 5
    assert [m.name for m in task.metrics] == ["token_accuracy", "span_f1"]
    with pytest.raises(BadInput, match=r"unknown kind 'taging'.*did you mean 'tagging'"):
        Task("tags", "taging")
    with pytest.raises(BadInput, match="span_f1 needs BIO tags"):
        check_metrics("pos", ("ADJ", "NOUN"), ["span_f1"])


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(BadInput, match="does not fit"):
        metrics.compute("span_f1", np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(BadInput, match="below -1"):
        metrics.compute("token_accuracy", np.zeros((3, 4)), np.full((3, 4), -2.0))


def test_words_and_a_whole_text_in_one_batch() -> None:
    """A model with a task that labels words and one that labels the text: losses, shapes, and padding that says nothing."""
    pytest.importorskip("transformers")
    from pluribus.data import Batch, Labels
    from pluribus.modeling import Supervised
    from pluribus.text import backbones
    from pluribus.text.encoder import TOKENS, WORDS, TextEncoder
    from pluribus.text.model import TextModel

    torch.manual_seed(0)
    tags, topic = Task("tags", "tagging", classes=CLASSES, size=4), Task("topic", "binary", classes=("no", "yes"))
    config = backbones.small(vocabulary=30, layers=1, width=16, heads=2, max_length=16, pad=0, dropout=0.0)
    model = TextModel([tags, topic], TextEncoder(backbones.empty(config)))
    lengths, words = torch.tensor([5, 3, 6]), torch.tensor([3, 1, 4])
    mask, there = torch.arange(6) < lengths[:, None], torch.arange(4) < words[:, None]
    places = (torch.arange(4) + 1).expand(3, 4) * there
    tokens = torch.randint(5, 30, (3, 6)) * mask
    inputs = {TOKENS: {"values": tokens, "mask": mask}, WORDS: {"values": places, "mask": there}, "numeric": torch.zeros(3, 0)}
    values = torch.where(there[:2], torch.tensor([[1.0, 2, 0, 0], [3.0, 0, 0, 0]]), -1.0)
    labels = {"tags": Labels(values, torch.tensor([0, 1])), "topic": Labels(torch.tensor([1.0]), torch.tensor([2]))}
    model.heads.start(labels)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        losses = Supervised().losses(model, Batch(inputs, 3, labels))
        optimizer.zero_grad()
        torch.stack(list(losses.means().values())).sum().backward()
        optimizer.step()
    found = model.predict(inputs)
    assert found["tags"].shape == (3, 4)
    assert found["tags"][0, :3].tolist() == [1, 2, 0]
    assert found["tags"][1, 0] == 3
    assert found["topic"][2] > 0.9
    short = {
        TOKENS: {"values": tokens[1:2, :3], "mask": mask[1:2, :3]},
        WORDS: {"values": places[1:2, :1], "mask": there[1:2, :1]},
        "numeric": torch.zeros(1, 0),
    }
    assert model.predict(short)["tags"][0].tolist() == [3, 0, 0, 0]
