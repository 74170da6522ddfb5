"""The command line: one file per command, imported only when that command runs.

`main` owns the exit codes: 0, 2 for bad input (one line on stderr), 1 for a failure of ours.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from pluribus.errors import BadInput, unknown

# command -> one line of help; the module pluribus.cli.<command> defines `command: click.Command`.
COMMANDS: dict[str, str] = {
    "demo": "A real study in about three minutes: the flights that left New York in 2013.",
    "study": "Train several roads to one model on a table and judge it against one model per target.",
    "predict": "Predict a table with a model folder.",
    "serve": "Serve a model folder over HTTP: concurrent requests share one forward.",
    "report": "Draw a run's report again, from its files.",
    "compare": "Judge prediction files against others: better, as good, worse or undecided, task by task.",
    "table": "Compare the methods of one or several runs: means, a named Δm, ranks, paired tests.",
    "schema": "Print what a study file may hold, as a JSON Schema.",
    "merge": "Merge fine-tuned models of one base into one; doctor looks first, search tunes.",
    "export": "Write one task of a model folder in another format (hf, onnx, peft).",
    "catalog": "List every method: its road, its paper, and what verifies it.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pluribus.cli.{name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pluribus", prog_name="pluribus")
def cli() -> None:
    """Out of many tasks, one model: train together, adapt, merge, boost or grow one model, and measure honestly whether
    it is at least as good as one model per task.

    Start with:  pluribus demo
    """


def _help(error: click.UsageError) -> str:
    return f"see {'pluribus' if error.ctx is None else error.ctx.command_path} --help"


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        outcome = cli.main(list(arguments), prog_name="pluribus", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except BadInput as error:
        print(f"pluribus: {error}", file=sys.stderr)
    except click.NoSuchOption as error:
        found = unknown("option", error.option_name, error.possibilities or [])
        print(f"pluribus: {found if error.possibilities else BadInput(found.what, remedy=_help(error))}", file=sys.stderr)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
    except click.UsageError as error:
        what = " ".join(error.format_message().split()).rstrip(".")
        print(f"pluribus: {BadInput(what, remedy=_help(error))}", file=sys.stderr)
    except click.ClickException as error:
        print(f"pluribus: {' '.join(error.format_message().split())}", file=sys.stderr)
    except (KeyboardInterrupt, click.Abort):
        print("pluribus: interrupted; finished work is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 2


def main() -> None:
    """The console script. A failure of ours is one line too; PLURIBUS_TRACEBACK=1 shows where it happened."""
    import os

    try:
        code = run(sys.argv[1:])
    except Exception as error:
        if os.environ.get("PLURIBUS_TRACEBACK"):
            raise
        print(
            f"pluribus: internal error, {type(error).__name__}: {' '.join(str(error).split())} "
            "(set PLURIBUS_TRACEBACK=1 to see where)",
            file=sys.stderr,
        )
        code = 1
    sys.exit(code)
