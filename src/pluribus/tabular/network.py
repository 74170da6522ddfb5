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
from pluribus.data import Dataset
from pluribus.data.inputs.record import InputColumn
from pluribus.errors import BadInput
from pluribus.modeling import Costs, Fitted, MultiTaskModel
from pluribus.modeling.artefact.fitted import Wanted
from pluribus.modeling.experts import pack
from pluribus.modeling.pieces import bytes_per_row, collected, pieces
from pluribus.tasks import Task
from pluribus.tasks.kinds.record import Predictions

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

IntArray = NDArray[np.int64]
WEIGHTS = "network.safetensors"
UNMEASURED = 64  # rows that go through the network together, whatever they hold


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
    """Encoded rows with nothing in them.

    Sequences have their typical length; other stores hold what stands where a cell is missing.
    """
    import pandas as pd

    inputs: dict[str, Any] = {
        "numeric": torch.zeros(rows, len(columns.bin_edges)),
        "categorical": torch.zeros(rows, len(columns.cardinalities), dtype=torch.int32),
    }
    for name, elements in columns.sequences.items():
        dtype = torch.float32 if elements.numeric else torch.int32
        mask = torch.ones(rows, elements.typical, dtype=torch.bool)
        inputs[name] = {"values": torch.zeros(rows, elements.typical, dtype=dtype), "mask": mask}
    for one in columns.inputs:
        if one.record.store is not None and one.name not in inputs:
            missing = pd.Series([one.missing()] * rows, dtype=object)
            store = one.stored(one.read(InputColumn(one.name, missing, f"column {one.name!r}")))
            held = None if store is None else store.gather(torch.arange(rows))
            inputs |= {} if held is None else {one.name: held}
    return inputs


class Network(Fitted):
    """A network that was fitted: `config` and `model` (see the module's text)."""

    artefact = "network"
    columns: FittedColumns

    def __init__(self, tasks: Sequence[Task], columns: FittedColumns, config: Mapping[str, Any], model: MultiTaskModel) -> None:
        super().__init__(tasks, columns)
        self.config, self.model = dict(config), model.eval()
        pack(self.model)
        self._outputs: float | None = None  # bytes of what a row becomes

    def answer(self, data: Dataset, wanted: Wanted) -> dict[str, Predictions]:
        """All rows in common forward passes: each row is encoded once, and a task's part of the network sees the rows that ask
        for it."""
        if not wanted:
            return {}
        if self.model.training:
            self.model.eval()
        used, places, order = _union(wanted)
        whole = len(used) == data.n_rows and bool((used[1:] > used[:-1]).all())
        found: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for piece in pieces(len(used), self._bytes(data, used)):
            everything = whole and piece.stop - piece.start == len(used)
            batch = data.whole() if everything else data.batch(torch.from_numpy(used[piece]), tasks=())
            cells = dict.fromkeys(wanted) if places is None else _cells(places, piece)
            with torch.inference_mode():
                for name, value in self.model.link(self.model(batch.inputs, cells, batch.context)).items():
                    found[name].append(value)
        answers = {name: collected(self.model.form[name], parts) for name, parts in found.items()}
        return {name: value[order[name]] if name in order else value for name, value in answers.items()}

    def _bytes(self, data: Dataset, rows: IntArray) -> float:
        """Bytes of a row's inputs, of its features and of its predictions for all tasks; 0 where there are few rows."""
        if len(rows) <= UNMEASURED:
            return 0.0

        def inputs(some: slice) -> Any:
            return data.batch(torch.from_numpy(rows[some]), tasks=()).inputs

        def outputs(some: slice) -> Any:
            batch = data.batch(torch.from_numpy(rows[some]), tasks=())
            with torch.inference_mode():
                found = self.model(batch.inputs, None, batch.context)
                return dict(found), found.shared, self.model.link(found)

        if self._outputs is None:
            self._outputs = bytes_per_row(outputs, len(rows))
        return self._outputs + bytes_per_row(inputs, len(rows))

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


def _union(wanted: Wanted) -> tuple[IntArray, dict[str, IntArray] | None, dict[str, IntArray]]:
    """The rows that any task asks for; task → its places among them, ascending (None: each asks for all, in this order); and the
    order of its answers, for tasks that ask for rows in another order or more than once."""
    first, *others = wanted.values()
    if all(rows is first or np.array_equal(rows, first) for rows in others):
        return first, None, {}
    used = np.unique(np.concatenate([first, *others]))
    places, order = {}, {}
    for name, rows in wanted.items():
        places[name] = np.searchsorted(used, rows)
        if not (places[name][1:] > places[name][:-1]).all():
            places[name], order[name] = np.unique(places[name], return_inverse=True)
    return used, places, order


def _cells(places: Mapping[str, IntArray], piece: slice) -> dict[str, Tensor | None]:
    """Task → its places within a piece of the rows, None for all of them. Tasks that ask for none there are left out."""
    cells: dict[str, Tensor | None] = {}
    for name, mine in places.items():
        here = mine[(mine >= piece.start) & (mine < piece.stop)]
        if len(here) or (not len(mine) and piece.start == 0):  # a task that asks for no row has an empty answer
            cells[name] = None if len(here) == piece.stop - piece.start else torch.from_numpy(here - piece.start)
    return cells


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
