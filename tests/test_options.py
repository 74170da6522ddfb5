"""The roles of a table's columns mean the same on every command line, in study files and in Python."""

from __future__ import annotations

import inspect
from dataclasses import fields

import click
import pytest

from pluribus.data import Table
from pluribus.errors import BadInput
from pluribus.options import READING, ROLES, reading, roles


def test_a_role_has_one_name_everywhere() -> None:
    """If this fails, an option is parsed and then lost, or refused by `Table`."""
    from pluribus.study.spec import TableStudy

    names = {role.name for role in ROLES}
    assert names <= set(inspect.signature(Table).parameters)
    assert names <= set(TableStudy.model_fields)


def test_both_commands_take_all_roles() -> None:
    """If this fails, a table that a study reads cannot be trained on by several processes with the same words."""
    from pluribus.cli.study import command as study
    from pluribus.training.__main__ import command as training

    for command in (study, training):
        assert isinstance(command, click.Command)
        options = {param.name: param for param in command.params}
        assert {role.name for role in ROLES} | {"targets"} <= set(options)
        for role in ROLES:
            option = options[role.name]
            assert isinstance(option, click.Option)
            assert option.opts == [role.option]
            assert option.help == role.help


def test_roles_that_nobody_named_are_left_to_the_study_file() -> None:
    options = {"id": "loan", "ignore": ("a", "b"), "text": (), "weight": None, "delayed": ("t=x=y",), "budget": "2h"}
    assert roles(options) == {"id": "loan", "ignore": ["a", "b"], "delayed": {"t=x": "y"}}
    with pytest.raises(BadInput, match=r"--not-applicable: 'loss' is not TASK=COL"):
        roles({"not_applicable": ("loss",)})


def test_how_a_file_is_read_has_one_name_everywhere() -> None:
    """If this fails, an option of reading is parsed and then lost, or a study file says what the command line cannot."""
    from pluribus.cli.predict import command as predict
    from pluribus.cli.study import command as study
    from pluribus.data.written.reading import Reading
    from pluribus.study.spec import TableStudy
    from pluribus.training.__main__ import command as training

    names = {each.name for each in fields(Reading)}
    assert {role.name for role in READING} | {"dayfirst"} == names
    assert names <= set(inspect.signature(Table.read).parameters)
    assert names <= set(TableStudy.model_fields)
    for command in (study, training, predict):
        assert isinstance(command, click.Command)
        assert names <= {param.name for param in command.params}


def test_readings_that_nobody_named_are_left_to_the_study_file() -> None:
    options = {"thousands": (",",), "na": (), "dayfirst": False, "types": ("zip=category",), "separator": None}
    assert reading(options) == {"thousands": [","], "dayfirst": False, "types": {"zip": "category"}}
    with pytest.raises(BadInput, match="--type: 'zip' is not COL=TYPE"):
        reading({"types": ("zip",)})
