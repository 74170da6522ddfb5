"""Safetensors from strangers: everything out of order is one clear error; what is in order agrees with the reference."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.errors import BadInput
from pluribus.files import safetensors

ORIGINAL = {
    "a": torch.randn(3, 4),
    "b": torch.arange(5),
    "c": torch.randn(2).bfloat16(),
    "empty": torch.empty(0, 3),
    "s": torch.tensor(2.0),
}


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": list(offsets)}


CORPUS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"1234567", "not a safetensors file"),
    "length 2^63": (struct.pack("<Q", 2**63) + b"{}", "its header claims 9223372036854775808 bytes"),
    "length past the end": (raw({}, length=500), "truncated"),
    "not json": (raw(b"{{{{"), "not JSON"),
    "not utf-8": (raw(b'{"\xff": 1}'), "not JSON"),
    "a list": (raw([1]), "not a table"),
    "deep": (raw(b"[" * 100000), "not JSON"),
    "pickle": (b"\x80\x04\x95" + b"cos\nsystem\n(S'true'\ntR." * 4, "not a safetensors file"),
    "zip": (b"PK\x03\x04" + bytes(60), "not a safetensors file"),
    "NaN": (raw(b'{"a": {"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)), "holds NaN"),
    "huge number": (
        raw(b'{"a": {"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8)),
        "absurd number",
    ),
    "float": (raw(b'{"a": {"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', bytes(8)), "only integers"),
    "duplicate": (
        raw(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            bytes(8),
        ),
        "names 'a' twice",
    ),
    "negative shape": (raw({"a": entry(shape=(-2,))}, bytes(8)), "not counts"),
    "bool shape": (raw({"a": entry(shape=[True, 2])}, bytes(8)), "not counts"),
    "text shape": (raw({"a": entry(shape="2")}, bytes(8)), "not counts"),
    "nested shape": (raw({"a": entry(shape=[[2]])}, bytes(8)), "not counts"),
    "overflow": (raw({"a": entry(shape=(2**62, 8))}, bytes(8)), "instead of"),
    "reversed offsets": (raw({"a": entry(offsets=(8, 0))}, bytes(8)), "instead of"),
    "wrong size": (raw({"a": entry(shape=(3,))}, bytes(8)), "8 bytes instead of 12"),
    "dtype": (raw({"a": entry(dtype="F31")}, bytes(8)), "unknown dtype 'F31'"),
    "dtype list": (raw({"a": {**entry(), "dtype": ["F32"]}}, bytes(8)), "unknown dtype"),
    "extra field": (raw({"a": {**entry(), "url": "x"}}, bytes(8)), "unknown way"),
    "not an entry": (raw({"a": 3}, bytes(8)), "unknown way"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "a hole or an overlap"),
    "same place": (raw({"a": entry(), "b": entry()}, bytes(8)), "a hole or an overlap"),
    "hole": (raw({"a": entry(), "b": entry(offsets=(16, 24))}, bytes(24)), "a hole or an overlap"),
    "truncated data": (raw({"a": entry()}, bytes(7)), "truncated or padded"),
    "hidden tail": (raw({"a": entry()}, bytes(80)), "truncated or padded"),
    "metadata": (raw({"__metadata__": {"x": 1}, "a": entry()}, bytes(8)), "metadata that is not text"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_malicious_files_are_one_clear_error(name: str, tmp_path: Path) -> None:
    content, message = CORPUS[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message.replace("(", r"\(")) as caught:
        safetensors.Reader(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_files_never_crash_or_lie(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A good file with bytes changed, cut or added: either refused, or every tensor still has a sound place in it."""
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    safetensors.save(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(3)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "add", "digit"]))
        if how == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif how == "add":
            content[at:at] = data.draw(st.binary(max_size=9))
        else:
            digits = [i for i, c in enumerate(content) if 48 <= c <= 57]
            if digits:
                content[data.draw(st.sampled_from(digits))] = data.draw(st.integers(48, 57))
        if not content:
            break
    path.write_bytes(bytes(content))
    try:
        with safetensors.Reader(path) as reader:
            total = 0
            for name in reader.names():
                total += reader.tensor(name).numel() * reader.entries[name].dtype.itemsize
            assert total <= len(content)
    except BadInput as error:
        refused = str(error)
    else:
        refused = ""
    assert "\n" not in refused


def test_reads_and_writes_what_the_reference_does(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    safetensors.save(tmp_path / "ours.safetensors", ORIGINAL, {"k": "v"})
    save_file(ORIGINAL, tmp_path / "theirs.safetensors", {"k": "v"})
    theirs, ours = load_file(tmp_path / "ours.safetensors"), safetensors.load(tmp_path / "theirs.safetensors")
    for name, tensor in ORIGINAL.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours[name], tensor)
        assert ours[name].dtype == tensor.dtype
    assert safetensors.read_header(tmp_path / "theirs.safetensors")[1] == {"k": "v"}


def test_any_stretch_can_be_read_and_written(tmp_path: Path) -> None:
    whole = torch.randn(1000)
    path = tmp_path / "x.safetensors"
    writer = safetensors.Writer(path, {"y": ((10, 100), torch.float32), "z": ((1,), torch.int64)}, {"hash": "-" * 64})
    for start in (700, 0, 300):
        stop = {0: 300, 300: 700, 700: 1000}[start]
        writer.write("y", whole[start:stop], start)
    with pytest.raises(AssertionError, match="were not written"):
        writer.close()
    writer.write("z", torch.tensor([7]))
    writer.patch({"hash": "f" * 64})
    writer.close()
    with safetensors.Reader(path) as reader:
        assert reader.metadata == {"hash": "f" * 64}
        assert torch.equal(reader.read("y", 250, 751), whole[250:751])
        out = torch.empty(3)
        reader.read("y", 1, 4, out)
        assert torch.equal(out, whole[1:4])
        assert reader.tensor("z").tolist() == [7]


def test_a_file_that_shrinks_under_the_reader_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.save(path, {"a": torch.randn(1000)})
    with safetensors.Reader(path) as reader:
        with open(path, "r+b") as handle:
            handle.truncate(500)
        with pytest.raises(BadInput, match="ended while it was read"):
            reader.tensor("a")


def _index(folder: Path, table: Any) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"weight_map": {"a": "../other/x.safetensors"}}, "leads out of its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "leads out of its folder"),
        ({"weight_map": {"a": ".."}}, "leads out of its folder"),
        ({"weight_map": {"a": "..\\x.safetensors"}}, "leads out of its folder"),
        ({"weight_map": {"a": "x.bin"}}, "not safetensors"),
        ({"weight_map": {"a": "absent.safetensors"}}, "no such file"),
        ({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}, "places tensor 'b' in one.safetensors"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({"weights": {}}, "no weight_map"),
        ([], "no weight_map"),
        ({"weight_map": {"a": "one.safetensors", "c": "two.safetensors"}}, "in two shards"),
    ],
)
def test_bad_indices(tmp_path: Path, table: Any, message: str) -> None:
    safetensors.save(tmp_path / "one.safetensors", {"a": torch.ones(2)})
    safetensors.save(tmp_path / "two.safetensors", {"a": torch.ones(2), "c": torch.ones(1)})
    with pytest.raises(BadInput, match=message):
        safetensors.Reader(_index(tmp_path, table))


def test_folders_without_a_clear_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no safetensors"):
        safetensors.Reader(tmp_path)
    safetensors.save(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    assert safetensors.Reader(tmp_path).names() == ("a",)
    safetensors.save(tmp_path / "b.safetensors", {"a": torch.ones(2)})
    with pytest.raises(BadInput, match="several safetensors files"):
        safetensors.Reader(tmp_path)


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(0, 50), max_size=8), limit=st.integers(1, 200))
def test_packing_keeps_the_order_and_the_limit(sizes: list[int], limit: int) -> None:
    layout = {f"t{i}": ((n,), torch.uint8) for i, n in enumerate(sizes)}
    found = safetensors.pack(layout, limit)
    assert [n for part in found for n in part] == list(layout)
    for part in found:
        assert len(part) <= 1 or sum(layout[n][0][0] for n in part) <= limit


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Broken: a folder from a stranger with a named pipe in it holds a merge for ever."""
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(BadInput, match="is not a file but a folder or device"):
            safetensors.load(path)
