"""`pluribus schema`: what a study file may hold."""

from __future__ import annotations

import json

import click


@click.command("schema", epilog="Example:  pluribus schema > study.schema.json")
@click.option("--kind", type=click.Choice(["table", "checkpoints"]), default="table", show_default=True, help="Of study.")
@click.option("--json", "as_json", is_flag=True, help="The same (the schema is JSON).")
def command(kind: str, as_json: bool) -> None:
    """Print the JSON Schema of study files (`pluribus study STUDY.yaml`)."""
    if kind == "checkpoints":
        from pluribus.study.checkpoints import CheckpointStudy

        click.echo(json.dumps(CheckpointStudy.model_json_schema(), indent=1))
        return
    from pluribus.study.spec import TableStudy

    click.echo(json.dumps(TableStudy.model_json_schema(), indent=1))
