"""The thinking format, with the tag from the response or from the chat template."""

import pytest

from volley.rewards.think_format import after_thinking, reward, script_fraction


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


@pytest.mark.parametrize(
    ("prompt", "response", "value"),
    [
        ("", "<think>a</think>b", 1.0),
        ("<think>", "a</think>b", 1.0),
        ("", "<think>a</think>", 2 / 3),
        ("", "x<think>a</think>b", 2 / 3),
        ("", "<think>a</think></think>b", 2 / 3),
        ("", "<think>a</think>b<think>c", 1 / 3),
        ("", "b", 0.0),
        ("", "<think>a", 0.0),
    ],
)
def test_graded_parts(prompt: str, response: str, value: float) -> None:
    assert reward(prompt, response, "", graded=True) == pytest.approx(value)


def test_script_of_the_parts() -> None:
    mixed = "<think>да, hm</think>yes 5"
    assert reward("", mixed, "", answer_script="latin") == 1.0
    assert reward("", mixed, "", thinking_script="latin") == 0.0
    assert reward("", mixed, "", thinking_script="latin", min_share=0.5) == 1.0
    assert reward("", mixed, "", thinking_script="latin", graded=True) == pytest.approx(3.5 / 4)
    assert reward("", "b", "", answer_script="latin", graded=True) == 0.0


def test_fraction_of_a_script() -> None:
    assert script_fraction("答えは 42", "japanese") == 1.0
    assert script_fraction("答えは 42", "chinese") == pytest.approx(1 / 3)
    assert script_fraction("42 + 1", "greek") == 1.0
    assert script_fraction("aé¨ß", "latin") == 1.0
    with pytest.raises(ValueError, match="unknown script 'klingon'"):
        script_fraction("a", "klingon")


def test_a_min_share_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="min_share"):
        reward("", "a", "", min_share=1.5)
