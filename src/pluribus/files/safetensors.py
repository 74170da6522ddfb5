"""Safetensors, careful and streaming: the header is checked before a byte of data is read; data is read and written in chunks.

The format: 8 bytes little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the data. A folder
may hold one file or shards named by ``*.safetensors.index.json``. Nothing is memory-mapped, so a file that shrinks under the
reader is an error and not a crash, and a chunk costs one copy.

`Reader` gives names, shapes and dtypes and reads any part of a tensor; `Writer` lays the whole file out beforehand and accepts
the parts in any order; `pack` splits tensors into shards of a given size.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.files.hostile import read_json

MAX_HEADER = 100_000_000  # the limit of the reference implementation

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: the file, the first byte, how many bytes, and what they are."""

    path: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(path: str | Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The entries of one file in the order of their data, and its metadata. Raises `BadInput` for anything out of order."""
    path = Path(path)

    def bad(what: str, remedy: str = "fetch the file again, or do not trust where it comes from") -> BadInput:
        return BadInput(what, where=str(path), remedy=remedy)

    if path.exists() and not path.is_file():  # a pipe would be waited on for ever
        raise bad("is not a file but a folder or device", "name a file")
    try:
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            head = handle.read(8)
            if len(head) < 8:
                raise bad(f"is not a safetensors file ({size} bytes)")
            (length,) = struct.unpack("<Q", head)
            if length > MAX_HEADER or 8 + length > size:
                raise bad(f"is not a safetensors file or is truncated (its header claims {length} bytes, the file has {size})")
            raw = handle.read(length)
    except FileNotFoundError as error:
        raise BadInput("no such file", where=str(path), remedy="check the path") from error
    except OSError as error:
        raise bad(f"cannot be read ({error.strerror})", "check the path and its permissions") from error

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise bad(f"names {key!r} twice in its header")
            seen[key] = value
        return seen

    def number(text: str) -> Any:
        raise bad(f"holds {text[:20]} in its header, where only integers belong")

    def integer(text: str) -> int:
        if len(text) > 20:
            raise bad("holds an absurd number in its header")
        return int(text)

    try:
        table = json.loads(
            raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=number, parse_float=number, parse_int=integer
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise bad("has a header that is not JSON") from error
    if not isinstance(table, dict):
        raise bad("has a header that is not a table of tensors")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise bad("has metadata that is not text")
    found: list[tuple[int, str, TensorEntry]] = []
    for name, row in table.items():
        if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
            raise bad(f"describes tensor {name!r} in an unknown way")
        shape, span = row["shape"], row["data_offsets"]
        if row["dtype"] not in DTYPES if isinstance(row["dtype"], str) else True:
            raise bad(f"holds tensor {name!r} of the unknown dtype {str(row['dtype'])[:40]!r}")
        whole = isinstance(shape, list) and isinstance(span, list) and len(span) == 2
        if not whole or not all(type(i) is int and 0 <= i < 2**63 for i in (*shape, *span)) or len(shape) > 64:
            raise bad(f"gives tensor {name!r} a shape or offsets that are not counts")
        dtype = DTYPES[row["dtype"]]
        nbytes = math.prod(shape) * dtype.itemsize
        if span[1] - span[0] != nbytes:
            raise bad(f"gives tensor {name!r} of shape {tuple(shape)} {span[1] - span[0]} bytes instead of {nbytes}")
        found.append((span[0], name, TensorEntry(path, 8 + length + span[0], nbytes, dtype, tuple(shape))))
    found.sort(key=lambda item: (item[0], item[2].nbytes))
    reached = 0
    for start, name, entry in found:
        if start != reached:
            raise bad(f"lays tensor {name!r} at byte {start} of the data, where {reached} was due (a hole or an overlap)")
        reached += entry.nbytes
    if 8 + length + reached != size:
        raise bad(f"is truncated or padded: {8 + length + reached} bytes are described, the file has {size}")
    return {name: entry for _, name, entry in found}, metadata


def shards(path: str | Path) -> list[Path]:
    """The safetensors files of a file, an index or a model folder; empty where a folder has none."""
    path = Path(path)
    if not path.exists():
        raise BadInput("no such file or folder", where=str(path), remedy="check the path")
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json"))
        if len(indices) > 1:
            raise BadInput(f"has {len(indices)} indices of shards", where=str(path), remedy="name one of them")
        if not indices:
            single = path / "model.safetensors"
            files = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
            if len(files) > 1:
                listed = ", ".join(f.name for f in files[:4])
                what = f"has several safetensors files and no index ({listed})"
                raise BadInput(what, where=str(path), remedy="name one of them")
            return files
        path = indices[0]
    if not path.name.endswith(".json"):
        return [path]
    return [path.parent / name for name in sorted(set(_weight_map(path).values()))]


def _weight_map(index: Path) -> dict[str, str]:
    table = read_json(index, what="index of shards")
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise BadInput("has no weight_map of names to files", where=str(index), remedy="fetch the index again")
    for file in set(names.values()):
        if Path(file).name != file or file in ("", ".", "..") or "\\" in file or "\0" in file:
            raise BadInput(f"names the shard {file!r}, which leads out of its folder", where=str(index), remedy="do not trust it")
        if not file.endswith(".safetensors"):
            raise BadInput(f"names the shard {file!r}, which is not safetensors", where=str(index), remedy="do not trust it")
    return names


def _bytes(flat: Tensor) -> memoryview:
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


class Reader:
    """The tensors of a file, an index or a folder, by name. Opening it reads headers only.

    `entries` and `metadata` are what the headers say; `files` the files. Reads are positional and safe from several threads.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files = shards(path)
        if not self.files:
            raise BadInput("holds no safetensors file", where=str(path), remedy="save the model with safe_serialization=True")
        self.entries: dict[str, TensorEntry] = {}
        self.metadata: dict[str, str] = {}
        self._handles: dict[Path, int] = {}
        self._lock = threading.Lock()
        for file in self.files:
            entries, metadata = read_header(file)
            for name in entries:
                if name in self.entries:
                    where = f"{self.entries[name].path} and {file.name}"
                    raise BadInput(f"tensor {name!r} is in two shards", where=where, remedy="remove one of them")
            self.entries.update(entries)
            self.metadata.update(metadata)
        index = self.path if self.path.name.endswith(".json") else next(iter(self.path.glob("*.safetensors.index.json")), None)
        if index is not None:
            for name, shard in _weight_map(index).items():
                if name not in self.entries or self.entries[name].path.name != shard:
                    what = f"places tensor {name!r} in {shard}, where it is not"
                    raise BadInput(what, where=str(index), remedy="fetch it again")

    def names(self) -> tuple[str, ...]:
        return tuple(self.entries)

    def _handle(self, path: Path) -> int:
        with self._lock:
            if path not in self._handles:
                self._handles[path] = os.open(path, os.O_RDONLY)
            return self._handles[path]

    def read(self, name: str, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Entries start to stop of a tensor's flat order, in its dtype; into `out` (flat, contiguous) where given."""
        entry = self.entries[name]
        width = entry.dtype.itemsize
        stop = math.prod(entry.shape) if stop is None else stop
        if out is None:
            out = torch.empty(stop - start, dtype=entry.dtype)
        if stop == start:
            return out
        view = _bytes(out)
        at, done, handle = entry.offset + start * width, 0, self._handle(entry.path)
        while done < len(view):
            got = os.preadv(handle, [view[done:]], at + done)
            if not got:
                raise BadInput("ended while it was read", where=str(entry.path), remedy="fetch the file again")
            done += got
        return out

    def tensor(self, name: str) -> Tensor:
        return self.read(name).view(self.entries[name].shape)

    def close(self) -> None:
        with self._lock:
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_handles"):
            self.close()


Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def header_bytes(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file that holds `layout` ({name: (shape, dtype)}) in that order, padded to 8 bytes."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for name, (shape, dtype) in layout.items():
        if dtype not in CODES:
            raise BadInput(f"tensor {name!r} has the dtype {dtype}, which safetensors cannot hold", remedy="cast it")
        stop = reached + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [reached, stop]}
        reached = stop
    raw = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


class Writer:
    """A safetensors file written in place, part by part, in any order: its header is on disk before its data.

    path: the file to fill (give a temporary name and rename it). layout: {name: (shape, dtype)} in the order of the data.
    metadata: text by name; a value may be changed by `patch` while its encoded length stays.
    `close` refuses a file whose tensors were not all written.
    """

    def __init__(self, path: str | Path, layout: Layout, metadata: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self._layout, self._metadata = dict(layout), dict(metadata or {})
        head = header_bytes(self._layout, self._metadata)
        self._start: dict[str, int] = {}
        at = len(head)
        for name, (shape, dtype) in self._layout.items():
            self._start[name] = at
            at += math.prod(shape) * dtype.itemsize
        self.nbytes = at
        self._head, self._left, self._lock = len(head), at - len(head), threading.Lock()
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._put(memoryview(head), 0)

    def _put(self, view: memoryview, at: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._handle, view[done:], at + done)

    def write(self, name: str, part: Tensor, start: int = 0) -> None:
        """Put `part` (contiguous, in the tensor's dtype) at entry `start` of the tensor's flat order."""
        _, dtype = self._layout[name]
        assert part.dtype == dtype, f"{name}: {part.dtype} for {dtype}"
        if not part.numel():
            return
        view = _bytes(part.detach().reshape(-1))
        self._put(view, self._start[name] + start * dtype.itemsize)
        with self._lock:
            self._left -= len(view)

    def patch(self, values: Mapping[str, str]) -> None:
        """Change metadata values on disk; the encoded header must keep its length."""
        self._metadata.update(values)
        head = header_bytes(self._layout, self._metadata)
        assert len(head) == self._head, "a patched value must be as long as the one it replaces"
        self._put(memoryview(head), 0)

    def close(self) -> None:
        """Flush to the disk and close; every byte must have been written once."""
        assert self._left == 0, f"{self.path}: {self._left} bytes were not written"
        os.fsync(self._handle)
        self.abandon()

    def abandon(self) -> None:
        """Close the handle, whatever is written."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def pack(layout: Layout, shard_bytes: int) -> list[list[str]]:
    """Names of `layout` in order, greedily split into shards of at most `shard_bytes` (a larger tensor stands alone)."""
    found: list[list[str]] = []
    room = -1
    for name, (shape, dtype) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        if size > room or not found:
            found.append([])
            room = shard_bytes
        found[-1].append(name)
        room -= size
    return found or [[]]


def save(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a small state dict atomically."""
    from pluribus.files.atomic import atomic_file

    with atomic_file(path) as aside:
        writer = Writer(aside, {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}, metadata)
        try:
            for name, tensor in tensors.items():
                writer.write(name, tensor.detach().contiguous().cpu())
            writer.close()
        finally:
            writer.abandon()


def load(path: str | Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read a whole file or folder (or the tensors named) into memory."""
    with Reader(path) as reader:
        return {name: reader.tensor(name) for name in (reader.names() if names is None else names)}
