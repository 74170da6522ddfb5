"""Strangers' checkpoints as they are: what of them merges, what is a task's own head, and what does not fit.

`compare` looks at names, shapes and dtypes only:

1. An expert whose names differ by a prefix ("bert.", "module.") is read under the base's names.
2. A floating tensor that a name pattern calls a head, that only experts have, or that looks like a classifier and has another
   number of classes somewhere, is a *head*: kept for its task, listed, never merged. So is a classifier of equal size whose
   labels (id2label) differ.
3. A tensor that only the base has is copied if it looks like the base's own head or is not floating.
4. Everything else must agree in name and shape. Floating dtypes may differ.

`words` compares tokenizers by token string: equal strings at other rows are moved to the base's rows; a token the base does not
have is refused.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput, unknown
from pluribus.files import read_json
from pluribus.merging.source import Renamed, Source, where

CLASSIFIER = re.compile(
    r"(^|[._])(classifier|classification_head|cls|score|head|heads|fc|lm_head|qa_outputs|logits|predictions|pre_classifier"
    r"|proj_out|output_layer|visual_projection|text_projection|pooler|logit_scale)([._]|$)"
)
EMBEDDING = re.compile(r"(^|\.)(word_embeddings|embed_tokens|wte|token_embedding|shared|tok_embeddings)\.weight$")
VOCABULARY = re.compile(r"(^|\.)(lm_head|predictions|vocab_projector|embed_out|output_projection)(\.|$)")
LABELS = re.compile(r"(^|[._])(classifier|classification_head|score|head|heads|fc|qa_outputs|pre_classifier)([._]|$)")


@dataclass
class MergePlan:
    """What a merge will do, known before any data is read.

    merged: names that merge. copied: names taken from the base as they are. heads: by task, the names of its own tensors (as
    the expert spells them). experts: the sources under the base's names. notes: what a reader should know. tied: name → its twin.
    """

    base: Source
    experts: dict[str, Source]
    merged: tuple[str, ...]
    copied: tuple[str, ...]
    heads: dict[str, tuple[str, ...]]
    originals: dict[str, Source]
    notes: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)

    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of the trunk, in the base's order."""
        mine = {*self.merged, *self.copied}
        return {n: (tuple(self.base.shape(n)), self.base.dtype(n)) for n in self.base.names() if n in mine}


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


class HeadNames:
    """Which of a model's names look like a classifier's. What lies in a numbered block that holds other tensors too is of the
    trunk, whatever it is called: `h.0.mlp.c_fc` is no head."""

    NUMBERED = re.compile(r".*?(?:^|\.)\d+\.")

    def __init__(self, names: Iterable[str]) -> None:
        plain = (self.NUMBERED.match(n) for n in names if not CLASSIFIER.search(n))
        self.trunk = {found[0] for found in plain if found}

    def __call__(self, name: str, pattern: re.Pattern[str] = CLASSIFIER) -> bool:
        found = pattern.search(name)
        if not found:
            return False
        block = self.NUMBERED.match(name[: found.start() + 1])
        return block is None or block[0] not in self.trunk


def align(base: Source, expert: Source) -> tuple[Source, str | None]:
    """The expert under the base's names, where they differ by one prefix; and the prefix in words."""
    ours = base.names()
    mine, theirs = set(ours), set(expert.names())
    best, found = len(mine & theirs), {}
    word: str | None = None
    every = ((n.split("."), depth) for n in sorted(theirs | mine) for depth in (1, 2, 3))
    prefixes = Counter(".".join(parts[:depth]) + "." for parts, depth in every if len(parts) > depth)
    for prefix, _ in prefixes.most_common(60):
        longer = {n: prefix + n for n in ours if prefix + n in theirs}
        shorter = {n: n[len(prefix) :] for n in ours if n.startswith(prefix) and n[len(prefix) :] in theirs}
        for names, how in ((longer, f"without {prefix!r}"), (shorter, f"with {prefix!r}")):
            if len(names) > best:
                best, found, word = len(names), names, how
    if not word:
        return expert, None
    used = set(found.values())
    extra = {n: n for n in expert.names() if n not in used and n not in mine}
    return Renamed(expert, {**found, **extra}), word


def compare(
    base: Source,
    experts: Mapping[str, Source],
    *,
    heads: Sequence[str] = (),
    keep: Sequence[str] = (),
    labels: Mapping[str, Any] | None = None,
) -> MergePlan:
    """What merges, what is copied and what are heads. Raises `BadInput` that names tensor, model and both shapes.

    heads: name patterns of heads. keep: name patterns that stay the base's; a pattern that matches no tensor is an error.
    labels: by task, its id2label, where known.
    """
    if not experts:
        raise BadInput("there is no expert", where="experts", remedy="name at least one fine-tuned model")
    notes: list[str] = []
    seen: dict[str, Source] = {}
    for task, expert in experts.items():
        seen[task], word = align(base, expert)
        if word:
            notes.append(f"expert {task!r} is read {word}")
    names, known = base.names(), {task: set(e.names()) for task, e in seen.items()}
    mine, shapes_of, is_head = set(names), {_pattern(n) for n in names if _pattern(n) != n}, HeadNames(names)
    for task, expert in seen.items():
        common = len(mine & known[task])
        if common * 2 < min(len(mine), len(known[task])) or not common:
            what = f"shares {common} of {len(known[task])} tensor names with the base's {len(mine)}: another architecture"
            raise BadInput(what, where=f"expert {task!r} ({where(expert)})", remedy="give an expert of this base")

    for option, patterns, reach in (("heads", heads, mine.union(*known.values())), ("keep", keep, mine)):
        for pattern in patterns:
            if not any(fnmatch(n, pattern) for n in reach):
                raise unknown("tensor or pattern of tensors", pattern, sorted(reach), where=option)
    own: dict[str, list[str]] = {task: [] for task in seen}
    shared_heads = {n for n in names if any(fnmatch(n, p) for p in heads)}
    if labels and len({str(v) for v in labels.values() if v}) > 1:
        same = {n for n in names if is_head(n, LABELS) and base.dtype(n).is_floating_point} - shared_heads
        if same:
            notes.append(f"the experts' labels differ: {_listed(same)} not merged")
            shared_heads |= same
    for name in names:
        if name in shared_heads or any(fnmatch(name, p) for p in keep):
            continue
        for task, expert in seen.items():
            if name in known[task] and base.dtype(name).is_floating_point:
                here, there = tuple(base.shape(name)), tuple(expert.shape(name))
                if here != there and here[1:] == there[1:] and is_head(name):
                    shared_heads.add(name)

    copied, merged = [], []
    for name in names:
        lacking = [task for task in seen if name not in known[task]]
        if name in shared_heads:
            continue
        if any(fnmatch(name, p) for p in keep) or not base.dtype(name).is_floating_point:
            copied.append(name)
        elif lacking and len(lacking) == len(seen) and is_head(name):
            copied.append(name)
            notes.append(f"{name} is only in the base and copied")
        elif lacking:
            who = f"expert {lacking[0]!r} ({where(seen[lacking[0]])})"
            raise BadInput(
                f"tensor {name!r} {tuple(base.shape(name))} of the base is missing",
                where=who,
                remedy=f"give an expert of this base, or --keep {name!r}",
            )
        else:
            for task, expert in seen.items():
                _same(name, base, expert, task)
            merged.append(name)
    for task, expert in seen.items():
        for name in expert.names():
            if name in shared_heads:
                own[task].append(name)
            elif name not in mine:
                if _pattern(name) in shapes_of and not any(fnmatch(name, p) for p in heads):
                    what = f"holds the extra tensor {name!r} {tuple(expert.shape(name))}, one more of a kind the base has"
                    raise BadInput(
                        what,
                        where=f"expert {task!r} ({where(expert)})",
                        remedy="give an expert of this base, or name it as a head",
                    )
                own[task].append(name)
    kinds = {task: {str(e.dtype(n)).removeprefix("torch.") for n in merged} for task, e in seen.items()}
    of_base = {str(base.dtype(n)).removeprefix("torch.") for n in merged}
    for task, kind in kinds.items():
        if kind != of_base:
            notes.append(f"expert {task!r} is {'/'.join(sorted(kind))}, the result is the base's {'/'.join(sorted(of_base))}")
    if not merged:
        raise BadInput("nothing is left to merge", where="heads and keep", remedy="name fewer patterns")
    tied = _tied(base, seen, merged)
    return MergePlan(
        base,
        seen,
        tuple(n for n in merged if n not in tied),
        tuple(copied),
        {t: tuple(v) for t, v in own.items()},
        dict(experts),
        notes,
        tied,
    )


def _same(name: str, base: Source, expert: Source, task: str) -> None:
    here, there = tuple(base.shape(name)), tuple(expert.shape(name))
    who = f"expert {task!r} ({where(expert)})"
    if here != there:
        hint = "give an expert of this base"
        if EMBEDDING.search(name) and here[1:] == there[1:]:
            hint = "its vocabulary is another one: train with the base's tokenizer, or name it as a head"
        raise BadInput(f"tensor {name!r} has the shape {there}, in the base {here}", where=who, remedy=hint)
    if not expert.dtype(name).is_floating_point:
        what = f"tensor {name!r} is {expert.dtype(name)}, in the base {base.dtype(name)}"
        raise BadInput(what, where=who, remedy="dequantise it first")
    if expert.dtype(name).itemsize < 2:
        raise BadInput(f"tensor {name!r} is {expert.dtype(name)}", where=who, remedy="dequantise it first")


def _tied(base: Source, experts: Mapping[str, Source], merged: Iterable[str]) -> dict[str, str]:
    """Names that share storage in the base and in every expert: merged once."""
    twins: dict[str, str] = dict(getattr(base, "tied", {}))
    merged = set(merged)
    return {
        name: twin
        for name, twin in twins.items()
        if name in merged and twin in merged and all(getattr(e, "tied", {}).get(name) == twin for e in experts.values())
    }


def _listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


# Folders of Hugging Face ---------------------------------------------------------------------------------------------------


def config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, or {}."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    found = read_json(path, what="model configuration")
    if not isinstance(found, dict):
        raise BadInput("is not a table", where=str(path), remedy="fetch it again")
    return found


def vocabulary(folder: Path) -> dict[str, int] | None:
    """token → row, from tokenizer.json, vocab.json or vocab.txt (with added tokens); None where there is none."""
    found: dict[str, int] = {}
    if (folder / "tokenizer.json").is_file():
        table = read_json(folder / "tokenizer.json", what="tokenizer")
        model = table.get("model", {}) if isinstance(table, dict) else {}
        words = model.get("vocab", {}) if isinstance(model, dict) else {}
        if isinstance(words, dict):
            found.update((w, i) for w, i in words.items() if isinstance(i, int))
        else:  # unigram: a list of [token, score]
            found.update((row[0], i) for i, row in enumerate(words) if isinstance(row, list) and row)
        for row in table.get("added_tokens", []) if isinstance(table, dict) else []:
            if isinstance(row, dict) and isinstance(row.get("id"), int):
                found[str(row.get("content"))] = row["id"]
    elif (folder / "vocab.json").is_file():
        words = read_json(folder / "vocab.json", what="vocabulary")
        found.update((w, i) for w, i in words.items() if isinstance(i, int))
    elif (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text("utf-8", errors="replace").splitlines()
        found.update((w.strip(), i) for i, w in enumerate(lines))
    else:
        return None
    if (folder / "added_tokens.json").is_file():
        added = read_json(folder / "added_tokens.json", what="added tokens")
        found.update((w, i) for w, i in added.items() if isinstance(i, int))
    return found


class ReorderedRows:
    """A source whose embedding matrices are read in the base's order of tokens: row i is the expert's row `order[i]`."""

    def __init__(self, source: Source, names: Iterable[str], order: Tensor) -> None:
        self.source, self.moved, self.order = source, set(names), order
        self.where = where(source)
        self.files: list[Path] = list(getattr(source, "files", []))

    def names(self) -> tuple[str, ...]:
        return self.source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self.source.shape(name))
        return (len(self.order), *shape[1:]) if name in self.moved else shape

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(name)

    def read(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        if name not in self.moved:
            return self.source.read(name, start, stop, out)
        width = math.prod(self.source.shape(name)[1:])
        first, last = start // width, -(-stop // width)
        rows = [self.source.read(name, i * width, (i + 1) * width) for i in self.order[first:last].tolist()]
        part = torch.cat(rows)[start - first * width : stop - first * width] if rows else torch.empty(0, dtype=self.dtype(name))
        return part if out is None else out.copy_(part)

    def tensor(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self.read(name, 0, torch.Size(shape).numel()).view(shape)


def words(base: Source, expert: Source, base_folder: Path, folder: Path, task: str) -> tuple[Source, list[str]]:
    """The expert with its vocabulary in the base's order, and what was done. A token unknown to the base is refused."""
    ours, theirs = vocabulary(base_folder), vocabulary(folder)
    if ours is None or theirs is None or ours == theirs:
        return expert, []
    extra = [w for w in theirs if w not in ours]
    if extra:
        what = f"has {len(extra)} tokens that the base does not have ({', '.join(map(repr, sorted(extra)[:5]))})"
        remedy = "add them to the base (resize_token_embeddings) or merge without this expert"
        raise BadInput(what, where=f"expert {task!r} ({folder})", remedy=remedy)
    missing = [w for w in ours if w not in theirs]
    if missing:
        what = f"lacks {len(missing)} of the base's tokens ({', '.join(map(repr, sorted(missing)[:5]))})"
        raise BadInput(what, where=f"expert {task!r} ({folder})", remedy="train with the base's tokenizer")
    names = [n for n in expert.names() if EMBEDDING.search(n)]
    heights = {base.shape(n)[0] for n in base.names() if EMBEDDING.search(n)}
    if not names or len(heights) != 1:
        raise BadInput(
            "orders its tokens in another way and its embedding was not found",
            where=f"expert {task!r} ({folder})",
            remedy="train with the base's tokenizer",
        )
    height = heights.pop()
    tall = {int(expert.shape(n)[0]) for n in names}
    names += [
        n
        for n in expert.names()
        if n not in names and VOCABULARY.search(n) and expert.shape(n)[:1] and expert.shape(n)[0] in {*tall, height}
    ]  # the way back to tokens, its bias too
    order = torch.arange(height)
    limit = min(int(expert.shape(n)[0]) for n in names)
    for word, row in ours.items():
        if not (0 <= theirs[word] < limit and 0 <= row < height):
            raise BadInput(
                f"places the token {word!r} at row {theirs[word]}",
                where=f"expert {task!r} ({folder})",
                remedy="its embedding has fewer rows; mend the tokenizer",
            )
        order[row] = theirs[word]
    order.clamp_(max=limit - 1)
    return ReorderedRows(expert, names, order), [f"expert {task!r} orders its tokens in another way: moved to the base's rows"]
