"""Objectives: what the model is told of the targets where it learns from the true ones before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Batch, Labels, Rows
from pluribus.modeling import Encoder, Features, MultiTaskModel, Outputs, Shared, Sharing, Supervised
from pluribus.tasks import Task
from pluribus.training import Step

VOCABULARY, LENGTH = 6, 5


class Rows3(Encoder):
    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 8)

    def forward(self, inputs: Any, context: Mapping[str, Tensor]) -> Features:
        return Features(self.body(inputs), context=context)


class Same(Sharing):
    width = 8

    def forward(self, features: Features, rows: Rows) -> Shared:
        return Shared(dict.fromkeys(rows, features))


class Writer(MultiTaskModel):
    """Writes a sequence of tokens for each row: each from the features and the true token before it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__((Task("words"), Task("price")), Rows3(), Same())
        self.before, self.out = nn.Embedding(VOCABULARY + 1, 8), nn.Linear(8, VOCABULARY)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        rows, context = self.requested(rows), context or {}
        features = self.encoder(inputs, context)
        outputs = self.heads(self.share(features, rows).tasks, {name: where for name, where in rows.items() if name != "words"})
        if "words" in rows:
            here = features.at(rows["words"])  # the targets go with their rows, as all context does
            target, mask = here.context["target.words"], here.context["target.words.mask"]
            last = F.pad(target[:, :-1], (1, 0), value=VOCABULARY)
            logits = self.out(torch.tanh(here.main[:, None] + self.before(last)))
            each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
            outputs = {**outputs, "words": (each * mask).sum(1)}
        return Outputs({name: outputs[name] for name in rows}, shared=(features.main,))


def batch_of(n: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator)
    rows = torch.arange(0, n, 2)
    first = (x[rows, 0] > 0).long()
    target = (first[:, None] + torch.arange(LENGTH)) % VOCABULARY
    mask = torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (len(rows), 1), generator=generator)
    return Batch(x, n, {"words": Labels(target, rows, mask), "price": Labels(x[:, 1], torch.arange(n))})


def test_targets_reach_the_model_at_their_rows() -> None:
    """If this fails, a decoder reads another row's target, or the labels of a row that has none."""
    batch = batch_of()
    context = Supervised(teacher_forced=("words",)).context(batch)
    labels = batch.labels["words"]
    assert set(context) == {"target.words", "target.words.mask"}
    for name, values in (("target.words", labels.values), ("target.words.mask", labels.mask)):
        assert context[name].shape == (batch.n_rows, LENGTH)
        assert torch.equal(context[name][labels.rows], values)
        assert not context[name][1::2].any()
    assert Supervised().context(batch) == {}
    assert set(Supervised(teacher_forced=("words",)).context(batch.only({"price"}))) == set()


def test_a_decoder_learns_from_the_true_tokens_before() -> None:
    """If this fails, the loss of a teacher-forced task is not what its model returns, so that it cannot learn."""
    model, batch = Writer(), batch_of()
    objective = Supervised(teacher_forced=("words",))
    losses = objective.losses(model, batch)
    expected = model(batch.inputs, {"words": batch.labels["words"].rows}, objective.context(batch))["words"]
    torch.testing.assert_close(losses.sums["words"], expected.sum())
    assert float(losses.counts["words"]) == len(expected)
    step = Step(model, objective=objective, lr=0.05, weight_decay=0.0)
    found = [step(batch).losses for _ in range(80)]
    assert found[-1]["words"] < 0.1 * found[0]["words"]
    assert found[-1]["price"] < found[0]["price"]
