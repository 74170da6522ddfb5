"""`pluribus study`: one table with several targets becomes one model, with a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pluribus.errors import BadInput
from pluribus.options import pairs, reading, reading_options, roles, table_options

EXAMPLE = """Examples:

\b
  pluribus study loans.parquet --id loan --split time:opened --group customer
      --target default --target loss:regression --metric default=gini --plan
  pluribus study study.yaml --budget 2h
  pluribus study checkpoints.yaml --evaluate mine.py:accuracy
"""


@click.command("study", epilog=EXAMPLE)
@click.argument("table", type=click.Path(), metavar="TABLE|STUDY.yaml")
@table_options
@reading_options
@click.option("--metric", "metrics", multiple=True, metavar="TASK=METRIC", help="Main metric of a task; repeatable.")
@click.option("--slice", "slices", multiple=True, metavar="COL", help="Also say the metrics for each value of COL; repeatable.")
@click.option(
    "--tolerance",
    multiple=True,
    metavar="[TASK=]X",
    help="Loss that does not matter: in the metric's unit (0.01), or of the specialist's value (2%); repeatable.",
)
@click.option(
    "--candidate", "candidates", multiple=True, metavar="NAME", help="Run these instead of the default ones; +NAME: beside them."
)
@click.option("--balancers", metavar="NAMES|all", help="Also try these balancers on the shared bottom (a,b,…).")
@click.option("--backbone", metavar="NAME|DIR", help="Text encoder: minilm, small or a folder (default: minilm if there).")
@click.option("--lgbm-params", type=click.Path(), metavar="FILE", help="YAML or JSON of LightGBM parameters.")
@click.option("--champion", type=click.Path(), metavar="FILE", help="Your own model's predictions, as one more specialist.")
@click.option("--budget", metavar="TIME", help="Core-seconds in all: 90s, 10m, 2h (default 10m).")
@click.option("--seeds", type=int, help="Trainings of each finalist on one valid part (default 3).")
@click.option("--folds", type=int, help="Folds in place of one valid part (default 5 below 3,000 units; 1: never).")
@click.option(
    "--prefer",
    type=click.Choice(["one", "best", "cheap"]),
    help="Recommend the one model where it is safe (default), the best option, or the cheapest that is safe.",
)
@click.option("--jobs", type=int, help="Trainings at a time (default: the number of cores).")
@click.option("--processes", type=int, default=1, metavar="N", help="Processes that train one joint network together.")
@click.option(
    "--allow-committee/--no-committee", default=None, help="Whether several candidates may answer together (default: they may)."
)
@click.option("--seed", type=int, help="Seed of split and search (default 0).")
@click.option("--name", help="Name of the run (default: the file's stem).")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="DIR", help="Where runs are kept.")
@click.option(
    "--evaluate", metavar="FILE.py:FUNCTION", help="For a study of checkpoints: (model, task, split) → id, score; your code."
)
@click.option("--plan", "plan_only", is_flag=True, help="Check, print candidates and costs, write split.parquet; stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict (or the plan) as JSON.")
def command(
    table: str,
    folder: str,
    jobs: int | None,
    processes: int,
    evaluate: str | None,
    plan_only: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train several roads to one model on TABLE and judge it against one model per target.

    TABLE is a CSV or Parquet file, or a study file whose keys are those of `pluribus schema`. Results land in runs/NAME/:
    report.html, results.parquet, choice.json, model/. The same call again goes on where it stopped.
    """
    if _of_checkpoints(table):
        _checkpoints(table, folder, evaluate, as_json, {**options, "plan": plan_only or None, "jobs": jobs})
        return
    if evaluate is not None:
        raise BadInput("is for studies of checkpoints", where="--evaluate", remedy="name a file with kind: checkpoints")
    spec = _spec(table, options)
    from pluribus.study import Study

    study = Study.from_spec(spec, folder=folder, jobs=jobs, processes=processes, quiet=as_json)
    if plan_only:
        planned = study.plan()
        if as_json:
            click.echo(json.dumps({"candidates": [vars(road) for road in planned.roads], "left_out": planned.left_out}))
            return
        for note in (*study.table.notes, *study.split.notes):
            click.echo(note)
        click.echo(planned.text())
        click.echo(f"split written to {study.folder / 'split.parquet'}")
        return
    for note in () if as_json else (*study.table.notes, *study.split.notes):
        click.echo(note, err=True)
    result = study.run()
    if as_json:
        click.echo(json.dumps(None if result.verdict is None else result.verdict.to_dict()))
        return
    from pluribus.study.report.terminal import spoken

    click.echo(spoken(result.folder))


def _of_checkpoints(table: str) -> bool:
    from pluribus.files import read_yaml

    if Path(table).suffix not in (".yaml", ".yml"):
        return False
    held = read_yaml(table, what="study file")
    return isinstance(held, dict) and held.get("kind") == "checkpoints"


def _checkpoints(table: str, folder: str, evaluate: str | None, as_json: bool, options: dict[str, Any]) -> None:
    """A study of checkpoints."""
    from pluribus.study.checkpoints import CheckpointsStudy, code_of, load, parse
    from pluribus.study.report.terminal import spoken

    given = {key: value for key, value in options.items() if value not in (None, ())}
    for key in given:
        if key not in ("budget", "seed", "name"):
            option = f"--{key.rstrip('_').replace('_', '-')}"
            raise BadInput(f"{option} is for studies of a table", where=table, remedy="leave it out")
    spec = load(table)
    spec = parse({**spec.model_dump(exclude_unset=True), **given}, where=table)
    if evaluate is None:
        raise BadInput("nothing says how to score a model", where=table, remedy="add --evaluate FILE.py:FUNCTION")
    function, code = code_of(evaluate)
    study = CheckpointsStudy(
        spec,
        function,
        folder=folder,
        named=evaluate,
        code=code,
        say=None if as_json else (lambda line: click.echo(line, err=True)),
    )
    result = study.run()
    if as_json:
        click.echo(json.dumps(None if result.verdict is None else result.verdict.to_dict()))
        return
    click.echo(spoken(result.folder))


def _spec(table: str, options: dict[str, Any]) -> Any:
    from pluribus.files import read_yaml
    from pluribus.study import spec as specs

    given: dict[str, Any] = {key: value for key, value in options.items() if value not in (None, ())}
    given |= roles(options) | reading(options)
    if "metrics" in given:
        given["metrics"] = pairs(given["metrics"], "--metric")
    if "tolerance" in given:
        whole = [word for word in given["tolerance"] if "=" not in word]
        if len(whole) > 1:
            raise BadInput("is given twice for all tasks", where="--tolerance", remedy="keep one, or write TASK=X")
        named = pairs([word for word in given["tolerance"] if "=" in word], "--tolerance")
        given["tolerance"] = {**dict.fromkeys(("",) if whole else (), *whole), **named}
    for name in ("targets", "candidates", "slices"):
        if name in given:
            given[name] = list(given[name])
    if "balancers" in given:
        given["balancers"] = [name.strip() for name in given["balancers"].split(",") if name.strip()]
    if "lgbm_params" in given:
        params = read_yaml(given["lgbm_params"], what="parameter file")
        if not isinstance(params, dict):
            raise BadInput("holds no `name: value` lines", where=given["lgbm_params"])
        given["lgbm_params"] = params
    if Path(table).suffix in (".yaml", ".yml"):
        held = specs.load(table).model_dump(exclude_unset=True)
        return specs.parse({**held, **given}, where=table)
    if not Path(table).exists():
        raise BadInput("no such file", where=table, remedy="check the path")
    if "targets" not in given:
        raise BadInput("no target is named", where="study", remedy="add --target COLUMN for each column to predict")
    if given.get("champion") and not Path(given["champion"]).exists():
        raise BadInput("no such champion file", where=given["champion"], remedy="check the path")
    return specs.parse({"table": table, **given}, where="study")
