"""`pluribus merge`: fine-tuned models of one base become one; `merge doctor` looks first, `merge search` tunes, and
`merge extract-lora` turns one of them into an adapter."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pluribus.errors import BadInput, unknown

RECIPE = ("schema_version", "base", "experts", "method", "settings", "dtype", "seed", "heads", "keep")


def spread(args: Sequence[str], options: Sequence[str] = ("--expert",)) -> list[str]:
    """`--expert a b c --out x` as `--expert a --expert b --expert c --out x`: words up to the next option belong to it."""
    found: list[str] = []
    current: str | None = None
    for word in args:
        if word.startswith("-") and len(word) > 1:
            current = word if word in options else None
            if current is None:
                found.append(word)
        elif current is not None:
            found += [current, word]
        else:
            found.append(word)
    return found


class _ExpertWords(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for i, word in enumerate(args):
            if word in ("--expert", "--set") and (i + 1 == len(args) or args[i + 1].startswith("-")):
                raise BadInput(f"{word} has no value", remedy=f"write {word} {'PATH …' if word == '--expert' else 'NAME=VALUE'}")
        return super().parse_args(ctx, spread(args))


class _Merge(_ExpertWords):
    """The command itself; its reserved first words are commands of their own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        for name, other in (("doctor", doctor), ("search", search), ("extract-lora", extract)):
            if args and args[0] == name:
                return other.make_context(f"{info_name} {name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def value_of(text: str) -> Any:
    """`--set` values: numbers, true, false, null and lists as in JSON; anything else is text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def settings_of(pairs: Sequence[str], option: str = "--set") -> dict[str, Any]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BadInput(f"{pair!r} is not NAME=VALUE", where=option, remedy=f"write {option} density=0.2")
        found[name] = value_of(value)
    return found


def experts_of(words: Sequence[str]) -> Any:
    """Paths, or TASK=PATH where the word as it stands is no path."""
    if any("=" in w and not Path(w).exists() for w in words):
        found: dict[str, str] = {}
        for word in words:
            task, equals, path = word.partition("=")
            if not equals or Path(word).exists():
                task, path = Path(word).resolve().name, word
            if task in found:
                raise BadInput(f"two experts are called {task!r}", where="--expert", remedy="name them apart: TASK=PATH")
            found[task] = path
        return found
    return list(words)


def recipe_of(path: str) -> dict[str, Any]:
    """A recipe file as arguments of `merge`; paths are relative to it."""
    from pluribus.files import read_yaml

    table = read_yaml(path, what="merge recipe")
    if not isinstance(table, dict):
        raise BadInput("is not a table", where=path, remedy="see pluribus merge --help")
    for key in table:
        if key not in RECIPE:
            raise unknown("key", str(key), RECIPE, where=path)
    if table.get("schema_version", 1) != 1:
        raise BadInput(f"has schema version {table['schema_version']}", where=path, remedy="this Pluribus reads version 1")
    home = Path(path).parent
    experts, weights = {}, {}
    rows = table.get("experts")
    if not isinstance(rows, list) or not rows:
        raise BadInput("names no experts", where=path, remedy="write experts: [{path: …, task: …}]")
    for i, row in enumerate(rows):
        where = f"{path}, expert {i + 1}"
        if not isinstance(row, dict) or not isinstance(row.get("path"), str):
            raise BadInput("has no path", where=where, remedy="write {path: …, task: …}")
        for key in row:
            if key not in ("path", "task", "weight"):
                raise unknown("key", str(key), ("path", "task", "weight"), where=where)
        task = str(row.get("task", Path(row["path"]).name))
        if task in experts:
            raise BadInput(f"task {task!r} is named twice", where=where, remedy="name them apart")
        experts[task] = str(home / row["path"])
        if "weight" in row:
            if isinstance(row["weight"], bool) or not isinstance(row["weight"], (int, float)):
                raise BadInput(f"has the weight {row['weight']!r}", where=where, remedy="write a number")
            weights[task] = float(row["weight"])
    kinds = {
        "settings": (dict, "a table"),
        "heads": (list, "a list"),
        "keep": (list, "a list"),
        "method": (str, "a name"),
        "dtype": (str, "a name"),
        "base": (str, "a path"),
        "seed": (int, "a whole number"),
    }
    for key, (kind, word) in kinds.items():
        if table.get(key) is not None and not isinstance(table[key], kind):
            raise BadInput(f"{key} is not {word}", where=path, remedy=f"write {key} as {word}")
    base = table.get("base")
    return {
        "base": None if base is None else str(home / base),
        "experts": experts,
        "weights": weights or None,
        "method": table.get("method"),
        "settings": dict(table.get("settings") or {}),
        "dtype": table.get("dtype"),
        "seed": int(table.get("seed") or 0),
        "heads": list(table.get("heads") or []),
        "keep": list(table.get("keep") or []),
    }


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: what is half written is removed."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def progress_line() -> Callable[[int, int], None] | None:
    """Bytes, share and speed on one line of a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    begin, shown = time.perf_counter(), [0.0]

    def show(done: int, whole: int) -> None:
        now = time.perf_counter()
        if now - shown[0] > 0.1 or done == whole:
            shown[0] = now
            speed = done / max(now - begin, 1e-9) / 1e9
            end = "\n" if done == whole else ""
            print(
                f"\r{done / 1e9:.2f} of {whole / 1e9:.2f} GB  {100 * done / max(whole, 1):3.0f} %  {speed:.2f} GB/s",
                end=end,
                file=sys.stderr,
                flush=True,
            )

    return show


_shared = [
    click.option("--base", type=click.Path(), help="The pretrained model: a folder, a safetensors file, a .bin or .pt."),
    click.option(
        "--expert", "experts", multiple=True, metavar="E [E …]", help="Fine-tuned models (or LoRA folders), [TASK=]PATH."
    ),
    click.option("--heads", multiple=True, metavar="PATTERN", help="Tensors that stay each task's own, besides classifiers."),
    click.option("--keep", multiple=True, metavar="PATTERN", help="Tensors that stay the base's."),
]


def shared(made: Any) -> Any:
    for option in reversed(_shared):
        made = option(made)
    return made


@click.command(
    "merge",
    cls=_Merge,
    epilog="Example:  pluribus merge --base vit/ --expert ft-*/ --method ties --set density=0.2 -o merged   "
    "First words doctor, search and extract-lora are commands of their own.",
)
@click.argument("recipe", required=False, type=click.Path())
@shared
@click.option("--method", help="A merger of the catalog (pluribus catalog --family merger); default: tsv_m.")
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="A setting of the method.")
@click.option("--weight", "weights", multiple=True, metavar="TASK=W", help="An expert's weight (default 1).")
@click.option("-o", "--output", type=click.Path(), metavar="OUT", help="The folder to write.")
@click.option("--seed", type=int, help="For methods that draw (default 0).")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16", "float64"]), help="Of the result (default: the base's)."
)
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Tensors worked on at a time.")
@click.option("--no-hashes", is_flag=True, help="Do not take the inputs' SHA-256.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--dry-run", is_flag=True, help="Check everything that headers tell, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    recipe: str | None,
    base: str | None,
    experts: tuple[str, ...],
    heads: tuple[str, ...],
    keep: tuple[str, ...],
    method: str | None,
    pairs: tuple[str, ...],
    weights: tuple[str, ...],
    output: str | None,
    seed: int | None,
    dtype: str | None,
    threads: int,
    no_hashes: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Merge fine-tuned models of one base into one model folder.

    OUT is a Hugging Face folder (the trunk) with every task's own head under heads/; `pluribus export OUT --task T` puts one task
    together again. Take a RECIPE file or name base and experts here.
    """
    import pluribus.merging.run as running

    given: dict[str, Any] = {
        "base": base,
        "experts": experts_of(experts),
        "weights": None,
        "method": None,
        "settings": {},
        "dtype": None,
        "seed": 0,
        "heads": [],
        "keep": [],
    }
    if recipe is not None:
        if base or experts:
            raise BadInput("a recipe and --base or --expert are given", where=recipe, remedy="use one or the other")
        given = recipe_of(recipe)
    elif not experts:
        raise BadInput("there is no expert", remedy="write --base BASE --expert E [E …], or name a recipe")
    given["settings"].update(settings_of(pairs))
    given["heads"] += heads
    given["keep"] += keep
    if weights:
        given["weights"] = {**(given["weights"] or {}), **settings_of(weights, "--weight")}
        for task, weight in given["weights"].items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise BadInput(f"the weight of {task!r} is {weight!r}", where="--weight", remedy="write a number")
    chosen = method or given["method"]
    name = chosen or running.DEFAULT
    if output is None and not dry_run:
        raise BadInput("no place to write is given", remedy="write -o OUT, or --dry-run")
    if name in running.ADAPTERS:
        if dry_run:
            raise BadInput(f"{name} has no dry run", where="--dry-run", remedy="leave it out")
        made = running.merge(
            given["base"], given["experts"], name, weights=given["weights"], out=output, overwrite=force, **given["settings"]
        )
        click.echo(json.dumps({"schema": 1, "path": str(made), "method": name}) if as_json else f"{made}: one adapter by {name}")
        return
    if not running.is_static(name) or running.needs(name) - given["settings"].keys():
        raise BadInput(
            f"{name} needs data or a model, which a command line cannot give",
            where="--method",
            remedy="use pluribus.merging from Python, or a method that needs none",
        )
    begin = time.perf_counter()
    plan, made, each = running.prepare(
        given["base"],
        given["experts"],
        name,
        weights=given["weights"],
        heads=given["heads"],
        keep=given["keep"],
        settings=given["settings"],
    )
    from pluribus.merging.folder import check_place, sizes

    dtypes = running.dtypes_of(plan, dtype or given["dtype"])
    read, written = sizes(plan, dtypes)
    if dry_run:
        if output is not None:
            check_place(Path(output), plan, written, force)
        _tell(
            {
                "method": name,
                "default": chosen is None,
                "merged": len(plan.merged),
                "copied": list(plan.copied),
                "heads": {t: list(v) for t, v in plan.heads.items()},
                "weights": dict(zip(plan.experts, each)),
                "bytes_read": read,
                "bytes_written": written,
                "notes": plan.notes,
                "written": False,
            },
            as_json,
        )
        return
    with interruptible():
        done = running.merge(
            given["base"],
            given["experts"],
            name,
            weights=given["weights"],
            heads=given["heads"],
            keep=given["keep"],
            seed=given["seed"] if seed is None else seed,
            dtype=dtype or given["dtype"],
            out=output,
            threads=threads,
            progress=progress_line(),
            overwrite=force,
            hashes=not no_hashes,
            **given["settings"],
        )
    seconds = time.perf_counter() - begin
    _tell(
        {
            "method": name,
            "default": chosen is None,
            "path": str(done.path),
            "merged": done.merged,
            "copied": list(plan.copied),
            "heads": {t: list(v) for t, v in done.heads.items()},
            "weights": dict(zip(plan.experts, each)),
            "bytes_read": done.bytes_read,
            "bytes_written": done.bytes_written,
            "seconds": round(seconds, 3),
            "notes": done.notes,
            "written": True,
        },
        as_json,
    )


def _tell(about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema": 1, **about}, indent=1, ensure_ascii=False))
        return
    why = " (the default; choose another with --method)" if about["default"] else ""
    size, count = about["bytes_written"] / 1e6, len(about["weights"])
    experts = f"{count} expert{'s' * (count != 1)}"
    if about["written"]:
        speed = (about["bytes_read"] + about["bytes_written"]) / max(about["seconds"], 1e-9) / 1e9
        click.echo(
            f"{about['path']}: {experts} merged by {about['method']}{why}, {size:.1f} MB "
            f"in {about['seconds']:.1f} s, {speed:.2f} GB/s"
        )
    else:
        read = about["bytes_read"] / 1e6
        click.echo(f"would merge {experts} by {about['method']}{why}: read {read:.1f} MB, write {size:.1f} MB; nothing written")
    click.echo(f"  merged tensors: {about['merged']}; copied from the base: {len(about['copied'])}")
    for task, names in about["heads"].items():
        click.echo(f"  {task}: own tensors {', '.join(names) or 'none'}; weight {about['weights'][task]:g}")
    for note in about["notes"]:
        click.echo(f"  note: {note}")


@click.command(
    "doctor", cls=_ExpertWords, epilog="Example:  pluribus merge doctor --base vit/ --expert ft-*/ --picture doctor.svg"
)
@shared
@click.option("--picture", type=click.Path(), metavar="FILE.svg", help="Draw cosine, conflict and overlap of every layer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    base: str | None, experts: tuple[str, ...], heads: tuple[str, ...], keep: tuple[str, ...], picture: str | None, as_json: bool
) -> None:
    """Look before merging: same base? heads? where do the experts disagree? what does each road cost?"""
    if base is None or not experts:
        raise BadInput("the doctor needs a base and experts", remedy="write --base BASE --expert E [E …]")
    from pluribus.files import atomic_file
    from pluribus.merging.doctor import examine
    from pluribus.merging.run import prepare

    plan, _, _ = prepare(base, experts_of(experts), "task_arithmetic", heads=heads, keep=keep)
    found = examine(plan)
    if picture is not None:
        with atomic_file(picture) as aside:
            aside.write_text(found.svg(), "utf-8")
    if as_json:
        click.echo(json.dumps({"schema": 1, **found.to_dict()}, indent=1, ensure_ascii=False))
        return

    def show(value: float | None) -> str:
        return "    –" if value is None else f"{value:5.2f}"

    click.echo(f"{len(found.tasks)} expert{'s' * (len(found.tasks) != 1)}: {', '.join(found.tasks)}")
    click.echo(f"{'layer':40} {'entries':>10} {'distance':>9} {'cosine':>7} {'conflict':>9} {'overlap':>8}")
    for row in (*found.layers, found.whole):
        far = max(row.distance.values())
        click.echo(
            f"{row.name[:40]:40} {row.entries:10} {far:9.4f} {show(row.cosine):>7} {show(row.conflict):>9} {show(row.overlap):>8}"
        )
    for task, names in found.heads.items():
        click.echo(f"head of {task}: {', '.join(names) or 'none'}")
    for line in (*found.notes, *found.warnings):
        click.echo(f"note: {line}")
    for road in found.roads:
        click.echo(f"{road['road']:40} {road['bytes'] / 1e6:10.1f} MB   needs {road['needs']}")


@click.command(
    "search",
    cls=_ExpertWords,
    epilog="Example:  pluribus merge search --base vit/ --expert ft-*/ --method ties "
    "--space density=0.1:0.9 --space scale=0.5:2.0 --score mine.py:accuracy",
)
@shared
@click.option("--method", required=True, help="A merger of the catalog.")
@click.option("--space", multiple=True, required=True, metavar="NAME=LOW:HIGH|A,B", help="What to try: a range or choices.")
@click.option(
    "--score", required=True, metavar="FILE.py:FUNCTION", help="Code you trust: merged tensors by name → score, up is good."
)
@click.option("--trials", type=click.IntRange(1), default=30, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def search(
    base: str | None,
    experts: tuple[str, ...],
    heads: tuple[str, ...],
    keep: tuple[str, ...],
    method: str,
    space: tuple[str, ...],
    score: str,
    trials: int,
    seed: int,
    as_json: bool,
) -> None:
    """Tune a merger's settings on validation data (extra `tune`)."""
    if not experts:
        raise BadInput("there is no expert", remedy="write --base BASE --expert E [E …]")
    from pluribus.merging.search import search as run
    from pluribus.study.checkpoints import code_of

    ranges: dict[str, Any] = {}
    for name, text in ((n, str(v)) for n, v in settings_of(space, "--space").items()):
        low, colon, high = text.partition(":")
        if colon:
            bounds = value_of(low), value_of(high)
            if not all(isinstance(b, (int, float)) for b in bounds):
                raise BadInput(f"the range of {name} is {text!r}", where="--space", remedy="write NAME=LOW:HIGH")
            ranges[name] = bounds
        else:
            ranges[name] = [value_of(word) for word in text.split(",")]
    function, _ = code_of(score, "--score")
    found = run(base, experts_of(experts), method, ranges, function, trials=trials, seed=seed, heads=heads, keep=keep)
    if as_json:
        rows = [{"settings": s, "score": v} for s, v in found.trials]
        click.echo(json.dumps({"schema": 1, "settings": found.settings, "score": found.score, "trials": rows}, indent=1))
        return
    words = " ".join(f"--set {n}={json.dumps(v)}" for n, v in found.settings.items() if not n.startswith("weight:"))
    each = " ".join(f"--weight {n.removeprefix('weight:')}={v}" for n, v in found.settings.items() if n.startswith("weight:"))
    click.echo(f"best of {len(found.trials)} trials: {found.score:.6g} with --method {method} {words} {each}".rstrip())


@click.command("extract-lora", epilog="Example:  pluribus merge extract-lora --base vit/ --expert cars/ --rank 16 -o cars-lora")
@click.option("--base", required=True, type=click.Path(), help="The pretrained model.")
@click.option("--expert", required=True, type=click.Path(), help="The model fine-tuned from it.")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="DIR", help="The adapter folder to write.")
@click.option("--rank", type=int, help="Rank of every matrix (default 16, where nothing else is given).")
@click.option("--energy", type=float, help="Share of the update to keep in each matrix; the rank follows.")
@click.option("--error", type=float, help="Largest relative error of a matrix; the rank follows.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="Matrices left out (default: embeddings).")
@click.option("--task-type", help="As PEFT calls it: SEQ_CLS, CAUSAL_LM, …")
@click.option("--force", is_flag=True, help="Replace DIR if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def extract(
    base: str,
    expert: str,
    output: str,
    rank: int | None,
    energy: float | None,
    error: float | None,
    skip: tuple[str, ...],
    task_type: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a full fine-tune into a PEFT adapter: the best low-rank factors of each matrix's update, its error printed."""
    from pluribus.merging.extract_lora import SKIP, extract_lora

    if rank is None and energy is None and error is None:
        rank = 16
    with interruptible():
        found = extract_lora(
            base, expert, output, rank=rank, energy=energy, error=error, skip=skip or SKIP, task_type=task_type, overwrite=force
        )
    if as_json:
        rows = [{"tensor": name, "rank": r, "error": e} for name, r, e in found.rows]
        about = {"path": str(found.path), "rows": rows, "error": found.error, "left_out": found.left_out}
        click.echo(json.dumps({"schema": 1, **about}, indent=1))
        return
    click.echo(f"{found.path}: {len(found.rows)} matrices")
    click.echo(str(found))
