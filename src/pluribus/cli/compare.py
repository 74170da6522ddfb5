"""`pluribus compare`: the verdict from prediction files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pluribus.options import pairs


class _Files(click.Command):
    """Words after --reference and --challenger up to the next option are files (shells expand globs)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        current: str | None = None
        for word in args:
            if word.startswith("-") and word != "-":
                current = word if word in ("--reference", "--challenger") else None
                if current is None:
                    spread.append(word)
            elif current:
                spread += [current, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


@click.command(
    "compare",
    cls=_Files,
    epilog="Example:  pluribus compare --truth y.parquet --reference old-*.parquet --challenger new-*.parquet -o page.html",
)
@click.option("--truth", required=True, metavar="FILE", help="Labels: the id and one column per task (Parquet or CSV).")
@click.option("--reference", required=True, multiple=True, metavar="FILE…", help="The reference's predictions; a file a seed.")
@click.option("--challenger", required=True, multiple=True, metavar="FILE…", help="The challenger's predictions; a file a seed.")
@click.option("--id", "id_", default="id", show_default=True, metavar="COL", help="Column that names the rows.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Judge only these tasks.")
@click.option("--kind", multiple=True, metavar="TASK=KIND", help="Where the columns do not tell: count, ordinal, multilabel.")
@click.option("--metric", multiple=True, metavar="TASK=NAME", help="Judge by this metric: auc, gini, ks, logloss, rmse, mae, …")
@click.option("--weight", metavar="COL", help="Row weights, a column of the truth.")
@click.option("--group", metavar="COL", help="Resample whole groups, a column of the truth.")
@click.option("--time", metavar="COL", help="Resample whole days of a date column of the truth.")
@click.option("--level", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True, help="Level of the intervals.")
@click.option("--repeats", type=click.IntRange(100, 100_000), default=1000, show_default=True, help="Resamples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the resamples.")
@click.option("-o", "--output", metavar="PAGE.html", help="Write one page of HTML.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def command(
    truth: str,
    reference: tuple[str, ...],
    challenger: tuple[str, ...],
    id_: str,
    tasks: tuple[str, ...],
    kind: tuple[str, ...],
    metric: tuple[str, ...],
    output: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Say, task by task, whether the challenger is better than the reference, as good, worse, or whether that is undecided,
    from prediction files alone, whoever made them.

    A prediction file has the id column and, per task, TASK (a number, or a list of tags), TASK__p (probability of the
    positive class), or TASK__p_CLASS for every class.
    """
    import json

    from pluribus.evaluation import compare
    from pluribus.evaluation.page import page
    from pluribus.files import atomic_file

    verdict = compare(
        truth,
        list(reference),
        list(challenger),
        id=id_,
        tasks=tasks,
        kind=pairs(kind, "--kind"),
        metric=pairs(metric, "--metric"),
        **settings,
    )
    if output:
        with atomic_file(Path(output)) as aside:
            aside.write_text(page(verdict, f"Verdict: {Path(challenger[0]).stem} against {Path(reference[0]).stem}"), "utf-8")
    click.echo(json.dumps(verdict.to_dict(), indent=1, ensure_ascii=False) if as_json else verdict.text())
