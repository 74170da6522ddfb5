"""Roads over a text column without adapters: one backbone fine-tuned for all tasks, a frozen one with heads, one for each task.

All roads of this package read the same backbone and the same tokenizer, so that a difference between them is a difference
made by what trains. They run where the table has a text column.
"""

from __future__ import annotations

import importlib.util
import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pluribus.data.prepared import Prepared
from pluribus.data.ragged import Ragged
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Candidate, LogUniform, SearchSpace
from pluribus.text import backbones
from pluribus.text.buckets import LengthBuckets, cut, labelled, waste
from pluribus.text.encoder import POOLED, SPOKEN, TOKENS, WORDS, TextEncoder
from pluribus.text.model import TextModel
from pluribus.text.network import TextNetwork, build, tokenised
from pluribus.text.tokens import Tokenizer
from pluribus.training import Callback, History, Stage, Trainer
from pluribus.training.fitting import plain_curves, reproducible

DEFAULTS: dict[str, Any] = {
    "backbone": "auto",  # see `pluribus.text.backbones`
    "keep_layers": 0,  # of a pretrained backbone keep so many first layers; 0: all
    "layers": 2,  # of the small backbone, as the next three
    "width": 128,
    "heads": 4,
    "dropout": 0.1,
    "vocabulary": 8000,  # of a tokenizer that is trained
    "tokenizer": "auto",  # the backbone's own; "wordpiece" for the small one; "wordpiece", "bpe" or a folder
    "max_length": 128,  # tokens of a text, at most; fewer where the backbone has fewer positions
    "pooling": "mean",
    "beside": True,  # whether number and category columns are read too
    "lr": "auto",  # auto: the candidate's own, for pretrained and for fresh weights
    "weight_decay": 1e-2,
    "batch_size": 32,
    "epochs": 12,
    "patience": 3,
}

SPACE = SearchSpace({"lr": LogUniform(1e-5, 3e-3), "weight_decay": LogUniform(1e-4, 1e-1)})

TABLE = {"width": 64, "depth": 1, "dropout": 0.1, "embedding": "piecewise_linear", "bins": 8, "category_size": 8}
"""Settings of the tabular encoder beside a text."""
ENCODED = 1 << 13  # tokens that a frozen trunk encodes at a time


@dataclass
class Outcome:
    """What a training leaves: the models, the members of the artefact's config, curves, tasks that the deadline cut short, and
    the number of parameters that trained."""

    models: list[TextModel]
    members: list[dict[str, Any]]
    curves: dict[str, list[float]]
    undertrained: list[str]
    trained: int

    @classmethod
    def joint(cls, ready: Ready, model: TextModel, history: History, trained: int, **more: Any) -> Outcome:
        """One model for all tasks."""
        member = {"tasks": [task.name for task in ready.data.tasks], "model": {**ready.settings, **more}}
        return cls([model], [member], history.scores, history.undertrained(), trained)


class TextCandidate(Candidate):
    """What all roads over text share: backbone, tokenizer, batches of similar length, and the artefact.

    rates: learning rates for a pretrained backbone and for fresh weights.
    passes: forward passes over the backbone that a row costs in training, backward counted as two.
    """

    encoder = "text"
    reads = frozenset({"text"})
    cells = frozenset({"value", "list"})
    defaults: ClassVar[Mapping[str, Any]] = DEFAULTS
    space = SPACE
    rates: ClassVar[tuple[float, float]] = (1e-4, 1e-3)
    passes: ClassVar[float] = 3.0

    def unfit(self, data: Prepared) -> str | None:
        if not data.texts:
            return "the table has no text column"
        if importlib.util.find_spec("transformers") is None:
            return "it needs pip install 'pluribus[text]'"
        for task in data.tasks:
            if task.record.per == "list" and task.record.beside != "text":
                return f"the places of lists are words to it, and those of task {task.name!r} are not"
            if task.record.beside == "text" and len(data.texts) > 1:
                return "words are labelled in one text column, and there are several"
        return None

    def estimate(self, data: Prepared) -> float:
        """2 FLOPs per weight and token for each pass of each epoch, at 30 GFLOP/s."""
        epochs = int(self.settings["epochs"])
        return self._tokens(data) * 2 * self._weights() * self.passes * epochs / 3e10 + 2.0

    def _tokens(self, data: Prepared) -> float:
        """Tokens of one epoch, roughly: five characters each."""
        rows = data.parts["train"]
        some = rows[np.linspace(0, len(rows) - 1, min(len(rows), 200)).astype(int)] if len(rows) else rows
        lengths = [sum(len(each[int(i)] or "") for each in data.texts.values()) / 5 + 3 for i in some]
        return len(rows) * float(np.mean(np.minimum(lengths, self.settings["max_length"]))) if lengths else 0.0

    def _weights(self) -> float:
        """Weights that a token meets: twelve times width² a layer."""
        found = backbones.find(self.settings["backbone"])
        if found.folder is None:
            return float(12 * self.settings["layers"] * self.settings["width"] ** 2)
        config = backbones.config_of(found.folder, self.settings["keep_layers"] or None)
        width = config.get("hidden_size") or config.get("dim") or config.get("d_model") or config.get("n_embd") or 512
        layers = config.get("num_hidden_layers") or config.get("n_layers") or config.get("n_layer") or 6
        return float(12 * layers * width**2)

    # Fitting

    def fit(self, data: Prepared, budget: Budget, seed: int) -> TextNetwork:
        check(self.settings, f"candidate {self.name!r}")
        began = time.process_time()
        with reproducible(seed, budget.threads):
            ready = Ready.of(data, self.settings)
            outcome = self.train(ready, began + budget.seconds, seed)
        config = {
            "text": list(ready.text),
            "max_length": ready.tokenizer.max_length,
            "mean_length": ready.mean_length,
            "members": outcome.members,
        }
        fitted = TextNetwork(data.tasks, data.columns, config, ready.tokenizer, outcome.models)
        fitted.record = {
            "settings": dict(self.settings),
            "backbone": ready.name,
            "max_length": ready.tokenizer.max_length,
            "seed": seed,
            "curves": plain_curves(outcome.curves),
            "undertrained": outcome.undertrained,
            "token_waste": ready.waste(self.settings["batch_size"], seed),
            "trained": outcome.trained,
            "seconds": time.process_time() - began,
        }
        return fitted

    @abstractmethod
    def train(self, ready: Ready, deadline: float, seed: int) -> Outcome:
        """Train until the core-second `deadline`, torch's global generator being seeded."""

    def rate(self, ready: Ready) -> float:
        own = self.settings["lr"]
        return float(self.rates[0 if ready.pretrained else 1]) if own == "auto" else float(own)

    def stage(self, ready: Ready, **changes: Any) -> Stage:
        settings = self.settings
        return Stage(
            **{
                "epochs": settings["epochs"],
                "patience": settings["patience"],
                "batch_size": settings["batch_size"],
                "lr": self.rate(ready),
                "weight_decay": settings["weight_decay"],
                "warmup": 10,
                "sampler": LengthBuckets(TOKENS, settings["batch_size"]),
                **changes,
            }
        )


class Ready:
    """A table whose text is tokens, and what a model for it is made of.

    data: with the ragged inputs of `pluribus.text.encoder`. settings: of `TextModel.of`. pretrained: whether the backbone has
    weights of its own.
    """

    def __init__(
        self,
        data: Prepared,
        text: tuple[str, ...],
        tokenizer: Tokenizer,
        found: backbones.NamedBackbone,
        settings: dict[str, Any],
    ) -> None:
        self.data, self.text, self.tokenizer, self.found, self.settings = data, text, tokenizer, found, settings
        self.name, self.pretrained = found.name, found.folder is not None

    @classmethod
    def of(cls, data: Prepared, settings: Mapping[str, Any]) -> Ready:
        found = backbones.find(settings["backbone"])
        text = tuple(data.texts)
        keep = settings["keep_layers"] or None
        config = None if found.folder is None else backbones.config_of(found.folder, keep)
        longest = None if config is None else backbones.positions(config)
        most = settings["max_length"] if longest is None else min(settings["max_length"], longest)
        tokenizer = tokenizer_of({**settings, "max_length": most}, found, data, text)
        if config is None:
            config = backbones.small(
                vocabulary=tokenizer.size,
                layers=settings["layers"],
                width=settings["width"],
                heads=settings["heads"],
                max_length=most,
                pad=tokenizer.pad,
                dropout=settings["dropout"],
            )
        elif tokenizer.size > config.get("vocab_size", math.inf):
            what = f"the tokenizer has {tokenizer.size} tokens, the backbone {found.name!r} knows {config['vocab_size']}"
            raise BadInput(what, where="text", remedy="use the backbone's own tokenizer")
        words = any(task.record.beside == "text" for task in data.tasks)
        beside = settings["beside"] and bool(data.columns.bin_edges or data.columns.cardinalities)
        chosen = {"backbone": config, "pooling": settings["pooling"], "table": dict(TABLE) if beside else None}
        return cls(tokenised(data, tokenizer, text, words=words), text, tokenizer, found, chosen)

    @property
    def mean_length(self) -> int:
        """Tokens of a training text, rounded up."""
        rows = self.data.parts["train"]
        return max(2, math.ceil(float(self.data.ragged[TOKENS].lengths[rows].mean()))) if len(rows) else 2

    def waste(self, size: int, seed: int) -> dict[str, float]:
        """Share of padding in an epoch's batches: bucketed, and if they were merely shuffled."""
        lengths, rows = self.data.ragged[TOKENS].lengths, labelled(self.data, "train")

        def share(window: int) -> float:
            return waste(lengths, cut(lengths, rows, size, window, torch.Generator().manual_seed(seed)))

        return {"bucketed": share(LengthBuckets.window), "shuffled": share(1)}

    def model(self, data: Prepared | None = None, /, **more: Any) -> TextModel:
        """A model for these tasks (default: all), with the backbone's weights where it has some."""
        data = data or self.data
        model = build(data.tasks, data.columns, {**self.settings, **more})
        self.pour(model)
        return model

    def pour(self, model: TextModel) -> None:
        """Copy the pretrained weights into the model's backbone."""
        if self.found.folder is None:
            return
        encoder = model.encoder
        assert isinstance(encoder, TextEncoder)
        state = backbones.load(self.found.folder, self.settings["backbone"]).state_dict()
        encoder.backbone.load_state_dict(state)


def tokenizer_of(settings: Mapping[str, Any], found: backbones.NamedBackbone, data: Prepared, text: tuple[str, ...]) -> Tokenizer:
    """The tokenizer that the settings ask for; one that is trained sees the training rows alone."""
    asked, most = settings["tokenizer"], settings["max_length"]
    if asked == "auto" and found.folder is not None:
        return Tokenizer.of_folder(found.folder, max_length=most)
    if asked in ("auto", "wordpiece", "bpe"):
        lines = (data.texts[name][int(i)] for name in text for i in data.parts["train"])
        return Tokenizer.train(
            lines, kind="wordpiece" if asked == "auto" else asked, size=settings["vocabulary"], max_length=most
        )
    return Tokenizer.of_folder(asked, max_length=most)


def run(model: TextModel, stage: Stage, data: Prepared, deadline: float, seed: int, *callbacks: Callback) -> History:
    """Train within what is left of the core-seconds."""
    left = max(0.0, deadline - time.process_time())
    return Trainer(model, [stage], seed=seed, deadline=left, clock=time.process_time, callbacks=callbacks).fit(data)


class TextFull(TextCandidate):
    """One backbone for all tasks, every weight of it trained with them."""

    name = "text_full"
    road = "train"
    label = "Text: joint fine-tuning"

    def train(self, ready: Ready, deadline: float, seed: int) -> Outcome:
        model = ready.model()
        history = run(model, self.stage(ready), ready.data, deadline, seed)
        return Outcome.joint(ready, model, history, trained(model))


class TextFrozen(TextCandidate):
    """A backbone that does not train, and heads on its features, which are computed once and kept.

    The backbone runs once over every row of the table; an epoch after that costs no more than one of a linear model.
    """

    name = "text_frozen"
    road = "adapt"
    label = "Text: frozen backbone, heads"
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "epochs": 60, "patience": 6}
    space = SearchSpace({"lr": LogUniform(1e-4, 3e-2), "weight_decay": LogUniform(1e-4, 1.0)})
    rates = (5e-3, 5e-3)
    passes = 1 / 60  # once for all epochs

    def train(self, ready: Ready, deadline: float, seed: int) -> Outcome:
        model = ready.model()
        ends = ("heads.", "sharing.", "encoder.table.")
        stage = self.stage(ready, trainable=ends)
        history = run(model, stage, cached(model, ready.data), deadline, seed)
        return Outcome.joint(ready, model, history, trained(model, ends))


class TextFullPerTask(TextCandidate):
    """A fine-tuned backbone for each task, nothing shared: the specialists."""

    name = "text_full_per_task"
    road = "train"
    label = "Text: fine-tuning, one per task"
    per_task = True

    def estimate(self, data: Prepared) -> float:
        labels = sum(len(data.labelled(task.name, "train")) for task in data.tasks)
        return super().estimate(data) * labels / max(1, len(data.parts["train"])) + 2.0 * len(data.tasks)

    def train(self, ready: Ready, deadline: float, seed: int) -> Outcome:
        found = Outcome([], [], {}, [], 0)
        sizes = [len(ready.data.labelled(task.name, "train")) + 1 for task in ready.data.tasks]
        for i, task in enumerate(ready.data.tasks):
            own = ready.data.only([task.name])
            torch.manual_seed(seed)
            model = ready.model(own)
            now = time.process_time()
            share = now + max(0.0, deadline - now) * sizes[i] / sum(sizes[i:])
            history = run(model, self.stage(ready), own, share, seed)
            found.models.append(model)
            found.members.append({"tasks": [task.name], "model": ready.settings})
            found.curves |= history.scores
            found.undertrained += history.undertrained()
            found.trained += trained(model)
        return found


def trained(model: nn.Module, prefixes: tuple[str, ...] = ("",)) -> int:
    """Parameters whose names begin so."""
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefixes))


@torch.no_grad()
def cached(model: TextModel, data: Prepared) -> Prepared:
    """The table with the frozen backbone's features in place of its tokens' ids: each row runs once, in eval mode."""
    encoder = model.encoder
    assert isinstance(encoder, TextEncoder)
    lengths, hidden = data.ragged[TOKENS].lengths, encoder.hidden
    training = model.training
    model.eval()
    pooled = np.empty((data.n_rows, hidden), np.float32)
    starts = data.ragged[WORDS].starts if WORDS in data.ragged else np.zeros(data.n_rows + 1, np.int64)
    spoken = np.empty((int(starts[-1]), hidden), np.float32)
    for rows in _even(lengths):
        inputs = data.batch(torch.from_numpy(rows), tasks=()).inputs
        states, mask = encoder.states(inputs)
        pooled[rows] = encoder.pool(states, mask).numpy()
        if WORDS in inputs:
            there = inputs[WORDS]["mask"]
            words = encoder.spoken(states, inputs[WORDS]["values"].masked_fill(~there, 0))[there].numpy()
            spoken[np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])] = words
    model.train(training)
    data = data.with_ragged(POOLED, Ragged(pooled.reshape(-1), np.arange(data.n_rows + 1, dtype=np.int64) * hidden))
    if WORDS in data.ragged:
        data = data.with_ragged(SPOKEN, Ragged(spoken.reshape(-1), starts * hidden))
    return data


def _even(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """All rows, shortest first, at most `ENCODED` places at a time."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > ENCODED:
            yield order[start:end]
            start = end


def check(settings: Mapping[str, Any], where: str) -> None:
    """Whole positive numbers where they are needed."""
    for name in ("layers", "width", "heads", "vocabulary", "max_length", "batch_size", "epochs", "patience"):
        value = settings[name]
        if not (isinstance(value, int) and value >= 1):
            raise BadInput(f"{name} must be a whole number of at least 1, not {value!r}", where=where)
