"""A fitted network as an artefact: a JSON config that rebuilds the model, and its weights as safetensors.

Config: {"encoder": {"name", "settings"}, "sharing": {"name", "settings"}} for encoder → sharing → heads, or
{"architecture": {"name", "settings"}} for a model that weaves its own; names are the catalog's. Contracts: an encoder class has
`of(columns, **settings)`, a sharing class `(tasks, width, **settings)`, an architecture class `of(tasks, columns, **settings)`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Costs, Fitted, MultiTaskModel
from pluribus.modeling.candidate import Array
from pluribus.modeling.experts import pack
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

WEIGHTS = "network.safetensors"
ROWS = 8192  # rows predicted at a time, divided by the number of networks side by side


def build(tasks: Sequence[Task], columns: FittedColumns, config: Mapping[str, Any]) -> MultiTaskModel:
    """The model that `config` describes, freshly initialised from torch's global generator."""
    if "architecture" in config:
        chosen = config["architecture"]
        model: MultiTaskModel = catalog.get("architecture", chosen["name"]).resolve().of(tasks, columns, **chosen["settings"])
        return model
    encoder = catalog.get("encoder", config["encoder"]["name"]).resolve().of(columns, **config["encoder"]["settings"])
    sharing = catalog.get("sharing", config["sharing"]["name"]).resolve()
    return MultiTaskModel(tasks, encoder, sharing(tasks, encoder.width, **config["sharing"]["settings"]))


def size_of(tasks: Sequence[Task], columns: FittedColumns, config: Mapping[str, Any]) -> tuple[float, int]:
    """FLOPs of one row's forward pass for all tasks, counted on a fresh model, and how many tensors train."""
    with torch.random.fork_rng(devices=[]):
        model = build(tasks, columns, config)
    return _counted(model, blank(columns, 8)) / 8, len(list(model.parameters()))


def _counted(model: MultiTaskModel, inputs: Mapping[str, Tensor]) -> float:
    """FLOPs of a forward pass. Attention is spelt out for it: the fused kernels of some devices are not counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.predict(inputs)
    return float(counter.get_total_flops())


def blank(columns: FittedColumns, rows: int) -> dict[str, Any]:
    """Encoded rows with nothing in them; sequences have their typical length."""
    inputs: dict[str, Any] = {
        "numeric": torch.zeros(rows, len(columns.bin_edges)),
        "categorical": torch.zeros(rows, len(columns.cardinalities), dtype=torch.int32),
    }
    for name, elements in columns.sequences.items():
        dtype = torch.float32 if elements.type == "number" else torch.int32
        mask = torch.ones(rows, elements.typical, dtype=torch.bool)
        inputs[name] = {"values": torch.zeros(rows, elements.typical, dtype=dtype), "mask": mask}
    return inputs


class Network(Fitted):
    """A network that was fitted: `config` and `model` (see the module's text)."""

    artefact = "network"

    def __init__(self, tasks: Sequence[Task], columns: FittedColumns, config: Mapping[str, Any], model: MultiTaskModel) -> None:
        super().__init__(tasks, columns)
        self.config, self.model = dict(config), model.eval()
        pack(self.model)

    def scores(self, data: Prepared, rows: NDArray[np.int64], tasks: Sequence[str]) -> dict[str, Array]:
        wanted = dict.fromkeys(tasks)
        side_by_side = len(wanted) if getattr(self.model.encoder, "copies", 1) > 1 else 1
        step = max(64, ROWS // max(1, side_by_side))
        found: dict[str, list[Tensor]] = {name: [] for name in tasks}
        places = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        for start in range(0, max(1, len(places)), step):  # no rows: one empty batch, for the shapes
            batch = data.batch(places[start : start + step], tasks=())
            for name, value in self.model.predict(batch.inputs, wanted, batch.context).items():
                found[name].append(value)
        return {name: torch.cat(values).double().numpy() for name, values in found.items()}

    def costs(self) -> Costs:
        """FLOPs are counted on one forward pass for all tasks; rows per second are timed here, on one thread."""
        inputs = blank(self.columns, 256)
        flops = _counted(self.model, inputs)
        with _one_thread():
            times = []
            for _ in range(5):
                start = time.perf_counter()
                self.model.predict(inputs)
                times.append(time.perf_counter() - start)
        return Costs(
            parameters=sum(p.numel() for p in self.model.parameters()),
            flops_per_row=flops / 256,
            bytes=sum(value.numel() * value.element_size() for value in self.model.state_dict().values()),
            train_seconds=float(self.record.get("seconds", 0.0)),
            rows_per_second=256 / min(times),
        )

    def write(self, folder: Path) -> dict[str, Any]:
        save_file({name: value.contiguous() for name, value in self.model.state_dict().items()}, folder / WEIGHTS)
        return {"config": self.config}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Network:
        state = read_weights(folder / WEIGHTS)
        with torch.random.fork_rng(devices=[]):
            model = build(tasks, columns, manifest["config"])
        check_weights(state, model.state_dict())
        model.load_state_dict(state)
        return cls(tasks, columns, manifest["config"], model)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a damaged file is a `BadInput`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"cannot be read as safetensors ({error})", where=path.name, remedy="restore the model folder") from error


def check_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Every expected tensor is there in its shape and type, and no other; otherwise a `BadInput` that names the tensor."""
    remedy = "the weights belong to another model; restore the folder"
    for name, tensor in expected.items():
        where = f"{WEIGHTS}, tensor {name!r}"
        if name not in found:
            raise BadInput("is missing", where=where, remedy=remedy)
        if found[name].shape != tensor.shape:
            shapes = f"has shape {list(found[name].shape)}, but tasks and columns need {list(tensor.shape)}"
            raise BadInput(shapes, where=where, remedy=remedy)
        if found[name].dtype != tensor.dtype:
            raise BadInput(f"is {found[name].dtype}, not {tensor.dtype}", where=where, remedy=remedy)
        if tensor.is_floating_point() and bool(found[name].isnan().any()):
            raise BadInput("holds NaN", where=where, remedy=remedy)
    for name in found:
        if name not in expected:
            raise BadInput("is not part of this network", where=f"{WEIGHTS}, tensor {name!r}", remedy=remedy)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
