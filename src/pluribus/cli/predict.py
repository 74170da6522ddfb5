"""`pluribus predict`: a table in, a table of predictions out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pluribus.errors import BadInput
from pluribus.options import reading, reading_options


@click.command("predict", epilog="Example:  pluribus predict runs/loans/model new.parquet -o scores.parquet --tasks default,loss")
@click.argument("model", type=click.Path())
@click.argument("table", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FILE", help="A .parquet or .csv file to write.")
@click.option("--tasks", metavar="A,B", help="Predict these tasks only.")
@reading_options
def command(model: str, table: str, output: str, tasks: str | None, **options: Any) -> None:
    """Predict TABLE (CSV or Parquet) with the model folder MODEL.

    Row order and ids are kept. Columns: TASK (value, label, or list of tags or items; JSON in CSV), TASK__p of binary tasks,
    TASK__p_CLASS of the others with classes. Cells are read as those that the model was fitted on were written; options such as
    --decimal hold for this file.
    """
    suffix = Path(output).suffix
    if suffix not in (".parquet", ".csv"):
        raise BadInput("is neither a .parquet nor a .csv file", where=output, remedy="end the output's name in .parquet or .csv")
    if Path(output).exists() and Path(table).exists() and Path(output).samefile(table):
        raise BadInput("would be overwritten by its own predictions", where=table, remedy="choose another output")
    from pluribus.data.ingest import read_further
    from pluribus.data.ragged import looks_like_lists
    from pluribus.data.written.reading import Reading
    from pluribus.files import atomic_file
    from pluribus.modeling import load

    fitted = load(model)
    key = fitted.columns.id
    told = Reading(**reading(options))
    written = read_further(table, fitted.columns.inputs, text=fitted.columns.as_written, reading=told)
    frame = written.frame
    for note in written.notes:
        click.echo(f"note: {note}", err=True)
    wanted = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    if wanted == []:
        raise BadInput("names no task", where="--tasks", remedy="write --tasks A,B, or leave it out for all tasks")
    try:
        found = fitted.predict(frame, wanted)
    except BadInput as error:
        if error.where is None or not error.where.startswith("table"):
            raise
        raise BadInput(error.what, where=table + error.where.removeprefix("table"), remedy=error.remedy) from error
    if key is not None and key in frame.columns:
        found.insert(0, key, frame[key].to_numpy())
    read = {source.name for source in fitted.columns.inputs} | {key, fitted.columns.task_column}
    extra = [name for name in frame.columns if name not in read]
    if extra:
        click.echo(f"note: columns that the model does not read are ignored: {', '.join(extra)}", err=True)
    with atomic_file(output) as aside:
        if suffix == ".parquet":
            found.to_parquet(aside, index=False)
        else:
            for name in found:
                if looks_like_lists(found[name]):
                    found[name] = found[name].map(_as_json)
            found.to_csv(aside, index=False)
    click.echo(f"{len(found)} rows, {len(found.columns)} columns written to {output}", err=True)


def _as_json(cell: Any) -> Any:
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell
