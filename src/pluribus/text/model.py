"""Tasks over texts: encoder → sharing → heads, optionally with adapters inside the backbone.

Without routed adapters every requested task reads the same features, and each row runs once. Adapters that differ by task make
the trunk depend on the task: rows are expanded to (row, task) pairs, all of which run in one forward pass, each with its own
adapter. Tasks that label words read one vector a word, the others one a text.

A prediction of many rows runs in chunks of similar length, so that memory is that of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus import catalog
from pluribus.data import Rows
from pluribus.modeling import MultiTaskModel, Outputs
from pluribus.tasks import Task
from pluribus.text.encoder import POOLED, SEGMENTS, SPOKEN, TOKENS, WORDS, Pooling, TextEncoder

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

CHUNK = 1 << 14  # places (rows × longest row) predicted at a time


class TextModel(MultiTaskModel):
    """One encoder for all tasks.

    Parameters
    ----------
    tasks: what is predicted. encoder: the backbone.
    sharing: what lies between encoder and heads: {"name", "settings"} of the catalog (None: nothing).
    """

    def __init__(self, tasks: Sequence[Task], encoder: TextEncoder, sharing: Mapping[str, Any] | None = None) -> None:
        chosen = sharing or {"name": "shared_bottom", "settings": {}}
        made = catalog.get("sharing", chosen["name"]).resolve()
        super().__init__(tasks, encoder, made(tasks, encoder.width, **chosen["settings"]))

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        columns: FittedColumns,
        *,
        backbone: Mapping[str, Any] | None = None,
        pooling: Pooling = "mean",
        table: Mapping[str, Any] | None = None,
        sharing: Mapping[str, Any] | None = None,
    ) -> TextModel:
        """A freshly initialised model for tables that `columns` encodes; settings as those of `TextEncoder.of`."""
        return cls(tasks, TextEncoder.of(columns, backbone=backbone, pooling=pooling, table=table), sharing)

    def predict(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """As every model's, in chunks of similar length; tags [m, W] with 0 where a row has no word, W the task's size or what
        the longest row needs."""
        rows, context = self.requested(rows), context or {}
        n_rows = len(inputs["numeric"])
        pieces: dict[str, list[Tensor]] = {name: [] for name in rows}
        places: dict[str, list[Tensor]] = {name: [] for name in rows}
        for chunk in self._chunks(inputs, n_rows):
            where = torch.full((n_rows,), -1)
            where[chunk] = torch.arange(len(chunk))
            local: dict[str, Tensor | None] = {}
            for name, wanted in rows.items():
                if wanted is None:
                    local[name] = None
                    places[name].append(chunk)
                else:
                    here = (where[wanted] >= 0).nonzero()[:, 0]
                    local[name] = where[wanted[here]]
                    places[name].append(here)
            found = super().predict(at(inputs, chunk), local, {name: value[chunk] for name, value in context.items()})
            for name, value in found.items():
                pieces[name].append(self._sized(name, value, inputs))
        answers = {}
        for name in rows:
            order, value = torch.cat(places[name]), torch.cat(pieces[name])
            answers[name] = torch.empty_like(value).index_copy_(0, order, value)
        return answers

    def link(self, outputs: Outputs) -> dict[str, Tensor]:
        """As every model's, but 0 where a row has no word: words that the tokenizer cut off are answered by the first class, and
        how many words a row has is known to who has its text."""
        found = self.heads.link(outputs)
        return {n: value.masked_fill(~outputs.places[n], 0) if n in outputs.places else value for n, value in found.items()}

    def _chunks(self, inputs: Any, n_rows: int) -> Iterator[Tensor]:
        if POOLED in inputs or n_rows == 0:
            yield torch.arange(n_rows)
            return
        lengths, order = inputs[TOKENS]["mask"].sum(1).sort(stable=True)
        start, each = 0, lengths.tolist()
        for end in range(1, n_rows + 1):
            if end == n_rows or (end + 1 - start) * each[end] > CHUNK:
                yield order[start:end]
                start = end

    def _sized(self, name: str, value: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Lists of a chunk [m, W'] as wide as those of all rows."""
        if self.form[name] != "list":
            return value
        width = max(self.tasks[name].size or 0, inputs[WORDS]["values"].shape[1])
        return F.pad(value, (0, width - value.shape[1]), value=0)


def at(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The inputs of these rows, ragged ones cut to the longest of them."""
    found: dict[str, Any] = {}
    longest = {name: _longest(inputs[name]["mask"], rows) for name in (TOKENS, WORDS) if name in inputs}
    for name, value in inputs.items():
        if not isinstance(value, Mapping):
            found[name] = value[rows]
            continue
        if name in (TOKENS, SEGMENTS):
            limit = longest[TOKENS]
        elif name == WORDS:
            limit = longest[WORDS]
        elif name == SPOKEN:
            limit = longest[WORDS] * (value["values"].shape[1] // max(1, inputs[WORDS]["values"].shape[1]))
        else:
            limit = value["values"].shape[1]
        found[name] = {key: part[rows, :limit] for key, part in value.items()}
    return found


def _longest(mask: Tensor, rows: Tensor) -> int:
    return max(1, int(mask[rows].sum(1).max())) if len(rows) else 1
