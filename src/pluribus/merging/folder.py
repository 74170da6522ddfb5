"""What a merge writes: a Hugging Face trunk, each task's head beside it, and where everything came from.

    OUT/model.safetensors (or shards with an index)   the trunk, loadable by AutoModel with OUT/config.json
    OUT/heads/TASK.safetensors                        what was never merged, under the expert's own names
    OUT/pluribus.json                                 kind "merge": method, settings, weights, tasks, inputs' hashes
    OUT/README.md                                     the model card

Everything is checked from headers before a byte is written, the space on the disk too. The inputs are hashed while the merge
runs; the digests have fixed-width places in the header and are patched in before the folder takes its name. An input that
changed meanwhile is an error. `export_task` puts one task together again as an ordinary Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput, unknown
from pluribus.files import atomic_folder, read_json, safetensors, sha256
from pluribus.merging.algebra import Method
from pluribus.merging.checkpoints import LABELS, HeadNames, MergePlan, config
from pluribus.merging.source import Renamed, Source
from pluribus.merging.stream import CHUNK, Engine

SCHEMA, KIND = 1, "merge"
UNKNOWN = "-" * 64
SHARD = 5 * 10**9
COPIED = (".json", ".txt", ".jinja", ".model", ".vocab")  # small texts of a model folder; never code, never weights


@dataclass
class Written:
    """What `merge(out=…)` did: where, how much, how long, what was merged and what was not."""

    path: Path
    method: str
    bytes_read: int
    bytes_written: int
    seconds: float
    merged: int
    copied: int
    heads: dict[str, tuple[str, ...]]
    notes: list[str] = field(default_factory=list)


def layout_of(plan: MergePlan, dtypes: Mapping[str, torch.dtype]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The trunk on disk, in the order of names: the same whatever the inputs' shards."""
    return {n: (shape, dtypes.get(n, dtype)) for n, (shape, dtype) in sorted(plan.layout().items())}


def sizes(plan: MergePlan, dtypes: Mapping[str, torch.dtype]) -> tuple[int, int]:
    """Bytes that will be read (in one pass) and written."""
    trunk = sum(math.prod(s) * d.itemsize for s, d in layout_of(plan, dtypes).values())
    heads = sum(
        math.prod(plan.originals[t].shape(n)) * plan.originals[t].dtype(n).itemsize
        for t, names in plan.heads.items()
        for n in own_names(plan, t, names).values()
    )
    read = sum(
        math.prod(plan.base.shape(n)) * (plan.base.dtype(n).itemsize + sum(e.dtype(n).itemsize for e in plan.experts.values()))
        for n in plan.merged
    )
    return read, trunk + heads


def own_names(plan: MergePlan, task: str, names: Sequence[str]) -> dict[str, str]:
    """Names under the base's spelling → the expert's own."""
    expert = plan.experts[task]
    return {n: expert.map[n] if isinstance(expert, Renamed) else n for n in names}


def check_place(out: Path, plan: MergePlan, needed: int, overwrite: bool) -> None:
    """Refuse a place that is taken, that is an input, or that is too small."""
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise BadInput("exists already", where=str(out), remedy="choose another place or overwrite (--force)")
    target = out.resolve()
    for source in (plan.base, *plan.originals.values()):
        for file in getattr(source, "files", []):
            place = Path(file).resolve()
            if target == place or target in place.parents:
                raise BadInput("is (or holds) one of the inputs", where=str(out), remedy="choose another place")
    home = target
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    if free < needed + (1 << 20):
        what = f"needs {needed / 1e9:.2f} GB and {home} has {free / 1e9:.2f} GB free"
        raise BadInput(what, where=str(out), remedy="free some space or choose another place")


def safe(task: str) -> str:
    """The task, if it can be the name of a file."""
    if not re.fullmatch(r"[\w.+-]+", task) or task.startswith("."):
        raise BadInput(f"task {task!r} cannot be the name of a file", where="experts", remedy="use letters, digits, - and _")
    return task


def _digest(files: Sequence[Path], cancelled: threading.Event) -> str:
    """One SHA-256 of a model: of its file, or of its files' digests in the order of their names."""
    if cancelled.is_set():
        return UNKNOWN
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256("".join(sha256(f) for f in sorted(files)).encode()).hexdigest()


def write(
    plan: MergePlan,
    method: Method,
    weights: Sequence[float],
    out: Path,
    *,
    recipe: dict[str, Any],
    seed: int = 0,
    dtypes: Mapping[str, torch.dtype] | None = None,
    threads: int = 1,
    chunk: int = CHUNK,
    base: Any = None,
    experts: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    hashes: bool = True,
    shard_bytes: int | None = None,
) -> Written:
    """Run a plan into a folder. See the module for what it holds and `merge` for the arguments."""
    begin = time.perf_counter()
    dtypes = dict(dtypes or {})
    for task in plan.heads:
        safe(task)
    layout = layout_of(plan, dtypes)
    read, written = sizes(plan, dtypes)
    check_place(out, plan, written, overwrite)
    models = {"base": plan.base, **{f"expert:{t}": s for t, s in plan.originals.items()}}
    files = {who: [Path(f) for f in getattr(s, "files", [])] for who, s in models.items()}
    before = {f: _stamp(f) for mine in files.values() for f in mine}
    metadata = {"format": "pt", "pluribus": json.dumps(_plain(recipe), sort_keys=True)}
    metadata.update({f"sha256:{who}": UNKNOWN for who, mine in files.items() if mine})

    names = safetensors.pack(layout, SHARD if shard_bytes is None else max(1, shard_bytes))
    shards = (
        ["model.safetensors"]
        if len(names) == 1
        else [f"model-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]
    )
    with atomic_folder(out) as aside:
        writers = [safetensors.Writer(aside / file, {n: layout[n] for n in mine}, metadata) for file, mine in zip(shards, names)]
        place = {n: writer for writer, mine in zip(writers, names) for n in mine}
        pool = ThreadPoolExecutor(1)
        cancelled = threading.Event()
        try:
            digests = {who: pool.submit(_digest, mine, cancelled) for who, mine in files.items() if mine and hashes}
            done, lock = 0, threading.Lock()

            def count(more: int) -> None:
                nonlocal done
                with lock:
                    done += more
                    if progress is not None:
                        progress(done, read)

            engine = Engine(
                plan.base,
                plan.experts,
                plan.merged,
                method,
                weights=weights,
                seed=seed,
                dtypes=dtypes,
                chunk=chunk,
                progress=count,
            )
            engine.run(lambda name, part, start: place[name].write(name, part, start), threads=threads)
            for name in plan.copied:
                _copy(plan.base, name, place[name], name, chunk)
            tasks = {task: _head(plan, task, aside, chunk) for task in plan.experts}
            found = {who: digest.result() for who, digest in digests.items()}
            for file, stamp in before.items():
                if _stamp(file) != stamp:
                    raise BadInput("changed while it was merged", where=str(file), remedy="merge again")
            for writer in writers:
                writer.patch({f"sha256:{who}": value for who, value in found.items()})
                writer.close()
        except BaseException:
            cancelled.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for writer in writers:
                writer.abandon()
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(math.prod(s) * d.itemsize for s, d in layout.values())},
                "weight_map": {n: file for file, mine in zip(shards, names) for n in mine},
            }
            (aside / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")
        homes = {task: Path(e) for task, e in (experts or {}).items() if isinstance(e, (str, Path)) and Path(e).is_dir()}
        home = Path(base) if isinstance(base, (str, Path)) and Path(base).is_dir() else next(iter(homes.values()), None)
        if home is not None:
            copy_texts(home, aside, dtypes)
        for task, row in tasks.items():
            if task in homes and (homes[task] / "config.json").is_file():
                row["config"] = config(homes[task])
        about = {
            "schema_version": SCHEMA,
            "kind": KIND,
            **_plain(recipe),
            "tasks": tasks,
            "merged": len(plan.merged),
            "copied": list(plan.copied),
            "tied": plan.tied,
            "notes": plan.notes,
            "inputs": {
                who: {"name": _name(who, base, experts), "files": [f.name for f in mine], "sha256": found.get(who)}
                for who, mine in files.items()
            },
        }
        (aside / "pluribus.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")
        (aside / "README.md").write_text(card(about), "utf-8")
    return Written(
        out,
        str(recipe.get("method")),
        read,
        written,
        time.perf_counter() - begin,
        len(plan.merged),
        len(plan.copied),
        plan.heads,
        plan.notes,
    )


def _stamp(path: Path) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns


def _plain(value: Any) -> Any:
    """Settings as JSON values; tensors and sources (Fisher information and the like) are named by their type only."""
    if isinstance(value, Mapping):
        if any(isinstance(v, Tensor) for v in value.values()):
            return "tensors"
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def _name(who: str, base: Any, experts: Mapping[str, Any] | None) -> str | None:
    given = base if who == "base" else (experts or {}).get(who.removeprefix("expert:"))
    return Path(os.path.abspath(given)).name if isinstance(given, (str, Path)) else None


def _copy(source: Source, name: str, writer: safetensors.Writer, as_name: str, chunk: int) -> None:
    n = math.prod(source.shape(name))
    for start in range(0, n, chunk):
        writer.write(as_name, source.read(name, start, min(n, start + chunk)).contiguous(), start)


def _head(plan: MergePlan, task: str, aside: Path, chunk: int) -> dict[str, Any]:
    """Write a task's own tensors; what is needed to put the task together again."""
    expert = plan.originals[task]
    mine = own_names(plan, task, plan.heads[task])
    row: dict[str, Any] = {"head": None, "rename": {}, "without": []}
    if mine:
        path = aside / "heads" / f"{safe(task)}.safetensors"
        path.parent.mkdir(exist_ok=True)
        layout = {n: (tuple(expert.shape(n)), expert.dtype(n)) for n in sorted(mine.values())}
        writer = safetensors.Writer(path, layout, {"format": "pt", "task": task})
        try:
            for name in layout:
                _copy(expert, name, writer, name, chunk)
            writer.close()
        finally:
            writer.abandon()
        row["head"] = f"heads/{task}.safetensors"
    seen = plan.experts[task]
    if isinstance(seen, Renamed):
        row["rename"] = {n: own for n, own in seen.map.items() if n != own and n in {*plan.merged, *plan.copied, *plan.tied}}
    known = set(seen.names())
    row["without"] = [n for n in plan.copied if n not in known]
    return row


def copy_texts(home: Path, aside: Path, dtypes: Mapping[str, torch.dtype]) -> None:
    """Configuration, tokenizer and their like from the base's folder; the dtype in it follows the result."""
    for file in sorted(home.iterdir()):
        if not file.is_file() or file.suffix not in COPIED or file.stat().st_size > 64 << 20:
            continue
        if file.name.endswith(".index.json") or file.name in ("pluribus.json", "adapter_config.json"):
            continue
        shutil.copyfile(file, aside / file.name)
    path = aside / "config.json"
    if path.is_file() and dtypes:
        about = config(aside)
        word = str(next(iter(dtypes.values()))).removeprefix("torch.")
        about.update({key: word for key in ("torch_dtype", "dtype") if key in about})
        path.write_text(json.dumps(about, indent=2, ensure_ascii=False), "utf-8")


def card(about: Mapping[str, Any]) -> str:
    """The model card: what was merged, how, from what."""
    settings = ", ".join(f"{k} = {v}" for k, v in about["settings"].items()) or "its defaults"
    count = len(about["tasks"])
    lines = [
        "---",
        "library_name: transformers",
        "tags: [merge, pluribus]",
        "---",
        "",
        f"# Merged by {about['method']}",
        "",
        f"{count} fine-tuned model{'s' * (count != 1)} of one base, merged by Pluribus with `{about['method']}` ({settings}), "
        f"seed {about['seed']}.",
        "",
        "| model | weight | own tensors | SHA-256 |",
        "|---|---|---|---|",
    ]
    for who, row in about["inputs"].items():
        task = who.removeprefix("expert:")
        weight = about["weights"].get(task, "") if who != "base" else "base"
        head = (about["tasks"].get(task, {}).get("head") or "none") if who != "base" else ""
        lines.append(f"| {row['name'] or task} | {weight} | {head} | {row['sha256'] or 'not taken'} |")
    lines += [
        "",
        "The trunk is `model.safetensors`; each task's head lies under `heads/`. One task as an ordinary folder:",
        "",
        "    pluribus export THIS_FOLDER --task TASK -o DIR --format hf",
        "",
    ]
    if about["notes"]:
        lines += ["Notes", *(f"- {note}" for note in about["notes"]), ""]
    return "\n".join(lines)


def read_about(folder: str | Path) -> dict[str, Any]:
    """pluribus.json of a merged folder; another kind or a newer schema is an error."""
    path = Path(folder) / "pluribus.json"
    if not path.is_file():
        raise BadInput("holds no pluribus.json", where=str(folder), remedy="give a folder that Pluribus wrote")
    about = read_json(path, what="model description")
    if not isinstance(about, dict) or not isinstance(about.get("schema_version"), int):
        raise BadInput("is not a model description", where=str(path), remedy="give a folder that Pluribus wrote")
    if about["schema_version"] > SCHEMA:
        raise BadInput(f"has schema version {about['schema_version']}", where=str(path), remedy="upgrade Pluribus")
    return about


def _with_classes(about: dict[str, Any], layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Any]:
    """The base's configuration for an expert without its own (an adapter), with as many classes as its head has rows."""
    is_head = HeadNames(layout)
    rows = {shape[0] for name, (shape, _) in layout.items() if len(shape) == 2 and is_head(name, LABELS) and ".dense" not in name}
    if not about or len(rows) != 1:
        return about
    classes = [f"LABEL_{i}" for i in range(rows.pop())]
    return {**about, "id2label": {str(i): c for i, c in enumerate(classes)}, "label2id": {c: i for i, c in enumerate(classes)}}


def export_task(folder: str | Path, task: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """One task of a merged folder as an ordinary Hugging Face folder: trunk and head in one file, the expert's configuration."""
    folder, out = Path(folder), Path(out)
    about = read_about(folder)
    if about.get("kind") != KIND or not isinstance(about.get("tasks"), dict):
        raise BadInput(f"is of kind {about.get('kind')!r}, not a merge", where=str(folder), remedy="export it by its own kind")
    if task not in about["tasks"]:
        raise unknown("task", task, about["tasks"], where=str(folder))
    check_vacant(out, overwrite)
    row = about["tasks"][task]
    rename, without = dict(row.get("rename") or {}), set(row.get("without") or [])
    with safetensors.Reader(folder) as trunk:
        parts: dict[str, tuple[safetensors.Reader, str]] = {
            rename.get(n, n): (trunk, n) for n in trunk.names() if n not in without
        }
        head = None
        if row.get("head"):
            if row["head"] != f"heads/{safe(task)}.safetensors":
                raise BadInput(f"names the head {row['head']!r}", where=str(folder / "pluribus.json"), remedy="do not trust it")
            head = safetensors.Reader(folder / row["head"])
            parts.update({n: (head, n) for n in head.names()})
        layout = {n: (r.entries[o].shape, r.entries[o].dtype) for n, (r, o) in sorted(parts.items())}
        with atomic_folder(out) as aside:
            writer = safetensors.Writer(aside / "model.safetensors", layout, {"format": "pt"})
            try:
                for name in layout:
                    reader, own = parts[name]
                    n = math.prod(reader.entries[own].shape)
                    for start in range(0, n, CHUNK):
                        writer.write(name, reader.read(own, start, min(n, start + CHUNK)), start)
                writer.close()
            finally:
                writer.abandon()
                if head is not None:
                    head.close()
            copy_texts(folder, aside, {})
            own_config = row.get("config")
            about_it = own_config if isinstance(own_config, dict) else _with_classes(config(aside), layout)
            merged = next((trunk.entries[n].dtype for n in trunk.names() if trunk.entries[n].dtype.is_floating_point), None)
            describe_export(aside, about_it, merged, task, about.get("method"))
    return out


def check_vacant(out: Path, overwrite: bool) -> None:
    """Refuse a place that holds something, unless it may be overwritten."""
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise BadInput("exists already", where=str(out), remedy="choose another place or overwrite (--force)")


def describe_export(aside: Path, about: Mapping[str, Any], dtype: torch.dtype | None, task: str, method: Any) -> None:
    """config.json and README.md of one task's export. dtype: the trunk's, not the expert's: readers load in what stands there."""
    if about:
        word = str(dtype).removeprefix("torch.")
        told = {**about, **{key: word for key in ("torch_dtype", "dtype") if key in about and dtype is not None}}
        (aside / "config.json").write_text(json.dumps(told, indent=2, ensure_ascii=False), "utf-8")
    origin = f"Task `{task}` of a merge by `{method}`, exported by Pluribus.\n"
    (aside / "README.md").write_text(f"---\nlibrary_name: transformers\n---\n\n{origin}", "utf-8")
