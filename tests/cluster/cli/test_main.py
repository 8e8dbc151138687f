"""Tests of the command line: version, help and exit codes."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from volley.cluster.cli.main import main, make_parser


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_volley_and_python_m_volley_are_the_same_command(option: str) -> None:
    outputs = [
        subprocess.run([*command, option], capture_output=True, text=True, check=True).stdout
        for command in (
            [sys.executable, "-m", "volley"],
            [sys.executable, "-c", "from volley.cluster.cli.main import program; program()"],
        )
    ]
    assert outputs[0] == outputs[1] != ""


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"volley {version('volley-rl')}\n"


def test_every_command_and_argument_has_a_description() -> None:
    text = make_parser().format_help()
    commands = re.findall(r"^    ([a-z]+)  +\S", text, re.MULTILINE)
    assert {"train", "eval", "report", "inspect", "doctor", "audit", "verify", "init", "submit"} <= set(commands)
    for actions in (action.choices for action in make_parser()._actions if isinstance(action.choices, dict)):
        assert set(actions) == set(commands)
        for parser in actions.values():
            assert all(action.help for action in parser._actions), parser.prog


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 2), (["train"], 2), (["nonsense"], 2), (["train", "missing.yaml"], 2), (["--help"], 0)]
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    assert main(arguments) == code
