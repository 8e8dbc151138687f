"""Which signatures and options are accepted, and the arguments with which a reward is called."""

import re
from typing import Any

import pytest

from volley.rewards.item import Item
from volley.rewards.rubric.registry import BUILT_IN
from volley.rewards.rubric.signature import bind, check_built_in, check_reward
from volley.rollout.errors import RewardError

ITEM = Item("p", "r", "a", 3, False, {"level": 2, "hint": "h", "response": "not this one"})


def by_keyword(prompt, response, answer, **row):
    return (prompt, response, answer, row)


def by_name(prompt, response, answer, num_tokens, level, bonus=0):
    return (num_tokens, level, bonus)


def test_arguments_of_a_call() -> None:
    assert bind(by_keyword, {})(ITEM) == ("p", "r", "a", {"num_tokens": 3, "truncated": False, "level": 2, "hint": "h"})
    assert bind(by_name, {"bonus": 5})(ITEM) == (3, 2, 5)
    assert bind(by_name, {"level": 7})(ITEM) == (3, 7, 0)


async def asynchronous(prompt, response, answer):
    return 0.0


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda prompt, response: 0, {}, "does not take 'answer' by keyword"),
        (lambda x: 0, {}, "does not take 'prompt', 'response', 'answer' by keyword"),
        (lambda prompt, response, answer, lvel: 0, {}, "requires 'lvel', .*; did you mean 'level'?; the columns are"),
        (by_name, {"bonos": 1}, "has no option 'bonos'; did you mean 'bonus'?"),
        (by_name, {"response": 1}, "'response' would override"),
        (asynchronous, {}, "is asynchronous"),
        (getattr, {}, "signature|does not take"),
    ],
)
def test_wrong_signatures_are_refused(function, options, message: str) -> None:
    with pytest.raises(RewardError, match=message.replace("?", r"\?")):
        check_reward(function, {"prompt", "answer", "level"}, "mine", options)


def test_right_signatures_pass() -> None:
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
    item = Item("", "0.5", "0.52", 0, False, {"verifier": None, "tolerance": 0.1})
    assert bind(BUILT_IN["verifier"].reward, {})(item) == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("length", {}, "requires 'max_tokens'"),
        ("length", {"max_token": 5}, "has no option 'max_token'; did you mean 'max_tokens'?"),
        ("length", {"max_tokens": 0}, "cache_tokens must be between"),
        ("length", {"max_tokens": "many"}, "fix its options"),
        ("math", {"tolerances": 0.1}, "has no option 'tolerances'; did you mean 'tolerance'?"),
    ],
)
def test_wrong_options_of_built_in_rewards_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(RewardError, match=re.escape(message)):
        check_built_in(name, options)
    check_built_in("length", {"max_tokens": 512})
