"""The shell: exit codes and one line on stderr. Scripts and people both depend on them."""

from __future__ import annotations

import pytest

from pluribus.cli import run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["catalgo"], "unknown command 'catalgo'; did you mean 'catalog'?"),
        (["catalog", "--jsn"], "unknown option '--jsn'; did you mean '--json'?"),
        (["catalog", "--road", "sideways"], "'sideways' is not one of"),
        (["catalog", "--colour"], "unknown option '--colour'; see pluribus catalog --help"),
        (["serve"], "Missing argument 'MODEL'; see pluribus serve --help"),
        (["serve", "m", "--port", "x"], "see pluribus serve --help"),
        (["predict", "m", "t.csv", "more", "-o", "o.csv"], "(more); see pluribus predict --help"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_help_of_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    from pluribus.cli import COMMANDS

    assert run(["--help"]) == 0
    listing = capsys.readouterr().out
    for name in COMMANDS:
        assert name in listing
        assert run([name, "--help"]) == 0
        assert "Example" in capsys.readouterr().out
