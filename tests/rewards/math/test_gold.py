"""Gold answers: numbers, worked solutions, and gold answers that cannot be read."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tests.rewards.math.builders import boxed
from volley.rewards.item import Unscorable
from volley.rewards.math.verifier import equivalent, quick_reward, reward, verify


@pytest.mark.parametrize("text", ["", "???", "a" * 300, r"\frac{1}{", r"\foo{3}", "10^{10^{10}}", "{" * 50])
def test_an_unreadable_gold_answer_makes_the_row_unscorable(text: str) -> None:
    with pytest.raises(Unscorable, match="gold answer"):
        reward("", "The answer is 18", text)
    with pytest.raises(Unscorable, match="gold answer"):
        reward("", boxed(text), text)


@pytest.mark.parametrize("answer", [r"so it is $\boxed{18}$.", "9 * 2 = 18\n#### 18", "#### 1,800%\n#### 18"])
def test_a_gold_answer_may_be_a_worked_solution(answer: str) -> None:
    assert reward("", "The answer is 18", answer) == 1.0
    assert reward("", "The answer is 9", answer) == 0.0


@pytest.mark.parametrize("answer", [18, 18.0, Decimal("18"), Fraction(36, 2)])
def test_a_gold_answer_may_be_a_number(answer: Any) -> None:
    assert verify(r"\boxed{18}", answer)
    assert not verify(r"\boxed{19}", answer)
    assert quick_reward("", r"\boxed{18}", answer) == 1.0
    assert equivalent(answer, "18")
    assert equivalent("18", answer)


@pytest.mark.parametrize("answer", [None, True, ["18"], b"18", float("nan"), float("inf"), 10**5000], ids=range(7))
def test_a_gold_answer_of_another_type_makes_the_row_unscorable(answer: Any) -> None:
    assert not verify(r"\boxed{18}", answer)
    with pytest.raises(Unscorable, match="gold answer"):
        reward("", r"\boxed{18}", answer)


@pytest.mark.parametrize("answer", [r"\boxed{", r"18 \boxed{}", "####", r"\boxed{???}"])
def test_a_solution_without_an_answer_makes_the_row_unscorable(answer: str) -> None:
    with pytest.raises(Unscorable, match="gold answer"):
        reward("", r"\boxed{18}", answer)
