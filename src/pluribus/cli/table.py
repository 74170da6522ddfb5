"""`pluribus table`: methods side by side, from ledgers."""

from __future__ import annotations

from pathlib import Path

import click

# The words of `evaluation.delta_m.CONVENTIONS` and `evaluation.ledger.FORMATS`, so that --help loads neither; a test compares.
CONVENTIONS = ("mean-relative", "per-task-mean", "all-metrics", "relaimpr", "error-reduction")
FORMATS = ("md", "latex", "csv")


@click.command("table", epilog="Example:  pluribus table runs/thesis --reference single --delta mean-relative --format latex")
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@click.option("--reference", required=True, metavar="METHOD", help="The method that all others are compared with.")
@click.option("--delta", type=click.Choice(CONVENTIONS), default="mean-relative", show_default=True, help="Which Δm.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="md", show_default=True, help="How to print.")
@click.option("--paper", is_flag=True, help="Add the protocol paragraph and the BibTeX of the methods used.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead.")
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead of printing.")
def command(
    runs: tuple[str, ...], reference: str, delta: str, format_: str, paper: bool, as_json: bool, output: str | None
) -> None:
    """Compare the methods in one or several runs: means over seeds, Δm in a named convention, mean rank, and paired tests over
    seeds that say so where the seeds are too few.

    RUN is a folder with ledger.jsonl or a study's results.parquet.
    """
    import json

    from pluribus.errors import BadInput
    from pluribus.evaluation.ledger import table
    from pluribus.files import atomic_file

    if as_json and (paper or format_ != "md"):
        raise BadInput("--json prints figures only", remedy="leave out --paper and --format")
    made = table(runs, reference=reference, delta=delta)
    text = json.dumps(made.to_dict(), indent=1, ensure_ascii=False) if as_json else made.render(format_, paper=paper)
    if output:
        with atomic_file(Path(output)) as aside:
            aside.write_text(text + "\n", "utf-8")
    else:
        click.echo(text)
