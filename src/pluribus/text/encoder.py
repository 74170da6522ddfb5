"""A backbone over token ids: one feature vector a text, one a word, and whatever other columns the table has beside it.

Inputs: {"text.tokens": {"values": [B, L], "mask": [B, L]}, "text.segments": …, "text.words": …, "numeric": …, "categorical": …};
"text.segments" only for pairs, "text.words" (the place of each word's first token) only for texts given as words. Where
"text.pooled" is there ([B, d] in "values"), the backbone does not run: its features were computed once and cached (a frozen
trunk); "text.spoken" [B, W·d] is the same for words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pluribus import catalog
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Encoder, Features
from pluribus.text import backbones

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

TOKENS, SEGMENTS, WORDS, POOLED, SPOKEN = ("text.tokens", "text.segments", "text.words", "text.pooled", "text.spoken")
Pooling = Literal["mean", "cls"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls")


class TextEncoder(Encoder):
    """Texts → Features.main [B, width]; `words` gives [B, W, width] for tasks that label words.

    Parameters
    ----------
    backbone: a `transformers` encoder (or anything that answers alike).
    pooling: "mean" over the text's tokens, or "cls", the first one's state.
    table: an encoder of the other columns, whose features are appended; None where there are none.
    """

    def __init__(self, backbone: nn.Module, *, pooling: Pooling = "mean", table: Encoder | None = None) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise unknown("pooling", pooling, POOLINGS, where="text encoder")
        self.backbone, self.pooling, self.table = backbone, pooling, table
        self.hidden = backbones.width(backbone)
        self.width = self.hidden + (0 if table is None else table.width)
        config: Any = backbone.config
        self.pad = int(config.pad_token_id or 0)
        self.segmented = int(getattr(config, "type_vocab_size", 0) or 0) > 1

    @classmethod
    def of(
        cls,
        columns: FittedColumns,
        *,
        backbone: Mapping[str, Any] | None = None,
        pooling: Pooling = "mean",
        table: Mapping[str, Any] | None = None,
    ) -> TextEncoder:
        """The encoder for tables that `columns` encodes.

        backbone: its config (default: a small BERT over 1000 ids). table: settings of the tabular encoder over the other
        columns (None: they are not read).
        """
        default = backbones.small(vocabulary=1000, layers=2, width=64, heads=4, max_length=128, pad=0, dropout=0.1)
        beside: Encoder | None = None
        if table is not None:
            beside = catalog.get("encoder", "tabular_mlp").resolve().of(columns, **table)
        return cls(backbones.empty(dict(backbone or default)), pooling=pooling, table=beside)

    def states(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The backbone's last hidden states [B, L, d] and the mask [B, L]."""
        if TOKENS not in inputs:
            raise BadInput("holds no tokens", where="the batch", remedy="tokenise the table first (see pluribus.text.network)")
        mask = inputs[TOKENS]["mask"]
        ids = inputs[TOKENS]["values"].long().masked_fill(~mask, self.pad)
        more = {}
        if self.segmented and SEGMENTS in inputs:
            more["token_type_ids"] = inputs[SEGMENTS]["values"].long().masked_fill(~mask, 0)
        given = {"input_ids": ids, "attention_mask": mask.long(), **more}
        if not len(ids):  # transformers reshape no rows; one of nothing is read, so that there is a graph, and left out
            given = {name: each.new_zeros(1, max(1, each.shape[1])) for name, each in given.items()}
            given["attention_mask"] += 1
        found: Tensor = self.backbone(**given).last_hidden_state
        return found[: len(ids)], mask

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """[B, L, d] → [B, d]."""
        if self.pooling == "cls":
            return states[:, 0]
        share = mask.to(states.dtype)
        return torch.einsum("bld,bl->bd", states, share / share.sum(1, keepdim=True).clamp_min(1))

    def spoken(self, states: Tensor, places: Tensor) -> Tensor:
        """The state of each word's first token: [B, L, d] at places [B, W] → [B, W, d]."""
        return states.gather(1, places.long().unsqueeze(-1).expand(-1, -1, states.shape[-1]))

    def beside(self, features: Tensor, inputs: Mapping[str, Any], context: Mapping[str, Tensor]) -> Tensor:
        """Append the other columns' features to those of texts [B, d] or words [B, W, d]."""
        if self.table is None:
            return features
        more = self.table(inputs, context).main
        if features.ndim == 3:
            more = more.unsqueeze(1).expand(-1, features.shape[1], -1)
        return torch.cat((features, more), -1)

    def forward(self, inputs: Mapping[str, Any], context: Mapping[str, Tensor]) -> Features:
        """main: one vector a text. levels: (one vector a word,) where the batch holds words, their mask in `mask`."""
        cached = POOLED in inputs
        if cached:
            pooled = inputs[POOLED]["values"].to(torch.float32)
        else:
            states, mask = self.states(inputs)
            pooled = self.pool(states, mask)
        main = self.beside(pooled, inputs, context)
        if WORDS not in inputs:
            return Features(main, context=context)
        places, there = inputs[WORDS]["values"], inputs[WORDS]["mask"]
        if cached:
            words = inputs[SPOKEN]["values"].to(torch.float32).reshape(len(places), -1, self.hidden)
        else:
            words = self.spoken(states, places.masked_fill(~there, 0))
        return Features(main, levels=(self.beside(words, inputs, context),), mask=there, context=context)
