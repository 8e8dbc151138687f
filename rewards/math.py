"""Is the response's answer the gold answer? Exact for numbers, by evaluation for formulas, literal for words.

    verify(response, answer) -> bool        extract(response) -> str | None        equivalent(a, b) -> bool

`rewards.extraction` finds the answer, `rewards.spelling` gives it one spelling, `rewards.answer` and `rewards.grammar`
read it, `rewards.verdict` and `rewards.compare` compare. None of these raises or executes its input, and the work for
an answer is bounded by its length, so they may be called from any thread, process and event loop.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from numbers import Real
from typing import Any

from rewards.answer import Answer, read
from rewards.extraction import extract
from rewards.item import Unscorable
from rewards.spelling import normal_form
from rewards.think_format import with_opened_thinking
from rewards.verdict import quick, same

__all__ = ["equivalent", "extract", "quick_reward", "reward", "verify"]


def verify(response: str, answer: str, tolerance: float = 0.0) -> bool:
    """Whether the response's answer equals the gold answer. False where the gold answer cannot be read, and for a
    response that is no text. tolerance: how far a number may be from the gold one; 0 for exact."""
    try:
        return reward("", response, answer, tolerance=tolerance) == 1.0
    except Exception:
        return False


def equivalent(a: str, b: str, tolerance: float = 0.0) -> bool:
    """Whether two answers, as `extract` gives them, mean the same. Where it matters which is the true one (a rounded
    decimal), that is `a`."""
    try:
        gold, given = read(normal_form(_as_text(a))), read(normal_form(_as_text(b)))
        return gold.is_readable and given.is_readable and same(gold, given, _exact(tolerance))
    except Exception:
        return False


def reward(
    prompt: str, response: str, answer: str, *, truncated: bool = False, tolerance: float = 0.0, **row: Any
) -> float:
    """1.0 if the response's answer is the gold answer, else 0.0. tolerance: of the row or the recipe, how far a number
    may be from the gold one. A gold answer that is a number is read as its text. Raises `Unscorable` for one that is
    neither number nor formula nor words."""
    verdict = _verdict(prompt, response, _as_text(answer), truncated, tolerance, same)
    assert verdict is not None
    return verdict


def quick_reward(
    prompt: str, response: str, answer: str, *, truncated: bool = False, tolerance: float = 0.0, **row: Any
) -> float | None:
    """`reward` where it takes microseconds; None where formulas must be evaluated, or would have to be parsed only to
    find that out."""
    answer = _as_text(answer)
    text = found(prompt, response, answer, truncated=truncated)
    one, other = _gold_form(answer), normal_form(text or "")
    if one != other and _FORMULA.search(one) and _FORMULA.search(other):
        return None
    return _verdict(prompt, response, answer, truncated, tolerance, quick)


def found(prompt: str, response: str, answer: str, *, truncated: bool = False, **row: Any) -> str | None:
    """What `reward` takes for the response's answer, None where there is none."""
    return _extract(with_opened_thinking(prompt, response), truncated) if isinstance(response, str) else None


_FORMULA = re.compile(r"\^|\\(?:sqrt|pi|sin|cos|tan|log|ln|exp)")
"""What stands in no number that is worth a quick look."""

# A response is asked for its answer twice: to judge it, and to tell what was read.
_extract = lru_cache(32)(extract)


def _verdict(
    prompt: str,
    response: str,
    answer: str,
    truncated: bool,
    tolerance: float,
    compare: Callable[[Answer, Answer, Fraction], bool | None],
) -> float | None:
    text = found(prompt, response, answer, truncated=truncated)
    given = read(normal_form(text)) if text is not None else None
    verdict: bool | None = False
    if given is not None and (given.tree or given.words or given.choice or given.clock or given.base):
        verdict = compare(_gold(answer), given, _exact(tolerance))
    if verdict is None:
        return None
    # Last, because it may be a formula that has to be evaluated.
    if not _is_readable(answer):
        shown = answer if len(answer) <= 60 else answer[:60] + "..."
        raise Unscorable(f"the gold answer {shown!r} cannot be read as a number, a formula or words")
    return float(verdict)


def _as_text(answer: object) -> str:
    """A gold answer as text: a data set's column may hold numbers. "" for what is neither, and for what is no finite
    number or has more digits than Python writes out."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bool) or not isinstance(answer, Real | Decimal):
        return ""
    try:
        text = str(answer)
    except ValueError:
        return ""
    return text if text[-1:].isdigit() else ""


def _gold(answer: str) -> Answer:
    return read(_gold_form(answer))


@lru_cache(1024)
def _gold_form(answer: str) -> str:
    """The gold answer's one spelling; many responses share it. A worked solution, as data sets have them, counts for
    its box or for what follows its `####`."""
    stated = extract(answer) if "\\boxed" in answer or "####" in answer else answer
    return normal_form(stated or "")


@lru_cache(1024)
def _is_readable(answer: str) -> bool:
    return _gold(answer).is_readable


def _exact(tolerance: float) -> Fraction:
    try:
        return abs(Fraction(str(tolerance))) if tolerance else Fraction(0)
    except ValueError:
        raise Unscorable(f"the tolerance {str(tolerance)[:60]!r} is no number") from None


def warm_up() -> None:
    """Import and use everything once, so that no response pays for it."""
    equivalent(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")
