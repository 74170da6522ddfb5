"""Where tensors come from: a state dict, a module, a safetensors file or folder, a foreign `.bin`; all read by name, in parts.

A `Source` knows names, shapes and dtypes without touching data, and gives any stretch of a tensor's flat order. Task vectors
are differences of two sources and are never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.files import safetensors


@runtime_checkable
class Source(Protocol):
    """Tensors by name. `read` gives entries start to stop of the flat order in the stored dtype, into `out` where given."""

    def names(self) -> tuple[str, ...]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype: ...
    def read(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor: ...
    def tensor(self, name: str) -> Tensor: ...


class State:
    """A state dict in memory. Names that share storage are tied: `tied` maps each later name to the first."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str = "state dict") -> None:
        self.where = where
        self.tensors: dict[str, Tensor] = {}
        self.tied: dict[str, str] = {}
        first: dict[tuple[Any, ...], str] = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise BadInput(f"holds {type(tensor).__name__} under {name!r}", where=where, remedy="give tensors by name")
            tensor = tensor.detach()
            self.tensors[name] = tensor
            if tensor.numel() and tensor.device.type != "meta":
                key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
                if key in first:
                    self.tied[name] = first[key]
                first.setdefault(key, name)

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        part = self.tensors[name].reshape(-1)[start:stop]
        return part.cpu() if out is None else out.copy_(part)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].clone().cpu()


class Folder:
    """Safetensors on disk; only the stretch asked for is read."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.where = str(path)
        self.reader = safetensors.Reader(path)
        self.files = self.reader.files

    def names(self) -> tuple[str, ...]:
        return self.reader.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.reader.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.reader.entries[name].dtype

    def read(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        return self.reader.read(name, start, stop, out)

    def tensor(self, name: str) -> Tensor:
        return self.reader.tensor(name)


class Renamed:
    """Another source under other names, or with fewer: `names` maps the name seen to the source's own."""

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self.source, self.map = source, dict(names)
        self.where = where(source)
        self.files: list[Path] = list(getattr(source, "files", []))

    def names(self) -> tuple[str, ...]:
        return tuple(self.map)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self.map[name])

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(self.map[name])

    def read(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        return self.source.read(self.map[name], start, stop, out)

    def tensor(self, name: str) -> Tensor:
        return self.source.tensor(self.map[name])


def where(source: Source) -> str:
    """What an error calls a source: its path, or "state dict"."""
    return str(getattr(source, "where", type(source).__name__))


def open_source(given: Any) -> Source:
    """A `Source` from what a caller has: a source, a module, a state dict, or a path.

    A path may be a safetensors file, an index, a folder with either, or, where there is no safetensors, PyTorch's `.bin`/`.pt`,
    which is opened by the weights-only loader: pickled code is refused.
    """
    if isinstance(given, nn.Module):
        return State(given.state_dict(keep_vars=True), type(given).__name__)
    if isinstance(given, Mapping):
        return State(given)
    if isinstance(given, (str, Path)):
        path = Path(given)
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            return _foreign([path])
        if path.is_dir() and not safetensors.shards(path):
            found = sorted([*path.glob("pytorch_model*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
            if found:
                return _foreign(found)
        return Folder(path)
    if isinstance(given, Source):
        return given
    raise BadInput(f"cannot read tensors from {type(given).__name__}", remedy="give a folder, a state dict or a module")


def _foreign(paths: Iterable[Path]) -> State:
    tensors: dict[str, Tensor] = {}
    paths = list(paths)
    for path in paths:
        if not path.is_file():
            raise BadInput("no such file", where=str(path), remedy="check the path")
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the loader raises a zoo of types for what is not a plain checkpoint
            what = "cannot be opened by the weights-only loader (it may hold code)"
            raise BadInput(what, where=str(path), remedy="convert it to safetensors where you trust it") from error
        if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
            loaded = loaded["state_dict"]
        if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
            raise BadInput("is not a state dict", where=str(path), remedy="save model.state_dict()")
        tensors.update(loaded)
    return State(tensors, str(paths[0] if len(paths) == 1 else paths[0].parent))


def is_statistic(name: str) -> bool:
    """Whether a floating tensor is a running statistic of a normalisation, not a weight."""
    return name.endswith(("running_mean", "running_var"))


def task_vector(base: Source, expert: Source, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """τ = θ − θ0 of a stretch of one tensor, flat, in float32 (float64 where either is)."""
    kind = accumulator((base.dtype(name), expert.dtype(name)))
    if stop is None:
        stop = torch.Size(base.shape(name)).numel()
    return expert.read(name, start, stop).to(kind) - base.read(name, start, stop).to(kind)


def accumulator(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype sums are taken in: float64 where an input is, else float32."""
    return torch.float64 if torch.float64 in set(dtypes) else torch.float32


def float_names(base: Source, experts: Mapping[str, Source], heads: Iterable[str] = ()) -> tuple[str, ...]:
    """The names that merge: the base's floating tensors that every expert has in the same shape, less those matching `heads`.

    Tensors that only experts have are heads and left out. A tensor an expert lacks, or has in another shape, is an error that
    names tensor, expert and both shapes; no data is read.
    """
    from fnmatch import fnmatch

    heads = tuple(heads)
    known = {task: set(expert.names()) for task, expert in experts.items()}
    found = []
    for name in base.names():
        if not base.dtype(name).is_floating_point or any(fnmatch(name, pattern) for pattern in heads):
            continue
        for task, expert in experts.items():
            if name not in known[task]:
                remedy = "give an expert of this base, or name the pattern of a head"
                raise BadInput(f"tensor {name!r} of the base is missing", where=f"expert {task!r}", remedy=remedy)
            if tuple(expert.shape(name)) != tuple(base.shape(name)):
                shapes = f"{tuple(expert.shape(name))}, in the base {tuple(base.shape(name))}"
                remedy = "give an expert of this base, or name the pattern of a head"
                raise BadInput(f"tensor {name!r} has the shape {shapes}", where=f"expert {task!r}", remedy=remedy)
            if not expert.dtype(name).is_floating_point:
                kinds = f"{expert.dtype(name)}, in the base {base.dtype(name)}"
                raise BadInput(f"tensor {name!r} has the dtype {kinds}", where=f"expert {task!r}", remedy="dequantise it first")
        found.append(name)
    return tuple(found)


def spans(count: int, chunk: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the chunks of a flat tensor; one empty stretch for an empty tensor."""
    for start in range(0, max(count, 1), chunk):
        yield start, min(count, start + chunk)
