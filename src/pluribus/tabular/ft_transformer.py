"""FT-Transformer: a transformer over the columns of a row, read off at one more token.

Gorishniy, Rubachev, Khrulkov, Babenko, "Revisiting Deep Learning Models for Tabular Data", NeurIPS 2021, section 3.3:

    T_0 = [CLS, token_1 … token_k]
    T_i = Block_i(T_{i−1})               pre-norm, ReGLU; the first block's attention reads T_0 without a norm
    ŷ = Linear(ReLU(Norm(CLS of T_L)))

Where paper and public code (rtdl) differ, or leave it open:

- the last block answers for CLS alone, as in the code: the other tokens are read by nobody;
- the Linear at the end is the task's head, so that the features are ReLU(Norm(CLS));
- norms inside the blocks have no scale and shift (see `attention`); the last one, with no Linear behind it, has both. Its scale
  is stored as the difference from 1, so that weight decay pulls it there;
- weight decay falls on the tokens' weights too (the paper spares them; with its 1e-5 that is little);
- missing numbers and the other embeddings: see `tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pluribus.tabular.attention import Attention, AttentionBlock, FeedForward, norm
from pluribus.tabular.bank import BankEncoder
from pluribus.tabular.embeddings import NumericEmbedding
from pluribus.tabular.tokens import Tokens


class FTTransformer(BankEncoder):
    """Inputs {"numeric": [B, F] float, "categorical": [B, C] int} → Features.main [B, width].

    Parameters
    ----------
    edges, cardinalities: as for `TabularMLP`.
    width: of a token, a multiple of `heads`. depth: blocks. attention_dropout: share of attention weights dropped; dropout:
        share of units dropped in the feed-forward, whose hidden width is 4/3 of `width`.
    embedding, bins, sigma: of the numbers (see `pluribus.tabular.embeddings.numbers`). copies: E networks side by side.

    Cost: with L = 1 + F + C tokens and d = width a row takes about 2·(depth·L·8d² + 2·depth·L²·d) FLOPs.
    """

    def __init__(
        self,
        edges: Sequence[ArrayLike],
        cardinalities: Sequence[int],
        *,
        width: int = 192,
        depth: int = 3,
        heads: int = 8,
        attention_dropout: float = 0.2,
        dropout: float = 0.1,
        embedding: NumericEmbedding = "plain",
        bins: int = 8,
        sigma: float = 0.1,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.copies = width, copies
        self.piece = 2**16 // (1 + len(edges) + len(cardinalities))
        self.tokens = Tokens(edges, cardinalities, width, embedding=embedding, bins=bins, sigma=sigma, copies=copies)
        bound = 1 / math.sqrt(width)
        self.cls = nn.Parameter(torch.empty(copies, width).uniform_(-bound, bound))
        self.blocks = nn.ModuleList(
            AttentionBlock(
                Attention(width, heads, attention_dropout, copies),
                FeedForward(width, int(width * 4 / 3), dropout, gated=True, copies=copies),
                normed=i > 0,
            )
            for i in range(depth)
        )
        self.scale = nn.Parameter(torch.zeros(copies, width))
        self.bias = nn.Parameter(torch.zeros(copies, width))

    def features(self, x: Tensor, codes: Tensor, active: Tensor | None) -> Tensor:
        cls, scale, bias = (p if active is None else p[active] for p in (self.cls, self.scale, self.bias))
        t = self.tokens(x, codes, active)
        t = torch.cat((cls[:, None, None].expand(-1, t.shape[1], 1, -1), t), 2)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            t = block(t, active, queries=1 if i == last else None)
        return F.relu(norm(t[:, :, 0]) * (1 + scale[:, None]) + bias[:, None])
