"""Whether a response consists of thinking, followed by an answer."""

import unicodedata
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
ANSWER_TAGS = ("<answer>", "</answer>")
MAX_LETTERS = 16_384
# How the names of a script's letters begin in the Unicode character database.
SCRIPTS = {
    "latin": ("LATIN",),
    "cyrillic": ("CYRILLIC",),
    "greek": ("GREEK",),
    "arabic": ("ARABIC",),
    "hebrew": ("HEBREW",),
    "devanagari": ("DEVANAGARI",),
    "thai": ("THAI",),
    "chinese": ("CJK",),
    "japanese": ("CJK", "HIRAGANA", "KATAKANA"),
    "korean": ("HANGUL",),
}


def with_opened_thinking(prompt: str, response: str) -> str:
    """The response, preceded by `<think>` if the chat template has put that at the end of the prompt."""
    return OPEN + response if prompt.rstrip().endswith(OPEN) else response


def after_thinking(response: str) -> str | None:
    """The part that may contain the answer: the text after the last `</think>`, or everything without thinking tags.

    None if thinking is still open, or was opened again.
    """
    _, close, rest = response.rpartition(CLOSE)
    return None if OPEN in (rest if close else response) else rest


def script_fraction(text: str, script: str) -> float:
    """The fraction of the letters of `text` that belong to a script of `SCRIPTS`; 1.0 if there are no letters.

    Digits, signs and spaces belong to all scripts. Languages with the same script are not distinguished. Only the last
    `MAX_LETTERS` characters are checked. Raises ValueError for an unknown script.
    """
    if script not in SCRIPTS:
        raise ValueError(f"unknown script '{script}'; it must be one of {', '.join(SCRIPTS)}")
    letters = [letter for letter in text[-MAX_LETTERS:] if letter.isalpha()]
    inside = sum(unicodedata.name(letter, "").startswith(SCRIPTS[script]) for letter in letters)
    return inside / len(letters) if letters else 1.0


def reward(
    prompt: str,
    response: str,
    answer: str,
    *,
    graded: bool = False,
    thinking_script: str = "",
    answer_script: str = "",
    min_share: float = 0.9,
    **row: Any,
) -> float:
    """1.0 for exactly one `<think>...</think>` at the start, followed by a non-empty answer; else 0.0.

    This is the format of DeepSeek-R1, arXiv 2501.12948, section 2.2.2. A `<think>` that the chat template put at the
    end of the prompt counts as part of the response. The content of the two parts is not checked, except for:

    - thinking_script, answer_script: a name of `SCRIPTS`. At least `min_share` of the letters of that part must belong
      to it. The paper penalises mixed languages in section 2.3.2.
    - graded: the mean of the criteria instead of all or nothing, in [0, 1]. The criteria are tags (one of each), order
      (thinking opens the response and is closed before the answer), an answer, and for each script that is set its
      fraction of the letters. A missing part has fraction 0.

    Raises ValueError for an unknown script or a min_share outside [0, 1].
    """
    if not 0 <= min_share <= 1:
        raise ValueError(f"min_share is {min_share}; it must be between 0 and 1")
    text = with_opened_thinking(prompt, response)
    opens_first = text.lstrip().startswith(OPEN)
    before, close, rest = text.rpartition(CLOSE)
    has_tags = text.count(OPEN) == 1 and text.count(CLOSE) == 1
    has_order = opens_first and bool(close) and OPEN not in rest
    for tag in ANSWER_TAGS:
        rest = rest.replace(tag, "")
    has_answer = bool(close) and bool(rest.strip())
    thinking = before.replace(OPEN, "")
    fractions = [
        script_fraction(part, script) * exists
        for part, script, exists in ((thinking, thinking_script, bool(close)), (rest, answer_script, has_answer))
        if script
    ]
    if graded:
        parts = [float(has_tags), float(has_order), float(has_answer), *fractions]
        return sum(parts) / len(parts)
    return float(has_tags and has_order and has_answer and all(each >= min_share for each in fractions))
