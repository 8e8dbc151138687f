"""Loading rewards by name, and what is said when that does not work."""

import re
from pathlib import Path
from typing import Any

import pytest

from volley.rewards.item import Item
from volley.rewards.scoring.function import BUILT_IN, bind, check_built_in, check_reward, load_reward
from volley.rollout.errors import RewardError

ITEM = Item("p", "r", "a", 3, False, {"level": 2, "hint": "h", "response": "not this one"})


def by_keyword(prompt, response, answer, **row):
    return (prompt, response, answer, row)


def by_name(prompt, response, answer, num_tokens, level, bonus=0):
    return (num_tokens, level, bonus)


def write(directory: Path, text: str, name: str = "mine.py") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_built_in() -> None:
    assert load_reward("math") is BUILT_IN["math"]


def test_from_a_file_with_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "VALUE = 0.25\n", "neighbour_of_mine.py")
    write(tmp_path, "from neighbour_of_mine import VALUE\ndef concise(prompt, response, answer, **row): return VALUE\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("mine.py:concise")("", "", "") == 0.25
    assert load_reward(f"{tmp_path}/mine.py:concise") is load_reward("./mine.py:concise")


def test_from_a_package_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward_package_here").mkdir()
    write(tmp_path / "reward_package_here", "def f(prompt, response, answer): return 0.5\n", "deep.py")
    monkeypatch.chdir(tmp_path)
    assert load_reward("reward_package_here.deep:f")("", "", "") == 0.5


def test_a_file_called_like_the_standard_library(tmp_path: Path) -> None:
    path = write(tmp_path, "import math\ndef f(prompt, response, answer): return math.sqrt(4.0)\n", "math.py")
    assert load_reward(f"{path}:f")("", "", "") == 2.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maths", "'maths' is not built in; did you mean 'math'?"),
        ("nothing like it", "built in are math, think_format, length"),
        ("mine.py", "names a file but no function; write 'mine.py:FUNCTION'"),
        ("nowhere.py:f", "nowhere.py does not exist"),
        ("mien.py:f", "does not exist; did you mean 'mine.py'?"),
        ("mine.py:concize", "there is no 'concize' in mine.py; did you mean 'concise'?"),
        ("mine.py:NUMBER", "'NUMBER' is a int, not a function"),
        ("raises.py:f", r"cannot be imported: KeyError: 'gone' \(.*/raises.py:3\)"),
        ("syntax.py:f", r"cannot be imported: SyntaxError: .* \(.*/syntax.py:2\)"),
        ("exits.py:f", r"cannot be imported: SystemExit: 3 \(.*/exits.py:2\)"),
        ("no_such_package.inside:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_what_cannot_be_loaded(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "NUMBER = 3\ndef concise(prompt, response, answer): return 0.0\n")
    write(tmp_path, "x = {}\n\nx['gone']\n", "raises.py")
    write(tmp_path, "x = 1\ndef f(:\n", "syntax.py")
    write(tmp_path, "import sys\nsys.exit(3)\n", "exits.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match=said) as caught:
        load_reward(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"reward '{name}'")


def test_arguments() -> None:
    assert bind(by_keyword, {})(ITEM) == ("p", "r", "a", {"num_tokens": 3, "truncated": False, "level": 2, "hint": "h"})
    assert bind(by_name, {"bonus": 5})(ITEM) == (3, 2, 5)
    assert bind(by_name, {"level": 7})(ITEM) == (3, 7, 0)


async def asynchronous(prompt, response, answer):
    return 0.0


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (lambda prompt, response: 0, {}, "does not take 'answer' by keyword"),
        (lambda x: 0, {}, "does not take 'prompt', 'response', 'answer' by keyword"),
        (lambda prompt, response, answer, lvel: 0, {}, "requires 'lvel', .*; did you mean 'level'?; the columns are"),
        (by_name, {"bonos": 1}, "has no option 'bonos'; did you mean 'bonus'?"),
        (by_name, {"response": 1}, "'response' would replace"),
        (asynchronous, {}, "is asynchronous"),
        (getattr, {}, "signature|does not take"),
    ],
)
def test_wrong_signatures(function, options, said: str) -> None:
    with pytest.raises(RewardError, match=said.replace("?", r"\?")):
        check_reward(function, {"prompt", "answer", "level"}, "mine", options)


def test_right_signatures() -> None:
    check_reward(by_keyword, set())
    check_reward(by_name, {"level"})
    check_reward(by_name, set(), options={"level": 1})
    check_reward(by_name, None)
    check_reward(lambda **everything: 0, set())
    with pytest.raises(RewardError, match="requires 'level'"):
        check_reward(by_name, {"prompt"})


def test_a_null_column_leaves_the_default() -> None:
    def graded(prompt: str, response: str, answer: str, *, level: Any, bonus: float = 1.0, **row: Any) -> Any:
        return level, bonus, row

    item = Item("", "", "", 0, False, {"level": None, "bonus": None, "other": None})
    level, bonus, row = bind(graded, {})(item)
    assert (level, bonus) == (None, 1.0)
    assert row["other"] is None
    assert bind(graded, {"bonus": None})(item)[1] is None
    assert (
        bind(BUILT_IN["verifier"], {})(Item("", "0.5", "0.52", 0, False, {"verifier": None, "tolerance": 0.1})) == 1.0
    )


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("length", {}, "requires 'max_tokens'"),
        ("length", {"max_token": 5}, "has no option 'max_token'; did you mean 'max_tokens'?"),
        ("length", {"max_tokens": 0}, "cache_tokens must be between"),
        ("length", {"max_tokens": "many"}, "mend its options"),
        ("math", {"tolerances": 0.1}, "has no option 'tolerances'; did you mean 'tolerance'?"),
    ],
)
def test_options_of_built_in_rewards(name: str, options: dict, said: str) -> None:
    with pytest.raises(RewardError, match=re.escape(said)):
        check_built_in(name, options)
    check_built_in("length", {"max_tokens": 512})
