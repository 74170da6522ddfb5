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
    typed : str
        The option's name where it is not the argument's.
    """

    name: str
    metavar: str
    help: str
    form: Literal["one", "many", "pairs"] = "one"
    typed: str = ""

    @property
    def option(self) -> str:
        """What is typed: `--task-column`."""
        return f"--{self.typed or self.name.replace('_', '-')}"


ROLES = (
    Role("id", "COL", "Column kept beside predictions; distinct, never an input."),
    Role("ignore", "COL", "Column that is no input; repeatable.", "many"),
    Role("text", "COL", "Column of text, beside those that are found out; repeatable.", "many"),
    Role("weight", "[TASK=]COL", "Column of row weights, of all tasks or of one; repeatable.", "many"),
    Role("class_weights", "HOW", "balanced, TASK=balanced, CLASS=x or TASK:CLASS=x; repeatable.", "many"),
    Role("group", "COL", "Whoever must not stand in two parts; also the resampling unit."),
    Role("task_column", "COL", "Long layout: the column that names each row's task."),
    Role("split", "SPEC", "random | time:COL | column:COL (default: by time where there is a date)."),
    Role("not_applicable", "TASK=COL", "TASK does not apply where COL is true.", "pairs"),
    Role("delayed", "TASK=COL", "TASK's label is still to come where COL is true.", "pairs"),
    Role("late", "HOW", "Delayed labels of binary targets: left_out (default) or weighed by time."),
)


READING = (
    Role("thousands", "[COL=]MARK", "Between groups of digits: , . ' _ or space; repeatable.", "many"),
    Role("decimal", "[COL=]SIGN", "Decimal sign: . or , ; repeatable.", "many"),
    Role("na", "[COL=]WORD", "Means that there is no value; `COL=`: only empty cells do; repeatable.", "many"),
    Role("types", "COL=TYPE", "A column's type: category, number, datetime or boolean; repeatable.", "pairs", "type"),
    Role("separator", "SIGN", "What separates the fields of a CSV file: , ; | or tab."),
    Role("encoding", "NAME", "What the bytes of a CSV file mean: utf-8, cp1252, utf-16, …"),
)
"""How a file is to be read, where that is not to be found out (`pluribus.data.written.reading.Reading`)."""


def reading_options(command: Command) -> Command:
    """Give a click command the options of `READING`, and `--dayfirst/--monthfirst`."""
    import click

    for role in reversed(READING):
        many = role.form != "one"
        command = click.option(role.option, role.name, multiple=many, metavar=role.metavar, help=role.help)(command)
    help_ = "Whether 03/04/2024 is in April or in March."
    return click.option("--dayfirst/--monthfirst", "dayfirst", default=None, help=help_)(command)


def reading(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was said on the command line of how the file is to be read: the fields of `Reading` that somebody named.

    Parameters
    ----------
    options : mapping
        What click hands to a command with `reading_options`; other options may be among them.
    """
    found = _named(READING, options)
    if options.get("dayfirst") is not None:
        found["dayfirst"] = options["dayfirst"]
    return found


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
    return _named(ROLES, options)


def _named(known: Sequence[Role], options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for role in known:
        value = options.get(role.name)
        if value in (None, ()):
            continue
        if role.form == "pairs":
            found[role.name] = pairs(value, role.option, role.metavar)
        else:
            found[role.name] = list(value) if role.form == "many" else value
    for name in ("weight", "class_weights"):  # one word, as study files have it
        if len(found.get(name, ())) == 1:
            (found[name],) = found[name]
    return found


def pairs(words: Sequence[str], option: str, form: str = "TASK=WORD") -> dict[str, str]:
    """TASK=WORD options as a mapping; split at the last "=" since a task's name may hold one."""
    found: dict[str, str] = {}
    for word in words:
        task, equals, value = word.rpartition("=")
        if not equals or not task or not value:
            raise BadInput(f"{word!r} is not {form}", where=option, remedy=f"write {option} {form}")
        if found.setdefault(task, value) != value:
            raise BadInput(f"{form.split('=')[0].lower()} {task!r} is named twice", where=option, remedy="keep one")
    return found
