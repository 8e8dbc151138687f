"""Which answer a response and an answer key give."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from volley.rewards.item import Unscorable
from volley.rewards.math.verifier import equivalent, extract, quick_reward, reward, verify


@pytest.mark.parametrize("text", ["", "???", "a" * 300, r"\frac{1}{", r"\foo{3}", "10^{10^{10}}", "{" * 50])
def test_an_answer_key_that_cannot_be_read_makes_the_row_unscorable(text: str) -> None:
    with pytest.raises(Unscorable, match="gold answer"):
        reward("", "The answer is 18", text)
    with pytest.raises(Unscorable, match="gold answer"):
        reward("", f"\\boxed{{{text}}}", text)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>1</think> \\boxed{\\frac{1}{2}} ok", r"\frac{1}{2}"),
        ("<think>1</think>", None),
        ("<think>1", None),
        (r"\boxed{1} \boxed{", None),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        ("<answer> 5 </answer>", "5"),
        ("<answer></answer>", None),
        ("<answer>5</answer> <answer>5.</answer>", "5."),
        ("#### 5\nand more", "5"),
        ("The answer is **5**.", "5"),
        ("no number here, and far too many words on this one line to be taken for a bare answer", None),
        ("", None),
        (r"\boxed 5", None),
        ("\\boxed{" + "1" * 300 + "}", None),
    ],
)
def test_extract(response: str, expected: str | None) -> None:
    assert extract(response) == expected


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("The answer is 18", 0.0),
        ("<answer>18", 0.0),
        ("#### 18", 0.0),
        ("The answer is 18\nand", 1.0),
        (r"so \boxed{18} and", 1.0),
        ("<answer>18</answer> and", 1.0),
    ],
)
def test_a_truncated_response_counts_only_answers_that_are_closed(response: str, value: float) -> None:
    assert reward("", response, "18", truncated=True) == value
    assert reward("", response, "18") == 1.0


@pytest.mark.parametrize("answer", [r"so it is $\boxed{18}$.", "9 * 2 = 18\n#### 18", "#### 1,800%\n#### 18"])
def test_a_gold_answer_may_be_a_worked_solution(answer: str) -> None:
    assert reward("", "The answer is 18", answer) == 1.0
    assert reward("", "The answer is 9", answer) == 0.0


@pytest.mark.parametrize("response", [None, 18, b"18", ["18"], {}])
def test_what_is_no_text_gives_no_answer(response: Any) -> None:
    assert extract(response) is None
    assert not verify(response, "18")
    assert reward("<think>", response, "18") == quick_reward("<think>", response, "18") == 0.0


@pytest.mark.parametrize("answer", [18, 18.0, Decimal("18"), Fraction(36, 2)])
def test_a_gold_answer_that_is_a_number_is_its_text(answer: Any) -> None:
    assert verify(r"\boxed{18}", answer)
    assert not verify(r"\boxed{19}", answer)
    assert quick_reward("", r"\boxed{18}", answer) == 1.0
    assert equivalent(answer, "18")
    assert equivalent("18", answer)


@pytest.mark.parametrize("answer", [None, True, ["18"], b"18", float("nan"), float("inf"), 10**5000], ids=range(7))
def test_a_gold_answer_that_is_neither_text_nor_a_number_makes_the_row_unscorable(answer: Any) -> None:
    assert not verify(r"\boxed{18}", answer)
    with pytest.raises(Unscorable, match="gold answer"):
        reward("", r"\boxed{18}", answer)


@pytest.mark.parametrize("answer", [r"\boxed{", r"18 \boxed{}", "####", r"\boxed{???}"])
def test_a_solution_without_an_answer_makes_the_row_unscorable(answer: str) -> None:
    with pytest.raises(Unscorable, match="gold answer"):
        reward("", r"\boxed{18}", answer)


def test_thinking_opened_by_the_prompt() -> None:
    assert reward("<|assistant|><think>\n", r"I try \boxed{18}", "18") == 0.0
    assert reward("<|assistant|><think>\n", r"hm</think>\boxed{18}", "18") == 1.0
