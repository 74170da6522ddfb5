"""`pluribus export`: one task of a model folder as files that others read."""

from __future__ import annotations

from collections.abc import Callable

import click

from pluribus.errors import BadInput, unknown


def _merge_hf(model: str, task: str | None, output: str, force: bool) -> str:
    from pluribus.merging.bundle import export_container
    from pluribus.merging.folder import KIND, export_task, read_about

    if task is None:
        raise BadInput("a merge holds several tasks and none is named", where=model, remedy="add --task TASK")
    write = export_task if read_about(model).get("kind") == KIND else export_container
    return f"{write(model, task, output, overwrite=force)}: task {task} as a Hugging Face folder"


def _network_onnx(model: str, task: str | None, output: str, force: bool) -> str:
    from pathlib import Path

    from pluribus.modeling import load
    from pluribus.tabular.export import export_onnx

    if Path(output).exists() and not force:
        raise BadInput("exists already", where=output, remedy="choose another folder, or add --force")
    folder = export_onnx(load(model), output, None if task is None else [task])
    return f"{folder}: {'all tasks' if task is None else f'task {task}'} as ONNX, with encoding.json"


def _text_peft(model: str, task: str | None, output: str, force: bool) -> str:
    from pluribus.modeling import load
    from pluribus.text.export import export_peft

    return f"{export_peft(load(model), task, output, where=model, overwrite=force)}: task {task} as a PEFT folder"


# (kind in pluribus.json, format) → what writes it: (model, task, output, force) → the line to print
EXPORTS: dict[tuple[str, str], Callable[[str, str | None, str, bool], str]] = {
    ("merge", "hf"): _merge_hf,
    ("merge-container", "hf"): _merge_hf,
    ("network", "onnx"): _network_onnx,
    ("text_network", "peft"): _text_peft,
    ("text_hub", "peft"): _text_peft,
}


@click.command("export", epilog="Example:  pluribus export merged --task cars -o cars-hf --format hf")
@click.argument("model", type=click.Path())
@click.option("--task", help="The task to export.")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="DIR", help="The folder to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["hf", "onnx", "peft"]),
    default="hf",
    show_default=True,
    help="hf: of a merge or a container; onnx: of a network; peft: of a text model with adapters.",
)
@click.option("--force", is_flag=True, help="Replace DIR if it exists.")
def command(model: str, task: str | None, output: str, kind: str, force: bool) -> None:
    """Write one task of the model folder MODEL as an ordinary folder of another format."""
    from pathlib import Path

    from pluribus.files import read_json

    path = Path(model) / "pluribus.json"
    if not path.is_file():
        raise BadInput("holds no pluribus.json", where=model, remedy="give a folder that Pluribus wrote")
    about = read_json(path, what="model description")
    held = str(about.get("kind")) if isinstance(about, dict) else ""
    if (held, kind) not in EXPORTS:
        formats = [f for k, f in EXPORTS if k == held]
        if not formats:
            raise unknown("kind of model", held, sorted({k for k, _ in EXPORTS}), where=str(path))
        raise BadInput(
            f"a {held!r} model cannot be exported as {kind}", where=model, remedy=f"use --format {' or '.join(formats)}"
        )
    click.echo(EXPORTS[held, kind](model, task, output, force))
