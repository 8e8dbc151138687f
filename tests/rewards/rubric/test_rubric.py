"""The weighted sum, and everything that makes an item unscorable."""

import math
from pathlib import Path

import pytest

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item
from volley.rewards.rubric.rubric import Rubric
from volley.rollout.errors import ConfigError, RewardError
from volley.rollout.types import Completion, Prompt, as_token_ids

FUNCTIONS = """
from volley.rewards.item import Unscorable

class Awkward(Exception):
    def __str__(self):
        raise RuntimeError("no")

def half(prompt, response, answer): return 0.5
def yes(prompt, response, answer): return True
def fraction(prompt, response, answer):
    from fractions import Fraction
    return Fraction(1, 4)
def column(prompt, response, answer, level): return level
def raises(prompt, response, answer): raise ValueError("a bad\\nday")
def awkward(prompt, response, answer): raise Awkward
def exits(prompt, response, answer): raise SystemExit(2)
def none(prompt, response, answer): return None
def nan(prompt, response, answer): return float("nan")
def inf(prompt, response, answer): return float("-inf")
def text(prompt, response, answer): return "1.0"
def a_list(prompt, response, answer): return [1.0]
def declines(prompt, response, answer): raise Unscorable("the judge is asleep")
def huge(prompt, response, answer): return 1e308
def wants_more(prompt, response, answer, *, missing=None): return missing
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "rubric_functions.py"
    path.write_text(FUNCTIONS)
    return path


def item(response: str = r"<think>1</think>\boxed{18}", answer: str = "18") -> Item:
    return Item("q", response, answer, 10, False, {"level": 3})


def loaded(*terms: RewardConfig) -> Rubric:
    rubric = Rubric(terms)
    rubric.load()
    return rubric


def test_weighted_sum_and_breakdown(file: Path) -> None:
    score = loaded(
        RewardConfig("math"),
        RewardConfig("think_format", weight=0.1),
        RewardConfig("length", weight=2.0, options={"max_tokens": 10, "cache_tokens": 10}),
        RewardConfig(f"{file}:half", weight=0.2),
        RewardConfig(f"{file}:yes", weight=0.0),
        RewardConfig(f"{file}:fraction", label="quarter"),
        RewardConfig(f"{file}:column", weight=-1.0),
    )(item())
    assert score.terms == {
        "math": 1.0,
        "think_format": 1.0,
        "length": -1.0,
        "half": 0.5,
        "yes": 1.0,
        "quarter": 0.25,
        "column": 3.0,
    }
    assert score.reward == pytest.approx(1.0 + 0.1 - 2.0 + 0.1 + 0.0 + 0.25 - 3.0)
    assert (score.unscorable, score.accuracy, score.extracted) == ("", 1.0, "18")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", "reward 'raises' raised ValueError: a bad day"),
        ("awkward", "reward 'awkward' raised Awkward: (no message)"),
        ("exits", "reward 'exits' raised SystemExit: 2"),
        ("none", "reward 'none' returned None, not a finite number"),
        ("nan", "reward 'nan' returned nan, not a finite number"),
        ("inf", "reward 'inf' returned -inf, not a finite number"),
        ("text", "reward 'text' returned text, not a finite number"),
        ("a_list", "reward 'a_list' returned a value of type list, not a finite number"),
        ("declines", "reward 'declines': the judge is asleep"),
    ],
)
def test_a_failing_term_makes_the_item_unscorable_and_keeps_the_others(file: Path, function: str, reason: str) -> None:
    score = loaded(RewardConfig("math"), RewardConfig(f"{file}:{function}", weight=0.0), RewardConfig("think_format"))(
        item()
    )
    assert math.isnan(score.reward)
    assert score.unscorable == reason
    assert math.isnan(score.terms[function])
    assert (score.terms["math"], score.terms["think_format"], score.accuracy) == (1.0, 1.0, 1.0)


def test_a_sum_that_is_not_finite_is_unscorable(file: Path) -> None:
    score = loaded(RewardConfig(f"{file}:huge", weight=1e308))(item())
    assert math.isnan(score.reward)
    assert "not finite" in score.unscorable


def test_an_unreadable_gold_answer_is_unscorable(file: Path) -> None:
    score = loaded(RewardConfig("math"), RewardConfig(f"{file}:half"))(item(answer="???"))
    assert "gold answer '???'" in score.unscorable
    assert math.isnan(score.accuracy)


def test_which_term_decides_accuracy(file: Path) -> None:
    own = RewardConfig(f"{file}:half", accuracy=True)
    assert loaded(RewardConfig("math"))(item(answer="19")).accuracy == 0.0
    assert math.isnan(loaded(RewardConfig("think_format"))(item()).accuracy)
    by_own = loaded(RewardConfig("math"), own)(item())
    assert (by_own.accuracy, by_own.extracted, by_own.is_answerless) == (0.0, None, False)


def test_extracted_is_empty_without_an_answer() -> None:
    score = loaded(RewardConfig("math"))(item("<think>\\boxed{18}"))
    assert (score.accuracy, score.extracted, score.is_answerless) == (0.0, "", True)
    score = loaded(RewardConfig("verifier", accuracy=True))(item("<think>\\boxed{18}"))
    assert (score.accuracy, score.extracted, score.is_answerless) == (0.0, "", True)
    score = loaded(RewardConfig("json_schema", accuracy=True))(item("{", answer="{}"))
    assert (score.accuracy, score.extracted, score.is_answerless) == (0.0, "", True)
    assert not loaded(RewardConfig("math"))(item("\\boxed{17}")).is_answerless


def test_quick_terms(file: Path) -> None:
    rubric = Rubric([RewardConfig("math"), RewardConfig("think_format"), RewardConfig(f"{file}:half")])
    assert [outcome and outcome.value for outcome in rubric.compute_quick(item())] == [1.0, 1.0, None]
    assert rubric.compute_quick(item(r"\boxed{\sqrt{324}}"))[0] is None
    assert rubric.needs_processes
    assert not Rubric([RewardConfig("think_format")]).needs_processes


def test_contradicting_terms_are_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="duplicate label 'math'"):
        Rubric([RewardConfig("math"), RewardConfig("math", weight=2)])
    with pytest.raises(ConfigError, match="more than one term has accuracy"):
        Rubric([RewardConfig("math", accuracy=True), RewardConfig("think_format", accuracy=True)])
    with pytest.raises(RewardError, match="did you mean 'length'"):
        Rubric([RewardConfig("lenght")])


def test_the_item_of_a_prompt_and_a_completion() -> None:
    prompt = Prompt(0, 0, "q", as_token_ids((1,)), "a", {"level": 3, "truncated": "mine"})
    completion = Completion.single((1, 2), (0.0, 0.0), "text", "length", 0, 0)
    made = Item.of(prompt, completion)
    assert made == Item("q", "text", "a", 2, True, prompt.row)
    assert made.arguments() == {
        "prompt": "q",
        "response": "text",
        "answer": "a",
        "num_tokens": 2,
        "truncated": True,
        "level": 3,
    }
