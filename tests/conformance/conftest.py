"""Models of the catalog's families on the table of mixed kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.modeling import MultiTaskModel


@pytest.fixture
def sharing_of(mixed: Prepared) -> Callable[..., MultiTaskModel]:
    """(name of a sharing architecture, its settings) → a model of it on a small network, its heads started."""

    def made(name: str, **settings: Any) -> MultiTaskModel:
        torch.manual_seed(0)
        encoder = catalog.get("encoder", "tabular_mlp").resolve().of(mixed.columns, width=16, depth=1, dropout=0.0)
        sharing = catalog.get("sharing", name).resolve()(mixed.tasks, encoder.width, **settings)
        model = MultiTaskModel(mixed.tasks, encoder, sharing)
        model.heads.start(mixed.batch(torch.from_numpy(mixed.parts["train"])).labels)
        return model

    return made
