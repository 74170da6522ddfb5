"""One big training, by one process or by several that share every batch:

    torchrun --standalone --nproc-per-node 2 -m pluribus.training TABLE --target default --target loss:regression -o model
    python -m pluribus.training prepared -o model --candidate mmoe --set lr=0.001

Every process holds the model and takes its share of each batch's rows; the result is that of the union batch. After each epoch
the first process writes a snapshot below `--work`; whatever ends, the same command goes on from the last one, with the same or
another number of processes. All processes must see the same disk.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch
import torch.distributed as dist

from pluribus import catalog
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput, unknown
from pluribus.files import atomic_file, read_json
from pluribus.modeling import Budget, Candidate, Fitted
from pluribus.options import reading, reading_options, roles, table_options
from pluribus.training.processes import Gone, together, world

EXAMPLE = """Examples:

\b
  python -m pluribus.training loans.parquet --target default --target loss:regression --id loan -o model
  torchrun --standalone --nproc-per-node 2 -m pluribus.training prepared -o model --set epochs=200
"""


@click.command("pluribus.training", epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("table", type=click.Path(), metavar="TABLE|PREPARED")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="DIR", help="The model folder to write.")
@click.option("--candidate", default="shared_bottom_equal", show_default=True, metavar="NAME", help="See `pluribus catalog`.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the candidate; repeatable.")
@table_options
@reading_options
@click.option("--seed", default=0, show_default=True, help="Of split, initial weights and shuffling.")
@click.option("--budget", default=None, type=float, metavar="SECONDS", help="Core-seconds of all processes together.")
@click.option("--work", default=None, type=click.Path(), metavar="DIR", help="Where the snapshot is kept (default: OUTPUT.work).")
@click.option("--keep", is_flag=True, help="Keep the work folder when the model is written.")
def command(
    table: str,
    output: str,
    candidate: str,
    settings: tuple[str, ...],
    seed: int,
    budget: float | None,
    work: str | None,
    keep: bool,
    targets: tuple[str, ...],
    **options: Any,
) -> None:
    """Train one candidate on TABLE (CSV or Parquet, with --target) or on a PREPARED folder, and write its model folder."""
    made = _candidate(candidate, settings)
    place, target = Path(work or f"{output}.work"), Path(output)
    rank, size = world()
    if target.exists():
        raise BadInput("exists already", where=output, remedy="choose another --output, or remove it to train again")
    if size > 1 and not made.processes:
        raise BadInput(f"{candidate!r} trains in one process", where="--candidate", remedy="start it without torchrun")
    prepared = Path(table) if (Path(table) / "prepared.json").is_file() else place / "prepared"
    named = roles(options) | reading(options)
    asked = {
        "table": str(Path(table).resolve()),
        "candidate": candidate,
        "settings": made.settings,
        "seed": seed,
        "targets": list(targets),
        **named,
    }
    _first(rank, lambda: _ready(table, prepared, place, asked, named))
    data = Prepared.load(prepared)
    data = data.with_parts(**{name: data.parts[name] for name in ("train", "valid")})
    why = made.unfit(data)
    if why is not None:
        raise BadInput(f"{candidate!r} cannot run here: {why}", where=table)
    began = time.monotonic()
    _say(f"process {rank} of {size} (pid {os.getpid()}) trains {candidate!r} on {len(data.parts['train'])} rows")
    each = math.inf if budget is None else budget / size
    fitted = made.fit(data, Budget(each, torch.get_num_threads(), place), seed)
    if rank == 0:
        fitted.save(target)
        _say(f"{output} written after {time.monotonic() - began:.0f} s{_scores(fitted)}")
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _candidate(name: str, settings: tuple[str, ...]) -> Candidate:
    import yaml

    known = [entry.name for entry in catalog.entries(family="candidate")]
    base, plus, balancer = name.partition("+")
    if base not in known:
        raise unknown("candidate", name, known, where="--candidate")
    found: dict[str, Any] = {"balancer": balancer} if plus else {}
    for word in settings:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise BadInput(f"{word!r} is not KEY=VALUE", where="--set", remedy="write --set lr=0.001")
        found[key] = yaml.safe_load(value)
    made: Candidate = catalog.get("candidate", base).resolve()(**found)
    return made


def _first(rank: int, prepare_it: Callable[[], None]) -> None:
    """The first process prepares, the others wait; what it cannot use, none can."""
    wrong: list[BadInput | None] = [None]
    if rank == 0:
        try:
            prepare_it()
        except BadInput as error:
            wrong = [error]
    if world()[1] > 1:
        with together():
            dist.broadcast_object_list(wrong)
    if wrong[0] is not None:
        raise wrong[0]


def _ready(table: str, prepared: Path, place: Path, asked: dict[str, Any], named: dict[str, Any]) -> None:
    """Take the work folder, or refuse it where another training holds it; prepare the table (with the roles that were `named`)
    unless that is done."""
    note = place / "training.json"
    if note.is_file() and _plain(read_json(note)) != _plain(json.loads(json.dumps(asked))):
        raise BadInput("holds another training", where=str(place), remedy="choose another --work, or remove it")
    if not (prepared / "prepared.json").is_file():
        if not Path(table).is_file():
            what = "no such file" if not Path(table).exists() else "is a folder without prepared.json"
            raise BadInput(what, where=table, remedy="give a CSV or Parquet file, or a folder of `Prepared.save`")
        if not asked["targets"]:
            raise BadInput("no target is named", where="--target", remedy="add --target COLUMN for each column to predict")
        read = Table.read(table, asked["targets"], **named)
        prepare(read, split(read, asked["seed"])).save(prepared)
    elif prepared.parent != place and asked["targets"]:
        raise BadInput("a prepared folder knows its targets", where="--target", remedy="leave --target out")
    with atomic_file(note) as aside:
        aside.write_text(json.dumps(asked, indent=1), "utf-8")


def _plain(asked: dict[str, Any]) -> dict[str, Any]:
    """What a training was asked for, without what was not named. The first edition called two roles by other names."""
    renamed = {"id_": "id", "how": "split"}
    return {renamed.get(name, name): value for name, value in asked.items() if value not in (None, [])}


def _scores(fitted: Fitted) -> str:
    """The best rule and the last value of each curve, for people."""
    curves = {name: values for name, values in fitted.record.get("curves", {}).items() if values}
    listed = ", ".join(f"{name} {values[-1]:.4g}" for name, values in curves.items() if values[-1] is not None)
    return f"; on validation at the end: {listed}" if listed else ""


def _say(text: str) -> None:
    print(f"pluribus.training: {text}", file=sys.stderr, flush=True)


def _stopped(signum: int, frame: FrameType | None) -> None:
    raise Gone(f"process {world()[0]} was told to stop (another process has ended, or somebody asked)")


def main() -> None:
    """Exit codes: 0, 2 for bad input, 1 where another process has ended or anything else failed; each with one line."""
    code = 1
    rank = int(os.environ.get("RANK", "0"))
    try:
        signal.signal(signal.SIGTERM, _stopped)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
            dist.init_process_group("gloo")
        command.main(standalone_mode=False)
        code = 0
    except BadInput as error:
        code = 2
        if rank == 0:
            _say(str(error))
    except click.ClickException as error:
        code = 2
        if rank == 0:
            _say(" ".join(error.format_message().split()))
    except Gone as error:
        _say(f"{error}; the last snapshot is whole, and the same command goes on from it")
    except (KeyboardInterrupt, click.Abort):
        code = 130
    sys.stderr.flush()
    sys.stdout.flush()
    if dist.is_initialized():
        if code == 0:
            dist.destroy_process_group()
        os._exit(code)  # neither wait for those who are gone, nor for gloo's threads, which can abort a process that ends
    sys.exit(code)


if __name__ == "__main__":
    main()
