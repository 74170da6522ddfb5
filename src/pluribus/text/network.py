"""Fitted text models as an artefact: one folder with weights, tokenizer and config, that needs nothing beside it.

Config: {"text": the text columns, "max_length", "mean_length", "members": [{"tasks", "model"}]}: a joint model is one member,
specialists are one member a task. "model" are the settings of `TextModel.of`; "text" has two columns for pairs. The
weights hold the backbone's own, so that the folder still answers where the backbone it came from is gone; they lie in a file of
their own, which a study stores once where several models have the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.data.ragged import Ragged
from pluribus.errors import BadInput
from pluribus.modeling import Costs, Fitted
from pluribus.modeling.artefact.fitted import Wanted
from pluribus.tasks import Task
from pluribus.tasks.kinds.record import Predictions
from pluribus.text.encoder import SEGMENTS, TOKENS, WORDS
from pluribus.text.model import TextModel
from pluribus.text.tokens import Tokenised, Tokenizer

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

WEIGHTS, BACKBONE = "network.safetensors", "backbone.safetensors"
MEASURED = 32  # rows of the batch that costs are measured on


def build(tasks: Sequence[Task], columns: FittedColumns, settings: Mapping[str, Any]) -> TextModel:
    """A member's model, freshly initialised from torch's global generator."""
    name = settings.get("name", "text")
    plain = {key: value for key, value in settings.items() if key != "name"}
    model: TextModel = catalog.get("architecture", name).resolve().of(tasks, columns, **plain)
    return model


def taken(data: Prepared, rows: NDArray[np.int64]) -> Prepared:
    """A table of these rows alone, in this order, without labels and parts."""
    return replace(
        data,
        numeric=data.numeric[rows],
        categorical=data.categorical[rows],
        parts={},
        units=np.arange(len(rows)),
        cells={name: cells.within(np.empty(0, np.int64)) for name, cells in data.cells.items()},
        context={name: value[rows] for name, value in data.context.items()},
        stores={name: each.take(rows) for name, each in data.stores.items()},
    )


def tokenised(data: Prepared, tokenizer: Tokenizer, text: Sequence[str], *, words: bool) -> Prepared:
    """The table with its text as token ids. text: one column, or two that make pairs (further ones follow the second).
    words: the text is words between spaces, and the place of each word's first token is kept too."""
    for name in text:
        if name not in data.texts:
            raise BadInput("is not a text column of this table", where=f"column {name!r}", remedy="declare it: --text COLUMN")
    first = data.texts[text[0]]
    found: Tokenised
    if words:
        found = tokenizer.encode_words(first)
    elif len(text) == 1:
        found = tokenizer.encode(first)
    else:
        rest = [data.texts[name] for name in text[1:]]
        joined = rest[0] if len(rest) == 1 else [" ".join(part for part in parts if part) for parts in zip(*rest)]
        found = tokenizer.encode(first, joined)
    data = data.with_ragged(TOKENS, Ragged(found.ids, found.starts))
    if len(text) > 1 and not words:
        data = data.with_ragged(SEGMENTS, Ragged(found.segments, found.starts))
    if found.words is not None and found.word_starts is not None:
        data = data.with_ragged(WORDS, Ragged(found.words, found.word_starts))
    return data


class TextNetwork(Fitted):
    """A fitted text model, or one for each task: `config`, `tokenizer` and `models` (see the module's text)."""

    artefact = "text_network"
    columns: FittedColumns

    def __init__(
        self,
        tasks: Sequence[Task],
        columns: FittedColumns,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        models: Sequence[TextModel],
    ) -> None:
        super().__init__(tasks, columns)
        self.config, self.tokenizer = dict(config), tokenizer
        self.models = [model.eval() for model in models]
        self.words = any(task.record.beside == "text" for task in tasks)

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Predictions]:
        """Texts that several tasks ask for are tokenised once, and each member runs once, on the rows of its own tasks."""
        by_name = {task.name: task for task in self.tasks}
        distinct = np.unique(np.concatenate([np.empty(0, np.int64), *wanted.values()]))
        found = {name: sized(by_name[name], torch.empty(0), distinct[:0]) for name in wanted}
        if not len(distinct):
            return found
        ready = tokenised(taken(data, distinct), self.tokenizer, self.config["text"], words=self.words)
        batch = ready.batch(torch.arange(len(distinct)), tasks=())
        counts = word_counts(ready, self.config["text"][0]) if self.words else distinct
        each = {n: np.unique(np.searchsorted(distinct, rows), return_inverse=True) for n, rows in wanted.items() if len(rows)}
        for member, model in zip(self.config["members"], self.models):
            cells = {
                name: None if len(each[name][0]) == len(distinct) else torch.from_numpy(each[name][0])
                for name in member["tasks"]
                if name in each
            }
            for name, value in model.predict(batch.inputs, cells, batch.context).items() if cells else ():
                rows, order = each[name]
                found[name] = sized(by_name[name], value, counts[rows])[order]
        return found

    def costs(self) -> Costs:
        """FLOPs and speed of a batch whose rows all have the mean length of the training texts; one thread."""
        length = int(self.config["mean_length"])
        inputs: dict[str, Any] = {
            "numeric": torch.zeros(MEASURED, len(self.columns.bin_edges)),
            "categorical": torch.zeros(MEASURED, len(self.columns.cardinalities), dtype=torch.int32),
        }
        for name in (TOKENS, *([WORDS] if self.words else [])):
            inputs[name] = {
                "values": torch.ones(MEASURED, length, dtype=torch.int32),
                "mask": torch.ones(MEASURED, length, dtype=torch.bool),
            }
        with FlopCounterMode(display=False) as counter:
            for model in self.models:
                model.predict(inputs)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                for model in self.models:
                    model.predict(inputs)
                times.append(time.perf_counter() - start)
        finally:
            torch.set_num_threads(threads)
        return Costs(
            parameters=sum(p.numel() for model in self.models for p in model.parameters()),
            flops_per_row=counter.get_total_flops() / MEASURED,
            bytes=sum(value.nbytes for model in self.models for value in model.state_dict().values()),
            train_seconds=float(self.record.get("seconds", 0.0)),
            rows_per_second=MEASURED / min(times),
        )

    def write(self, folder: Path) -> dict[str, Any]:
        held = {f"{i}.{name}": value for i, model in enumerate(self.models) for name, value in model.state_dict().items()}
        state = {name: value.contiguous().clone() for name, value in held.items()}  # clones: tied weights are refused
        trunk = {name for name in state if ".encoder.backbone." in name}
        save_file({name: value for name, value in state.items() if name not in trunk}, folder / WEIGHTS)
        save_file({name: state[name] for name in sorted(trunk)}, folder / BACKBONE)
        self.tokenizer.write(folder)
        return {"config": self.config}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> TextNetwork:
        config = manifest["config"]
        state = read_weights(folder / WEIGHTS)
        if (folder / BACKBONE).exists() or not any(".encoder.backbone." in name for name in state):  # once all was one file
            state |= read_weights(folder / BACKBONE)
        tokenizer = Tokenizer.read(folder / "tokenizer.json", max_length=config["max_length"])
        by_name = {task.name: task for task in tasks}
        models = []
        with torch.random.fork_rng(devices=[]):
            for i, member in enumerate(config["members"]):
                model = build([by_name[name] for name in member["tasks"]], columns, member["model"])
                fill(model, {n.removeprefix(f"{i}."): v for n, v in state.items() if n.startswith(f"{i}.")})
                models.append(model)
        return cls(tasks, columns, config, tokenizer, models)


def word_counts(data: Prepared, column: str) -> NDArray[np.int64]:
    """How many words each row's text has [n]."""
    return np.array([len((text or "").split()) for text in data.texts[column]], np.int64)


def sized(task: Task, value: Tensor, counts: NDArray[np.int64]) -> Predictions:
    """Linked outputs as predictions; without a row, in the shape that they would have.

    Of words, a list as long as the row's words, 0 for those beyond the longest sequence; of a text [m] or [m, C].
    """
    if task.record.beside != "text":
        return value.double().numpy() if len(value) else np.empty((0, *task.record.shape(task)))
    width = int(counts.max(initial=0))
    whole = np.zeros((len(value), width), np.int32)
    if len(value):
        whole[:, : value.shape[1]] = value[:, :width].int().numpy()
    return Ragged.of_padded(whole, np.arange(width) < counts[:, None])


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a damaged file is a `BadInput`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"cannot be read as safetensors ({error})", where=path.name, remedy="restore the model folder") from error


def fill(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state that must fit name by name; what does not is a `BadInput` that names the tensor."""
    expected, remedy = model.state_dict(), "the weights belong to another model; restore the folder"
    for name, tensor in expected.items():
        where = f"{WEIGHTS}, tensor {name!r}"
        if name not in state:
            raise BadInput("is missing", where=where, remedy=remedy)
        if state[name].shape != tensor.shape:
            raise BadInput(f"has shape {list(state[name].shape)}, not {list(tensor.shape)}", where=where, remedy=remedy)
        if tensor.is_floating_point() and bool(state[name].isnan().any()):
            raise BadInput("holds NaN", where=where, remedy=remedy)
    for name in state:
        if name not in expected:
            raise BadInput("is not part of this model", where=f"{WEIGHTS}, tensor {name!r}", remedy=remedy)
    model.load_state_dict(dict(state))
