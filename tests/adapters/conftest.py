"""Small models: two blocks of a plain-torch encoder, and tiny random models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """nn.TransformerEncoder with a pool: the plain-torch backbone of the tests."""

    def __init__(self, width: int = 16, layers: int = 2, batch_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 32, dropout, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, layers)
        for p in self.parameters():  # the layers are copies of one another: make them differ, norms and biases too
            nn.init.normal_(p, std=0.2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=mask)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture
def bert() -> Callable[..., Any]:
    """A tiny random BERT (double=True: in float64); skips without transformers."""
    transformers = pytest.importorskip("transformers")

    def make(double: bool = False, **settings: Any) -> Any:
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=32,
            **settings,
        )
        model = transformers.BertModel(config).eval()
        for p in model.parameters():
            nn.init.normal_(p, std=0.2)
        return model.double() if double else model

    return make


@torch.no_grad()
def shake(adapters: nn.Module, std: float = 0.3) -> None:
    """Random values everywhere, so that nothing is at its silent start."""
    torch.manual_seed(1)
    for p in adapters.parameters():
        p.add_(std * torch.randn_like(p))
