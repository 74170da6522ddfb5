"""`merge`: experts of one base become one set of weights, in memory or from folder to folder."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from fnmatch import fnmatch
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from pluribus import catalog
from pluribus.errors import BadInput, unknown
from pluribus.merging.algebra import Method, WeightedSum
from pluribus.merging.batch_norm import reestimate
from pluribus.merging.checkpoints import MergePlan, compare, config, words
from pluribus.merging.greedy_soup import greedy_soup
from pluribus.merging.source import Source, is_statistic, open_source
from pluribus.merging.stream import CHUNK, Engine

ADAPTERS = ("lora_cat", "lora_svd", "lora_linear")  # LoRA folders in, a LoRA folder out
# what changes a model without changing the shape of a tensor
STRUCTURE = (
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "hidden_act",
    "activation_function",
    "activation",
    "position_embedding_type",
)
DEFAULT = "tsv_m"  # the best of the methods that need no data and no choice


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """The `Method` of a static merger, its settings checked; unknown names and settings are errors with the nearest."""
    made = builder(name)
    known = inspect.signature(made).parameters
    for setting in settings:
        if setting not in known:
            raise unknown(f"setting of {name}", setting, known, where="settings")
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.name not in settings:
            raise BadInput(f"{name} needs {parameter.name}", where="settings", remedy=f"give {parameter.name}=…")
    _check_types(made, settings, name)
    try:
        found: Method = made(**settings)
    except TypeError as error:
        raise BadInput(f"a setting of {name} has the wrong type ({error})", where="settings", remedy="see its help") from error
    return found


WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list", NoneType: "null"}
KINDS: dict[Any, Any] = {int: Integral, float: Real, str: str, bool: bool, tuple: (tuple, list), NoneType: NoneType}


def _check_types(made: Callable[..., Any], settings: Mapping[str, Any], name: str) -> None:
    """Settings against the annotations of what they are given to; numbers that are whole may stand for fractions."""
    hints = get_type_hints(made)
    for setting, value in settings.items():
        options = get_args(hints[setting]) if get_origin(hints[setting]) is UnionType else (hints[setting],)
        plain = [get_origin(o) or o for o in options]
        if not all(o in WORDS for o in plain):
            continue  # tensors, sources, fixed words: the method itself knows them
        if not any(isinstance(value, KINDS[o]) and isinstance(value, bool) == (o is bool) for o in plain):
            wanted = " or ".join(WORDS[o] for o in plain)
            raise BadInput(f"{setting} is {value!r}", where=f"settings of {name}", remedy=f"give {wanted}")


def builder(name: str) -> Callable[..., Any]:
    """What makes a merger of that name: a function of settings alone (static), or of base and experts (learned)."""
    made: Callable[..., Any] = catalog.get("merger", name).resolve()
    return made


def is_static(name: str) -> bool:
    """Whether a merger is a function of the weights alone, so that it can run from folder to folder."""
    hints = getattr(builder(name), "__annotations__", {})
    return hints.get("return") in (Method, "Method")


def needs(name: str) -> set[str]:
    """The settings without which a merger cannot be made: what was collected from data."""
    return {p.name for p in inspect.signature(builder(name)).parameters.values() if p.default is p.empty}


def names_of(experts: Any) -> dict[str, Any]:
    """Experts by task: a mapping as it is, a sequence by the names of its folders (or expert1, expert2, …)."""
    if isinstance(experts, Mapping):
        if not experts:
            raise BadInput("there is no expert", where="experts", remedy="name at least one fine-tuned model")
        if all(isinstance(v, Tensor) for v in experts.values()):
            raise BadInput("is one state dict", where="experts", remedy="give {task: state dict} or a list of them")
        return {str(task): expert for task, expert in experts.items()}
    if isinstance(experts, (str, Path, nn.Module)):
        experts = [experts]
    found: dict[str, Any] = {}
    for i, expert in enumerate(experts):
        name = Path(os.path.abspath(expert)).name if isinstance(expert, (str, Path)) else f"expert{i + 1}"
        if name in found:
            if not isinstance(expert, (str, Path)):
                raise BadInput(f"two experts are called {name!r}", where="experts", remedy="give {task: expert}")
            first, name = found.pop(name), "-".join(Path(os.path.abspath(expert)).parts[-2:])
            other = "-".join(Path(os.path.abspath(first)).parts[-2:])
            if name == other or name in found or other in found:
                raise BadInput(f"two experts are called {name!r}", where="experts", remedy="name the tasks: TASK=PATH")
            found[other] = first
        found[name] = expert
    if not found:
        raise BadInput("there is no expert", where="experts", remedy="name at least one fine-tuned model")
    return found


def weights_of(weights: Any, tasks: Sequence[str], method: Method, name: str) -> list[float]:
    """One weight a task, checked against what the method takes."""
    if weights is None:
        return [1.0] * len(tasks)
    if isinstance(weights, Mapping):
        for task in weights:
            if task not in tasks:
                raise unknown("task", str(task), tasks, where="weights")
        weights = [weights.get(task, 1.0) for task in tasks]
    found = [float(w) for w in weights]
    if len(found) != len(tasks):
        raise BadInput(f"there are {len(found)} weights for {len(tasks)} experts", where="weights", remedy="give one each")
    if not all(math.isfinite(w) for w in found):
        raise BadInput("a weight is not finite", where="weights", remedy="use finite numbers")
    if not method.weighted and len(set(found)) > 1:
        raise BadInput(f"{name} takes no weights", where="weights", remedy="leave them out")
    if method.positive and min(found) <= 0:
        raise BadInput(f"{name} needs weights above 0, one is {min(found):g}", where="weights", remedy="leave that expert out")
    return found


def prepare(
    base: Any,
    experts: Any,
    method: str,
    *,
    weights: Any = None,
    heads: Sequence[str] = (),
    keep: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> tuple[MergePlan, Method, list[float]]:
    """All that can be known from headers: what merges, how, with which weights. Raises for whatever does not fit."""
    made = method_of(method, settings or {})
    given = names_of(experts)
    low, high = made.experts
    if base is not None and made.space == "weights" and low == 2 and len(given) == 1:
        given = {"base": base, **given}  # two models, of which the base is the first
    if not low <= len(given) <= high:
        wanted = f"{low}" if low == high else f"at least {low}" if len(given) < low else f"at most {high}"
        what = f"{method} takes {wanted} experts, {len(given)} are given"
        raise BadInput(what, where="experts", remedy="choose another method")
    if base is None and made.space != "weights":
        raise BadInput(f"{method} needs the base the experts were trained from", where="base", remedy="name it")
    if made.task is not None and made.task not in given:
        raise unknown("task", made.task, given, where="task")
    paths = {task: Path(e) for task, e in given.items() if isinstance(e, (str, Path))}
    sources = {task: read(e, base) for task, e in given.items()}
    first = next(iter(given))
    origin = sources[first] if base is None else read(base)
    home = Path(base) if isinstance(base, (str, Path)) else paths.get(first) if base is None else None
    same = [] if base is None or home is None else [t for t, p in paths.items() if p.resolve() == home.resolve()]
    notes = [f"expert {task!r} is the base itself and pulls every task towards it" for task in same]
    labels = {task: config(path).get("id2label") for task, path in paths.items() if path.is_dir()}
    if home is not None and home.is_dir():
        for task, path in paths.items():
            if path.is_dir() and (path / "config.json").is_file():
                sources[task], said = words(origin, sources[task], home, path, task)
                notes += said + _differences(home, path, task)
    plan = compare(origin, sources, heads=heads, keep=keep, labels=labels)
    plan.notes[:0] = notes
    plan.notes += [n for source in sources.values() for n in getattr(source, "notes", [])]
    return plan, made, weights_of(weights, tuple(given), made, method)


def read(given: Any, base: Any = None) -> Source:
    """A source; a folder with an adapter_config.json is a LoRA over `base`."""
    if isinstance(given, (str, Path)) and (Path(given) / "adapter_config.json").is_file():
        from pluribus.merging.lora import Lora

        if base is None:
            raise BadInput("is an adapter and no base is named", where=str(given), remedy="name the base it was trained on")
        return Lora(open_source(base), given, base if isinstance(base, (str, Path)) else None)
    found: Source = open_source(given)
    return found


def _differences(home: Path, folder: Path, task: str) -> list[str]:
    """What the configurations say that a merge should mention."""
    ours, theirs = config(home), config(folder)
    kinds = ours.get("model_type"), theirs.get("model_type")
    if all(kinds) and kinds[0] != kinds[1]:
        what = f"is a {kinds[1]!r}, the base a {kinds[0]!r}: another architecture"
        raise BadInput(what, where=f"expert {task!r} ({folder})", remedy="give an expert of this base")
    for key in STRUCTURE:
        if ours.get(key) is not None and theirs.get(key) is not None and ours[key] != theirs[key]:
            what = f"has {key} {theirs[key]!r}, the base {ours[key]!r}: equal shapes, another architecture"
            raise BadInput(what, where=f"expert {task!r} ({folder})", remedy="give an expert of this base")
    found = []
    for file, word in (
        ("chat_template.jinja", "chat template"),
        ("preprocessor_config.json", "image processor"),
        ("tokenizer_config.json", "tokenizer settings"),
    ):
        a, b = home / file, folder / file
        if a.is_file() and b.is_file() and a.read_bytes() != b.read_bytes():
            found.append(f"expert {task!r} has another {word}; the base's is kept")
    return found


class MergedTensors(Mapping[str, Tensor]):
    """The merged tensors by name, each computed when it is asked for."""

    def __init__(self, plan: MergePlan, engine: Engine) -> None:
        self.plan, self.engine = plan, engine
        self._names = tuple(n for n in plan.base.names() if n in {*plan.merged, *plan.copied, *plan.tied})

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        name = self.plan.tied.get(name, name)
        if name in self.plan.copied:
            return self.plan.base.tensor(name)
        return self.engine.tensor(name)


def merge(
    base: Any = None,
    experts: Any = (),
    method: str = DEFAULT,
    *,
    weights: Any = None,
    heads: Any = (),
    keep: Sequence[str] = (),
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    out: str | Path | None = None,
    threads: int = 1,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    hashes: bool = True,
    shard_bytes: int | None = None,
    statistics: Iterable[Any] | None = None,
    module: nn.Module | None = None,
    **settings: Any,
) -> Any:
    """Merge `experts` of one `base` by `method`.

    base, experts: folders, safetensors files, state dicts or modules; experts by task or a list. No base: `average` and its kin.
    method: a name of the catalog's family "merger"; settings: its own parameters. "lora_cat", "lora_svd" (rank=…) and
        "lora_linear" combine PEFT LoRA folders into one (`out` is then an adapter folder).
    weights: one a task, as a list or {task: weight}; the default is 1 each.
    heads: name patterns of tensors that stay each task's own. keep: name patterns that stay the base's.
    seed: for methods that draw. dtype: of the result (default: the base's).
    out: a folder to write; without it the merged tensors come back in memory.
    threads: tensors worked on at a time; chunk: entries of each input held at a time. Neither changes the result.
    progress: called with (bytes done, bytes in all). overwrite: replace `out`. hashes: record the inputs' SHA-256.
    shard_bytes: split the output into files of at most that size.
    statistics: batches of inputs (see `batch_norm.reestimate`) on which the batch norms' running statistics are estimated anew,
        in `module` (default: the base, where it is a module), which is not changed. Without them the experts' are averaged,
        which fits no merged weights well.

    Returns the merged state dict (tensors by the base's names, tied names sharing storage), or with `out` a
    `pluribus.merging.folder.Written`. A learned method (`adamerging`, …) takes its own arguments as settings and returns what it
    returns. Raises `BadInput` before any data is read where names, shapes, settings or disk space do not fit, and `NonFinite`
    that names expert and tensor.
    """
    if statistics is not None:
        if out is not None or method in ADAPTERS or not is_static(method):
            what = "batch-norm statistics are estimated for a merge in memory by a method that needs no data"
            raise BadInput(what, where="statistics", remedy="leave out= away, or call batch_norm.reestimate on the model")
        module = base if module is None and isinstance(base, nn.Module) else module
        if module is None:
            raise BadInput("there is no module to run the batches through", where="statistics", remedy="give module=")
    if method in ADAPTERS:
        return _adapters(experts, method, weights, out, overwrite, settings)
    if method == "greedy_soup":
        return _soup(base, experts, settings, heads=heads, keep=keep, out=out, dtype=dtype, overwrite=overwrite, hashes=hashes)
    if not is_static(method):
        if out is not None:
            raise BadInput(f"{method} learns from data and gives tensors", where="out", remedy="save what it returns")
        made = builder(method)
        if not {"base", "experts"} <= set(inspect.signature(made).parameters):
            raise BadInput(
                f"{method} does not merge weights", where="method", remedy=f"use {catalog.get('merger', method).target}"
            )
        common = {"weights": weights, "heads": heads or None, "keep": keep or None, "seed": seed or None, "progress": progress}
        taken = inspect.signature(made).parameters
        return made(base, names_of(experts), **{k: v for k, v in common.items() if v is not None and k in taken}, **settings)
    plan, recipe_, each = prepare(base, experts, method, weights=weights, heads=heads, keep=keep, settings=settings)
    dtypes = dtypes_of(plan, dtype)
    if out is not None:
        from pluribus.merging.folder import write

        recipe = {"method": method, "settings": settings, "weights": dict(zip(plan.experts, each)), "seed": seed}
        return write(
            plan,
            recipe_,
            each,
            Path(out),
            recipe=recipe,
            seed=seed,
            dtypes=dtypes,
            threads=threads,
            chunk=chunk,
            base=base,
            experts=names_of(experts),
            progress=progress,
            overwrite=overwrite,
            hashes=hashes,
            shard_bytes=shard_bytes,
        )
    engine = Engine(plan.base, plan.experts, plan.merged, recipe_, weights=each, seed=seed, dtypes=dtypes, chunk=chunk)
    if progress is not None:
        total, done = _bytes(plan), 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        engine.progress = count
    found = {n: torch.empty(plan.base.shape(n), dtype=dtypes.get(n, plan.base.dtype(n))) for n in plan.merged}
    flat = {n: t.view(-1) for n, t in found.items()}

    def sink(name: str, part: Tensor, start: int) -> None:
        flat[name][start : start + len(part)] = part

    engine.run(sink, threads=threads)
    state: dict[str, Tensor] = {}
    for name in plan.base.names():
        if name in found:
            state[name] = found[name]
        elif name in plan.tied:
            state[name] = found[plan.tied[name]]
        elif name in plan.copied:
            state[name] = plan.base.tensor(name)
    if statistics is not None and module is not None:
        _reestimated(state, module, statistics)
    return state


def _reestimated(state: dict[str, Tensor], module: nn.Module, batches: Iterable[Any]) -> None:
    """Put the statistics that a copy of the module finds with these weights into the state."""
    copy = deepcopy(module)
    unknown_names = copy.load_state_dict(state, strict=False).unexpected_keys
    if unknown_names:
        what = f"has no tensor {unknown_names[0]!r}"
        raise BadInput(what, where="module", remedy="give a module of the base's architecture")
    if not reestimate(copy, batches):
        raise BadInput("has no batch norm", where="module", remedy="leave statistics= away")
    found = copy.state_dict()
    state.update({n: found[n].to(t.dtype) for n, t in state.items() if is_statistic(n) and n in found})


def _bytes(plan: MergePlan) -> int:
    return sum(
        math.prod(plan.base.shape(n)) * (plan.base.dtype(n).itemsize + sum(e.dtype(n).itemsize for e in plan.experts.values()))
        for n in plan.merged
    )


def dtypes_of(plan: MergePlan, dtype: torch.dtype | str | None) -> dict[str, torch.dtype]:
    if dtype is None:
        return {}
    if isinstance(dtype, str):
        options = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
        if dtype not in options:
            raise unknown("dtype", dtype, options, where="dtype")
        dtype = options[dtype]
    return dict.fromkeys(plan.merged, dtype)


def _adapters(experts: Any, method: str, weights: Any, out: str | Path | None, overwrite: bool, settings: dict[str, Any]) -> Any:
    """LoRA folders into one LoRA folder. What all of them hold whole and equal is in it (of one adapter: everything); what a task
    holds whole is under heads/ too, and README.md says what differs."""
    from pluribus.merging.folder import safe
    from pluribus.merging.lora import combine, held_whole, read_adapter, write_adapter

    given = names_of(experts)
    if out is None:
        raise BadInput(f"{method} writes an adapter folder", where="out", remedy="name it")
    for setting in settings:
        if setting != "rank" or method != "lora_svd":
            raise unknown(f"setting of {method}", setting, ["rank"] if method == "lora_svd" else [], where="settings")
    each = weights_of(weights, tuple(given), Method(WeightedSum()), method)
    for path in given.values():
        if not isinstance(path, (str, Path)) or not (Path(path) / "adapter_config.json").is_file():
            raise BadInput("is not a PEFT adapter folder", where=str(path), remedy="use another method for full checkpoints")
    factors = combine(list(given.values()), weights=each, how=method.removeprefix("lora_"), rank=settings.get("rank"))
    read = {task: read_adapter(path) for task, path in given.items()}
    bases = {str(about.get("base_model_name_or_path") or "") for about, _, _ in read.values()}
    if len(bases) > 1:
        raise BadInput(f"the adapters name several bases ({', '.join(sorted(bases))})", where="experts", remedy="merge in full")
    transposed = any(about.get("fan_in_fan_out") for about, _, _ in read.values())
    if transposed:  # the factors are laid out as the weights are, [in, out]
        factors = {m: f if f.embedding else replace(f, left=f.right.T, right=f.left.T) for m, f in factors.items()}
    whole, own = held_whole({safe(task): (updates, tensors) for task, (_, updates, tensors) in read.items()})
    heads = {task: mine for task, mine in own.items() if mine}
    differ = {task: sorted(set(mine) - set(whole)) for task, mine in heads.items() if set(mine) - set(whole)}
    lines = [f"Combined by `{method}` from {', '.join(given)}.", ""]
    if differ:
        lines += ["What differs between the adapters is each task's own and not in the combination:", ""]
        lines += [f"- heads/{task}.safetensors: {', '.join(names)}" for task, names in differ.items()]
    card = "\n".join(lines) + "\n"
    kinds = {about.get("task_type") for about, _, _ in read.values()}
    write_adapter(
        out,
        factors,
        base=bases.pop(),
        overwrite=overwrite,
        transposed=transposed,
        whole=whole,
        heads=heads,
        card=card,
        task_type=kinds.pop() if len(kinds) == 1 and not differ else None,
    )
    return Path(out)


def _soup(base: Any, experts: Any, settings: dict[str, Any], **rest: Any) -> Any:
    """The greedy soup: averages are looked at through a lazy state dict, so that scoring decides what is held."""
    known = {"score"}
    for setting in settings:
        if setting not in known:
            raise unknown("setting of greedy_soup", setting, known, where="settings")
    given, patterns = names_of(experts), rest.pop("heads")
    whole, *_ = prepare(base, given, "average", heads=patterns, keep=rest["keep"])

    def heads(chosen: Sequence[str]) -> list[str]:
        """The patterns that reach a tensor of the base or of these experts: another expert's head may be its own."""
        names = {name for source in (whole.base, *(whole.experts[task] for task in chosen)) for name in source.names()}
        return [pattern for pattern in patterns if any(fnmatch(name, pattern) for name in names)]

    def average(chosen: list[str]) -> Mapping[str, Tensor]:
        mine = {task: given[task] for task in chosen}
        plan, made, each = prepare(base, mine, "average", heads=heads(chosen), keep=rest["keep"])
        return MergedTensors(plan, Engine(plan.base, plan.experts, plan.merged, made, weights=each))

    soup, _ = greedy_soup(average, list(given), settings.get("score"))  # type: ignore[arg-type]
    return merge(base, {task: given[task] for task in soup}, "average", heads=heads(soup), **rest)
