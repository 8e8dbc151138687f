"""Which answer a response gives."""

from typing import Any

import pytest

from volley.rewards.math.verifier import extract, quick_reward, reward, verify


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
def test_extracted_answers(response: str, expected: str | None) -> None:
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
def test_a_truncated_response_has_only_closed_answers(response: str, value: float) -> None:
    assert reward("", response, "18", truncated=True) == value
    assert reward("", response, "18") == 1.0


@pytest.mark.parametrize("response", [None, 18, b"18", ["18"], {}])
def test_a_response_that_is_not_text_has_no_answer(response: Any) -> None:
    assert extract(response) is None
    assert not verify(response, "18")
    assert reward("<think>", response, "18") == quick_reward("<think>", response, "18") == 0.0


def test_thinking_may_be_opened_by_the_prompt() -> None:
    assert reward("<|assistant|><think>\n", r"I try \boxed{18}", "18") == 0.0
    assert reward("<|assistant|><think>\n", r"hm</think>\boxed{18}", "18") == 1.0
