"""A merge behind `pluribus.load` and `pluribus serve`: a container, or what `pluribus merge` wrote, with its transformers model.

The folder's configuration says what the model reads, and these are the artefact's input columns:

    text           strings, where a tokenizer lies beside the weights; `"text_columns": ["premise", "hypothesis"]` in a task's
                   configuration names one column, or two that are read as a pair (a missing second text: the first alone)
    input_ids      lists of token ids, where the model reads tokens and there is none
    pixel_values   flat lists of channels × height × width numbers, as the model's image processor gives them

Every task is a classifier with its own labels (binary where there are two) or a regression (one output). A row that is asked
for several tasks goes through the trunk of a plain merge once for those that read the same columns; in a container what the tasks
add differs from the first layer on, and the row goes through it once for each of them. A row that the model cannot read (no
token, a token beyond the vocabulary, a wrong number of pixels) has no finite prediction. Architectures are classes of
`transformers`, found by name; code beside the weights is never run. Weights that are no transformers model are served from Python
(`MergeContainer.serve`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pluribus.data.columns import FittedColumns
from pluribus.data.inputs.record import (
    CellLimits,
    FittedInput,
    Fitting,
    InputColumn,
    InputType,
    Saved,
    Schema,
    Statistics,
    register,
)
from pluribus.data.inputs.sequence import list_of, numbers_in
from pluribus.data.inputs.text import FittedText
from pluribus.data.prepared import Prepared
from pluribus.data.ragged import Lists, Ragged, read_lists
from pluribus.errors import BadInput, require
from pluribus.merging.bundle import open_bundle
from pluribus.merging.container import MergeContainer
from pluribus.merging.modules import example, image_shape, names_in, skeleton
from pluribus.merging.parts import FactorPart
from pluribus.modeling.artefact.fitted import Array, Costs, Fitted, Wanted
from pluribus.tasks import Task

STEP = 64  # rows of a forward
INSIDE = "container"
Config = Mapping[str, Any]


class Merged(Fitted):
    """container: weights by task. configs: each task's transformers configuration. home: the folder with the tokenizer."""

    artefact = "merge-container"

    def __init__(self, container: MergeContainer, configs: Mapping[str, Config], home: Path) -> None:
        require("transformers", extra="text", purpose="a merged transformers model")
        where = str(home)
        if not container.tasks:
            raise BadInput("holds no task", where=where, remedy="add one to the container")
        first = configs[container.tasks[0]]
        for task in container.tasks:
            if configs[task].get("model_type") != first.get("model_type"):
                what = f"task {task!r} is a {configs[task].get('model_type')!r}, the first one a {first.get('model_type')!r}"
                raise BadInput(what, where=where, remedy="merge experts of one base")
        model = skeleton(first, where)
        stored = [*container.shared, *(n for head in container.heads.values() for n in head)]
        self.container, self.configs, self.home = container, dict(configs), home
        numbers, self.size = _reads(first, home)
        self.vocabulary = int(first.get("vocab_size") or 0)
        self.tokenizer: Any = _tokenizer(home) if numbers is None else None
        limits = [_positions(first), getattr(self.tokenizer, "model_max_length", None)]
        self.longest = min((int(n) for n in limits if isinstance(n, int) and 0 < n < 1 << 20), default=512)
        tasks = tuple(_task(name, configs[name]) for name in container.tasks)
        self.read_by = {t: _text_columns(t, configs[t]) if numbers is None else (numbers,) for t in container.tasks}
        read = dict.fromkeys(name for names in self.read_by.values() for name in names)
        super().__init__(
            tasks, FittedColumns(tuple((FittedText if numbers is None else FittedNumbers)(name) for name in read), {}, {})
        )
        renamed = container.renamed(names_in(model, stored, where))
        self.served = renamed.serve(model, example=example(first, 2 * len(container.tasks)))

    @classmethod
    def open(cls, folder: str | Path) -> Merged:
        """What `MergeContainer.save` or `pluribus merge` wrote."""
        folder = Path(folder)
        return cls(*open_bundle(folder), folder)

    # Prediction

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Array]:
        """Rows of different tasks in common forward passes."""
        found: dict[str, Array] = {}
        widths = {task.name: len(task.classes) for task in self.tasks}
        for task, mine in wanted.items():
            width = widths[task]
            found[task] = np.full((len(mine), width) if width > 2 else len(mine), np.nan)
        asked: dict[tuple[str, ...], dict[int, list[tuple[str, int]]]] = {}  # by the columns that are read, then by row
        for task, mine in wanted.items():
            for place, row in enumerate(mine.tolist()):
                asked.setdefault(self.read_by[task], {}).setdefault(row, []).append((task, place))
        for columns, questions_of in asked.items():
            # a plain merge runs its trunk once for a row, whatever it is asked; others run once for each of its tasks
            step = STEP if self.served.plain else max(1, STEP // max(map(len, questions_of.values())))
            rows = list(questions_of)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                inputs, good = self._inputs(data, part, columns)
                questions = [(at, task, place) for at, i in enumerate(good) for task, place in questions_of[part[i]]]
                if questions:
                    self._answer(inputs, questions, widths, found)
        return found

    def _answer(
        self, inputs: dict[str, Tensor], questions: list[tuple[int, str, int]], widths: Mapping[str, int], found: dict[str, Array]
    ) -> None:
        """Put the answers to questions (row of the inputs, task, place) into `found`."""
        routed = self.served(inputs, [task for _, task, _ in questions], rows=[at for at, _, _ in questions])
        for task, positions in routed.rows.items():
            logits = routed.outputs[task].double()
            width = widths[task]
            value = logits.softmax(-1)[:, 1] if width == 2 else logits.softmax(-1) if width else logits[:, 0]
            places = [questions[i][2] for i in positions.tolist()]
            found[task][places] = value.numpy()

    def _inputs(self, data: Prepared, rows: Sequence[int], columns: Sequence[str]) -> tuple[dict[str, Tensor], list[int]]:
        """The model's inputs of the rows that it can read, and which those are."""
        if self.size:
            given = [data.ragged[columns[0]].row(row) for row in rows]
            good = [i for i, pixels in enumerate(given) if len(pixels) == self.size and np.isfinite(pixels).all()]
            shape = image_shape(self.configs[self.container.tasks[0]])
            pixels = np.stack([given[i] for i in good]) if good else np.empty((0, self.size), np.float32)
            return {"pixel_values": torch.from_numpy(pixels.astype(np.float32)).view(len(good), *shape)}, good
        kinds: list[list[int]] = []
        if self.tokenizer is not None:
            ids, kinds = self._tokens([[data.texts[name][row] for name in columns] for row in rows])
        else:
            ids = [data.ragged[columns[0]].row(row).tolist() for row in rows]
        good = [i for i, each in enumerate(ids) if 0 < len(each) <= self.longest and all(self._token(n) for n in each)]
        longest = max((len(ids[i]) for i in good), default=1)
        values, mask, which = (torch.zeros(len(good), longest, dtype=torch.long) for _ in range(3))
        for row, i in enumerate(good):
            values[row, : len(ids[i])] = torch.tensor(ids[i], dtype=torch.long)
            mask[row, : len(ids[i])] = 1
            if kinds:
                which[row, : len(ids[i])] = torch.tensor(kinds[i], dtype=torch.long)
        pad = self.configs[self.container.tasks[0]].get("pad_token_id") or 0
        found = {"input_ids": values.masked_fill(mask == 0, int(pad)), "attention_mask": mask}
        return {**found, **({"token_type_ids": which} if kinds else {})}, good

    def _tokens(self, texts: list[list[str | None]]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of texts or pairs, and which of the two each token is of, where the model is told that (else nothing)."""
        paired = [len(each) == 2 and each[1] is not None for each in texts]
        ids: list[list[int]] = [[] for _ in texts]
        kinds: list[list[int]] = [[] for _ in texts]
        for pair in (False, True):
            mine = [i for i, both in enumerate(paired) if both == pair]
            if mine:
                given = [[texts[i][side] or "" for i in mine] for side in range(1 + pair)]
                found = self.tokenizer(*given, truncation=True, max_length=self.longest)
                for at, i in enumerate(mine):
                    ids[i] = found["input_ids"][at]
                    kinds[i] = found["token_type_ids"][at] if "token_type_ids" in found else []
        return ids, kinds if any(paired) and all(map(len, kinds)) else []

    def _token(self, value: float) -> bool:
        return bool(0 <= value < self.vocabulary and value == int(value))  # NaN is at neither side

    # As any artefact

    def costs(self) -> Costs:
        held = self.container
        tensors = [*held.shared.values(), *held.vector.values()]
        sizes = held.bytes()
        for task in held.tasks:
            part = held.parts[task]
            tensors += held.heads[task].values()
            if isinstance(part, FactorPart):
                tensors += [*part.whole.values(), *(tensor for pair in part.factors.values() for tensor in pair)]
        parameters = sum(t.numel() for t in tensors)
        per_row = 2.0 * sum(p.numel() for p in self.served.model.parameters())
        return Costs(parameters, per_row, sum(sizes.values()), 0.0)

    def write(self, folder: Path) -> dict[str, Any]:
        self.container.save(folder / INSIDE, dict.fromkeys(self.container.tasks, self.home))
        return {"configs": self.configs}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Merged:
        container, _ = open_bundle(folder / INSIDE)
        found = cls(container, manifest["configs"], folder / INSIDE)
        found.tasks, found.columns = tasks, columns
        return found


class MergedFolder(Merged):
    """The same, from the folder that `pluribus merge` writes: one trunk and a head a task."""

    artefact = "merge"


def _task(name: str, about: Config) -> Task:
    labels = about.get("id2label")
    count = len(labels) if isinstance(labels, dict) else int(about.get("num_labels") or 2)
    if about.get("problem_type") == "multi_label_classification":
        raise BadInput("has several labels a row", where=f"task {name!r}", remedy="serve it from Python")
    if count == 1:
        return Task(name, "regression")
    words = [str(labels.get(str(i), labels.get(i, f"LABEL_{i}"))) for i in range(count)] if isinstance(labels, dict) else None
    return Task(name, "binary" if count == 2 else "multiclass", tuple(words or (f"LABEL_{i}" for i in range(count))))


def _positions(about: Config) -> int | None:
    """How many tokens the model has positions for, where its configuration says so."""
    said = next((about[key] for key in ("max_position_embeddings", "n_positions") if isinstance(about.get(key), int)), None)
    kind = str(about.get("model_type"))
    # RoBERTa and its kin count positions from the padding token on
    padded = "roberta" in kind or kind in ("camembert", "mpnet", "longformer", "data2vec-text")
    return said if said is None or not padded else said - int(about.get("pad_token_id") or 0) - 1


def _reads(about: Config, home: Path) -> tuple[str | None, int]:
    """The input column with numbers, and how many a picture has (0 for token ids); None where a tokenizer reads texts."""
    if about.get("image_size") and not about.get("vocab_size"):
        return "pixel_values", int(np.prod(image_shape(about)))
    if about.get("vocab_size"):
        files = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
        return (None if any((home / name).is_file() for name in files) else "input_ids"), 0
    what = f"a {about['model_type']!r} model reads neither text nor images"
    raise BadInput(what, where=str(home), remedy="serve it from Python")


def _text_columns(task: str, about: Config) -> tuple[str, ...]:
    """The columns a task's texts come from."""
    names = about.get("text_columns", ["text"])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names) or len(set(names)) not in (1, 2):
        what = f"text_columns is {names!r}"
        raise BadInput(what, where=f"task {task!r}, config.json", remedy="name one column, or two that are a pair")
    return tuple(names)


class PlainNumbers(InputType):
    """Lists of numbers that go into a model as they are: pixels, token ids."""

    name = "plain_numbers"
    depth = 1
    store = Ragged

    def infer(self, column: InputColumn) -> str | None:
        """Nothing: a merge says in its configuration what it reads."""
        return None

    def read(self, column: InputColumn) -> Lists:
        """The lists; a missing cell is an empty one."""
        return read_lists(column.series, column.where, numeric=True)

    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedInput:
        """There is nothing to learn."""
        return FittedNumbers(column.name)

    def restore(self, saved: Saved) -> FittedInput:
        """The column as it was saved."""
        return FittedNumbers(saved.name)


@dataclass(frozen=True)
class FittedNumbers(FittedInput):
    """A column of lists of numbers."""

    record = register(PlainNumbers())

    def stored(self, read: Lists) -> Ragged:
        """float32, as long as each list is."""
        return Ragged(read.numbers.astype(np.float32), read.starts)

    def schema(self, statistics: Statistics) -> Schema:
        """A list of numbers, or null."""
        return {"type": ["array", "null"], "items": {"type": ["number", "null"]}}

    def read_cell(self, value: Any, limits: CellLimits) -> list[float]:
        """A list of numbers; null is an empty one."""
        return numbers_in(list_of(value, limits))


def _tokenizer(home: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(str(home), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"its tokenizer cannot be read ({str(error).splitlines()[0][:200]})"
        raise BadInput(what, where=str(home), remedy="put the base's tokenizer files beside the weights") from error
