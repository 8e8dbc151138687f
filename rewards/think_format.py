"""Does the response think first and then answer?"""

import unicodedata
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
ANSWER_TAGS = ("<answer>", "</answer>")
MAX_LETTERS = 16_384
# What the names of a language's letters begin with in the Unicode character database.
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
    """The response with the `<think>` in front that a chat template has already written at the prompt's end."""
    return OPEN + response if prompt.rstrip().endswith(OPEN) else response


def after_thinking(response: str) -> str | None:
    """The part that may hold the answer: what follows the last `</think>`, everything where no thinking is marked.
    None while thinking is still open, or was opened again."""
    _, close, rest = response.rpartition(CLOSE)
    return None if OPEN in (rest if close else response) else rest


def script_share(text: str, script: str) -> float:
    """The share of the letters of `text` that belong to a script of `SCRIPTS`; 1.0 where there are no letters.

    Digits, signs and spaces belong to all scripts. Languages that share a script are not told apart. Looks at the last
    `MAX_LETTERS` characters. Raises ValueError for an unknown script.
    """
    if script not in SCRIPTS:
        raise ValueError(f"there is no script '{script}'; it is one of {', '.join(SCRIPTS)}")
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
    """1.0 for exactly one `<think>...</think>` at the start and then an answer that is not empty; else 0.0.

    A `<think>` that the chat template put at the end of the prompt counts as the response's own. The format of
    DeepSeek-R1, arXiv 2501.12948, section 2.2.2; what stands in the two parts is not looked at, except for:

    thinking_script, answer_script: a name of `SCRIPTS`; the part then needs `min_share` of its letters in it, as
    against the mixed languages that section 2.3.2 of the paper punishes.
    graded: the mean of the parts instead of all or nothing, in [0, 1]: tags (one of each), order (thinking opens the
    response and is closed before the answer), an answer, and for each script that is set its share of the letters.
    A part that is missing has share 0. Raises ValueError for an unknown script or a share outside [0, 1].
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
    shares = [
        script_share(part, script) * is_there
        for part, script, is_there in ((thinking, thinking_script, bool(close)), (rest, answer_script, has_answer))
        if script
    ]
    if graded:
        parts = [float(has_tags), float(has_order), float(has_answer), *shares]
        return sum(parts) / len(parts)
    return float(has_tags and has_order and has_answer and all(share >= min_share for share in shares))
