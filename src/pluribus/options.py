"""Words that several commands take: the roles of a table's columns, and `TASK=WORD` pairs.

`pluribus study` and `python -m pluribus.training` ask for the same roles in the same words; what `roles` makes of them are
arguments of `pluribus.data.Table` and keys of a study file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pluribus.errors import BadInput

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Role:
    """One role that columns of a table can have.

    Parameters
    ----------
    name : str
        The argument of `Table`; the option is its name with dashes.
    metavar : str
        What stands for the value in the help.
    help : str
        The option's line of help.
    form : {"one", "many", "pairs"}
        One word; a list of words, an option each; or words by task, an option `TASK=WORD` each.
    """

    name: str
    metavar: str
    help: str
    form: Literal["one", "many", "pairs"] = "one"

    @property
    def option(self) -> str:
        """What is typed: `--task-column`."""
        return f"--{self.name.replace('_', '-')}"


ROLES = (
    Role("id", "COL", "Column kept beside predictions; distinct, never an input."),
    Role("ignore", "COL", "Column that is no input; repeatable.", "many"),
    Role("text", "COL", "Column of text, beside those that are found out; repeatable.", "many"),
    Role("weight", "COL", "Column of row weights."),
    Role("group", "COL", "Whoever must not stand in two parts; also the resampling unit."),
    Role("task_column", "COL", "Long layout: the column that names each row's task."),
    Role("split", "SPEC", "random | time:COL | column:COL (default: by time where there is a date)."),
    Role("not_applicable", "TASK=COL", "TASK does not apply where COL is true.", "pairs"),
    Role("delayed", "TASK=COL", "TASK's label is still to come where COL is true.", "pairs"),
    Role("late", "HOW", "Delayed labels of binary targets: left_out (default) or weighed by time."),
)


def table_options(command: Command) -> Command:
    """Give a click command `--target` and an option for each role, named `targets` and as the roles are."""
    import click

    for role in reversed(ROLES):
        many = role.form != "one"
        command = click.option(role.option, role.name, multiple=many, metavar=role.metavar, help=role.help)(command)
    help_ = "A column to predict; repeat for each."
    return click.option("--target", "targets", multiple=True, metavar="NAME[:KIND]", help=help_)(command)


def roles(options: Mapping[str, Any]) -> dict[str, Any]:
    """The roles that were named on the command line.

    Parameters
    ----------
    options : mapping
        What click hands to a command with `table_options`; other options may be among them.

    Returns
    -------
    dict
        Role → word, list of words, or mapping of task to word; without the roles that nobody named.

    Raises
    ------
    BadInput
        A pair is none, or names a task twice.
    """
    found: dict[str, Any] = {}
    for role in ROLES:
        value = options.get(role.name)
        if value in (None, ()):
            continue
        if role.form == "pairs":
            found[role.name] = pairs(value, role.option)
        else:
            found[role.name] = list(value) if role.form == "many" else value
    return found


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """TASK=WORD options as a mapping; split at the last "=" since a task's name may hold one."""
    found: dict[str, str] = {}
    for word in words:
        task, equals, value = word.rpartition("=")
        if not equals or not task or not value:
            raise BadInput(f"{word!r} is not TASK=WORD", where=option, remedy=f"write {option} TASK=WORD")
        if found.setdefault(task, value) != value:
            raise BadInput(f"task {task!r} is named twice", where=option, remedy="keep one")
    return found
