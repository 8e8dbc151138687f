"""Gold answers: which part of a data set's answer column is the answer, and parsing it.

Many responses share a gold answer, so the results are cached.
"""

from decimal import Decimal
from functools import lru_cache
from numbers import Real

from volley.rewards.math import extraction
from volley.rewards.math.answers.answer import Answer
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import parse_answer


def as_text(answer: object) -> str:
    """Return a gold answer as text, because a data set's column may hold numbers.

    "" for anything that is neither text nor a number, for numbers that are not finite, and for integers with more
    digits than Python converts.
    """
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bool) or not isinstance(answer, Real | Decimal):
        return ""
    try:
        text = str(answer)
    except ValueError:
        return ""
    return text if text[-1:].isdigit() else ""


def final_answer(answer: str) -> str:
    """Return the answer in a gold answer, which may be a worked solution with a box or with `####`."""
    return _extract(answer) if "\\boxed" in answer or "####" in answer else answer.strip()


@lru_cache(1024)
def _extract(solution: str) -> str:
    return extraction.extract(solution) or ""


def parse_gold(answer: str) -> Answer:
    """Parse a gold answer."""
    return parse_answer(_normalized(answer))


@lru_cache(1024)
def _normalized(answer: str) -> str:
    return normalize(final_answer(answer))


@lru_cache(1024)
def is_readable(answer: str) -> bool:
    """Return whether a gold answer can be read. This may evaluate a formula."""
    return parse_gold(answer).is_readable
