"""The thinking format, with the tag from the response or from the chat template."""

import pytest

from rewards.think_format import after_thinking, reward


@pytest.mark.parametrize(
    ("prompt", "response", "value"),
    [
        ("", "<think>a</think>b", 1.0),
        ("", "  <think>a</think>\n\nb", 1.0),
        ("", "<think></think>b", 1.0),
        ("", "<think>a</think>", 0.0),
        ("", "<think>a</think> \n", 0.0),
        ("", "<think>a</think><answer> </answer>", 0.0),
        ("", "<think>a</think><answer>5</answer>", 1.0),
        ("", "<think>a", 0.0),
        ("", "a</think>b", 0.0),
        ("", "b", 0.0),
        ("", "", 0.0),
        ("", "x<think>a</think>b", 0.0),
        ("", "<think>a</think>b<think>c</think>d", 0.0),
        ("", "<think><think>a</think>b", 0.0),
        ("", "<think>a</think></think>b", 0.0),
        ("user: hi <think>\n", "a</think>b", 1.0),
        ("user: hi <think>\n", "<think>a</think>b", 0.0),
        ("user: hi <think>\n", "a", 0.0),
        ("<think> is a tag. Use it.", "<think>a</think>b", 1.0),
    ],
)
def test_format(prompt: str, response: str, value: float) -> None:
    assert reward(prompt, response, "") == value


def test_after_thinking() -> None:
    assert after_thinking("5") == "5"
    assert after_thinking("<think>4</think>5") == "5"
    assert after_thinking("4</think>5") == "5"
    assert after_thinking("<think>5") is None
    assert after_thinking("<think>4</think>5<think>6") is None
