"""`pluribus report`: draw a run's report again, from its files."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report", epilog="Example:  pluribus report runs/loans")
@click.argument("run", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print what the report is drawn from.")
def command(run: str, as_json: bool) -> None:
    """Draw RUN/report.html again from the files of the run; nothing is trained."""
    from pluribus.study import open_run
    from pluribus.study.report import write_report

    result = open_run(run)
    if as_json:
        click.echo((result.folder / "report.json").read_text("utf-8"))
        return
    click.echo(write_report(Path(run)))
