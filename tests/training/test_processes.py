"""Two processes, one batch: the union's result to 1e-5, with unequal labels per rank and a task on one rank only."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pluribus.balancing import EqualWeighting
from pluribus.data.prepared import Cells
from pluribus.training import Stage, Trainer


def _fixtures() -> Any:
    name = "pluribus_training_fixtures"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("conftest.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _run(balanced: bool) -> tuple[torch.Tensor, dict[str, list[float]], dict[str, list[float]]]:
    fixtures = _fixtures()
    data, model = fixtures.make_data(n=300), fixtures.make_model()
    few = data.cells["calls"]
    data.cells["calls"] = Cells(few.rows[::29], few.values[::29])  # in most batches on one rank only, or on none
    stage = Stage(epochs=3, batch_size=40, lr=0.01, patience=None, balancer=EqualWeighting() if balanced else None)
    history = Trainer(model, [stage]).fit(data)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]), history.scores, history.losses


def _rank(rank: int, balanced: bool, folder: str) -> None:
    torch.set_num_threads(1)
    # A file store: a TCP store lives in rank 0, and a rank that outlives it aborts.
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    weights, scores, losses = _run(balanced)
    found = {"loss": scores["loss"], "auc": scores["default"], "trained": losses["loss"], "rare": losses["calls"]}
    np.savez(f"{folder}/{rank}.npz", weights=weights.numpy(), **{name: np.array(value) for name, value in found.items()})
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a process while it ends


@pytest.mark.parametrize("balanced", [False, True])
def test_two_processes_give_the_union_batch(tmp_path: Path, balanced: bool) -> None:
    """If this fails, a run under torchrun trains something else than the run on one process."""
    mp.spawn(_rank, (balanced, str(tmp_path)), nprocs=2)
    weights, scores, losses = _run(balanced)
    ranks = [np.load(tmp_path / f"{rank}.npz") for rank in (0, 1)]
    np.testing.assert_array_equal(ranks[0]["weights"], ranks[1]["weights"])
    np.testing.assert_allclose(ranks[0]["weights"], weights.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ranks[0]["loss"], scores["loss"], rtol=1e-5)
    np.testing.assert_allclose(ranks[0]["auc"], scores["default"], rtol=1e-5)
    for rank in ranks:
        np.testing.assert_allclose(rank["trained"], losses["loss"], rtol=1e-4)
        np.testing.assert_allclose(rank["rare"], losses["calls"], rtol=1e-4)
