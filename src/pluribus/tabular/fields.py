"""Rows of columns as vectors: what item towers and query towers begin with.

Each column contributes a piece, side by side: a number itself and whether it is missing; a category its embedding; a list of
categories the mean of theirs, a text the mean of its words' embeddings (`words_of` hashes them), a list of numbers their mean. An
empty list contributes zeros. A piece that is not a number can be hidden (replaced by a learned default), and elements of lists
can be dropped, for contrastive views of a row.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Ragged
from pluribus.data.items import FittedItems
from pluribus.data.prepared import Prepared

BUCKETS = 4096
_WORD = re.compile(r"\w+")
_UNSEEN = 1


class Fields(nn.Module):
    """Encoded rows → [B, width].

    numbers: how many numeric columns. cardinalities: codes of each categorical column. lists: ragged input → codes of its
    elements, 0 where they are numbers. size: width of an embedding.
    """

    def __init__(self, numbers: int, cardinalities: Sequence[int], lists: Mapping[str, int], size: int) -> None:
        super().__init__()
        self.lists = {name: codes for name, codes in lists.items() if codes}
        self.number_lists = [name for name, codes in lists.items() if not codes]
        self.hideable = len(cardinalities) + len(self.lists)
        self.width = 2 * numbers + size * self.hideable + 2 * len(self.number_lists)
        self.categories = nn.Embedding(max(1, sum(cardinalities)), size)
        self.elements = nn.ModuleList(nn.Embedding(codes, size) for codes in self.lists.values())
        self.default = nn.Parameter(torch.randn(self.hideable, size) * 0.1)
        offsets = np.concatenate(([0], np.cumsum(cardinalities)[:-1])) if len(cardinalities) else np.empty(0)
        self.register_buffer("offsets", torch.from_numpy(offsets.astype(np.int64)), persistent=False)
        for table in (self.categories, *self.elements):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, inputs: Mapping[str, Any], hidden: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        """hidden: [k] or [B, k] bool, True where a piece is hidden: the categorical columns in order, then the lists of
        categories. dropout: share of the elements of lists of categories that are dropped (in training mode or not)."""
        x, codes = inputs["numeric"], inputs["categorical"]
        pieces = [self.categories(codes + self.offsets)]  # [B, C, size]
        for (name, _), table in zip(self.lists.items(), self.elements):
            values, mask = inputs[name]["values"], inputs[name]["mask"]
            if dropout:
                mask = mask & (torch.rand(mask.shape) >= dropout)
            pieces.append(mean_of_rows(table.get_parameter("weight"), values, mask)[:, None])
        embedded = torch.cat(pieces, 1)
        if hidden is not None:
            embedded = torch.where(hidden.expand(len(x), -1)[..., None], self.default, embedded)
        missing = x.isnan()
        found = [embedded.flatten(1), x.nan_to_num(0.0), missing.to(x.dtype)]
        for name in self.number_lists:
            values, mask = inputs[name]["values"], inputs[name]["mask"]
            mask = mask & ~values.isnan()
            found += [mean(values.nan_to_num(0.0)[..., None], mask), (~mask.any(1, keepdim=True)).to(x.dtype)]
        return torch.cat(found, 1)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the places [B, L] that the mask allows of values [B, L, d]; 0 where there is none."""
    weight = mask.to(values.dtype)
    total: Tensor = torch.einsum("bld,bl->bd", values, weight)
    return total / weight.sum(1, keepdim=True).clamp_min(1.0)


def mean_of_rows(table: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    """The same of the table's rows [codes, d] at codes [B, L]. Only those that the mask allows are looked up: most places of a
    batch of lists of very different lengths hold nothing."""
    lengths = mask.sum(1)
    return F.embedding_bag(codes[mask].long(), table, lengths.cumsum(0) - lengths, mode="mean")


def words_of(texts: Iterable[str | None], buckets: int = BUCKETS) -> Ragged:
    """Each text's words, lower-cased, as hashed codes 2 … buckets − 1: the same word has the same code everywhere."""
    return Ragged.of(
        [[2 + zlib.crc32(word.encode()) % (buckets - 2) for word in _WORD.findall((text or "").lower())] for text in texts]
    )


class Catalogue:
    """An item table as a model reads it: its encoded rows, a text's words beside them, and in the last row an item of which
    nothing is known (every category unseen, every number missing, every list empty).

    ids: at how many rows the table stood when the model was made, to give every item that training rows mention a code of its
    own, as a category more; None for none. Items that came later, or that no training row mentions, have the code "unseen".
    attributes: whether anything but that code is read.
    """

    def __init__(self, items: FittedItems, ids: int | None = None, attributes: bool = True) -> None:
        data = items.data
        for name, texts in data.texts.items():
            data = data.with_ragged(name, words_of(texts))
        unknown = Prepared(
            tasks=(),
            columns=data.columns,
            numeric=np.full((1, data.numeric.shape[1]), np.nan, np.float32),
            categorical=np.full((1, data.categorical.shape[1]), _UNSEEN, np.int32),
            cells={},
            parts={},
            units=np.zeros(1, np.int64),
            stores={name: Ragged(each.values[:0], np.zeros(2, np.int64)) for name, each in data.ragged.items()},
        )
        self.data = data.followed_by(unknown)
        self.count = len(items)
        self.seen = torch.from_numpy(items.seen)
        if ids is not None:
            own = np.where(items.seen, np.arange(len(items)) + 2, _UNSEEN)
            own[ids:] = _UNSEEN
            column = np.append(own, _UNSEEN).astype(np.int32)[:, None]
            self.data = replace(self.data, categorical=np.hstack((self.data.categorical, column)))
        if not attributes:
            data = self.data
            self.data = replace(data, numeric=data.numeric[:, :0], categorical=data.categorical[:, -1:], stores={})
        self.ids = ids
        self._whole: dict[str, Any] | None = None

    def fields(self, size: int) -> Fields:
        """A first layer for these items. size: width of an embedding."""
        columns, data = self.data.columns, self.data
        own = [] if self.ids is None else [self.ids + 2]
        attributes = columns.cardinalities if data.categorical.shape[1] > len(own) else ()
        lists = {name: columns.ragged_size(name) if name in columns.sequences else BUCKETS for name in data.ragged}
        return Fields(data.numeric.shape[1], [*attributes, *own], lists, size)

    def rows(self, codes: Tensor) -> Tensor:
        """The row of each code of a joined column; what is missing or not in the catalogue is the last row."""
        return torch.where(codes >= 2, codes - 2, self.count).long()

    def inputs(self, rows: Tensor | None = None) -> dict[str, Any]:
        """The encoded rows (default: all, the unknown item last)."""
        if rows is not None:
            found: dict[str, Any] = self.data.batch(rows, tasks=()).inputs
            return found
        if self._whole is None:
            self._whole = self.data.batch(torch.arange(self.count + 1), tasks=()).inputs
        return self._whole
