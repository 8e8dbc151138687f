"""Does the response think first and then answer?"""

from typing import Any

OPEN, CLOSE = "<think>", "</think>"
ANSWER_TAGS = ("<answer>", "</answer>")


def with_opened_thinking(prompt: str, response: str) -> str:
    """The response with the `<think>` in front that a chat template has already written at the prompt's end."""
    return OPEN + response if prompt.rstrip().endswith(OPEN) else response


def after_thinking(response: str) -> str | None:
    """The part that may hold the answer: what follows the last `</think>`, everything where no thinking is marked.
    None while thinking is still open, or was opened again."""
    _, close, rest = response.rpartition(CLOSE)
    return None if OPEN in (rest if close else response) else rest


def reward(prompt: str, response: str, answer: str, **row: Any) -> float:
    """1.0 for exactly one `<think>...</think>` at the start and then an answer that is not empty; else 0.0.

    A `<think>` that the chat template put at the end of the prompt counts as the response's own. The format of
    DeepSeek-R1, arXiv 2501.12948, section 2.2.2; what stands in the two parts is not looked at.
    """
    text = with_opened_thinking(prompt, response)
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1 or not text.lstrip().startswith(OPEN):
        return 0.0
    rest = text.rpartition(CLOSE)[2]
    for tag in ANSWER_TAGS:
        rest = rest.replace(tag, "")
    return float(bool(rest.strip()))
