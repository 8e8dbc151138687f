"""The math verifier: does the answer of a response equal the gold answer?

Numbers are compared exactly, formulas by evaluation, words literally. The steps, and the modules that take them:

    response -> extraction (statement, retraction) -> normalization -> parsing -> equality and compare -> verdict

Three functions are for everyone: `verify`, `equivalent` and `extract`. They never raise. The others are for the reward
service: `reward` gives the verdict, `quick_reward` gives it only where that takes microseconds, and the variants for an
extracted answer skip the extraction.

Safety: no part of the input is executed. The work for an answer is bounded by its length. On a machine that is too slow
even for that, it ends after `LIMIT_S` seconds of processor time. All functions may be called from any thread, process
and event loop.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from volley.rewards.item import Unscorable
from volley.rewards.math import extraction, gold
from volley.rewards.math.answers.answer import Answer
from volley.rewards.math.answers.equality import equal_answers, quick_equal_answers
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import parse_answer
from volley.rewards.math.answers.unfinished import is_unfinished
from volley.rewards.math.expressions.limits import TimeLimitError, time_limit
from volley.rewards.think_format import with_opened_thinking

__all__ = ["equivalent", "extract", "quick_reward", "reward", "verify"]

LIMIT_S = 2.0
"""Processor time for one verdict, in seconds."""


def verify(response: str, answer: str, tolerance: float = 0.0, limit_s: float = LIMIT_S) -> bool:
    r"""Return whether the answer of a response equals the gold answer.

    Args:
        response: the text of the response, with or without thinking.
        answer: the gold answer, or a worked solution that ends in a box or with `####`.
        tolerance: how far a number may be from the gold one. 0 is exact.
        limit_s: seconds of processor time after which the verdict is False.

    Returns:
        False also if the gold answer cannot be read or the response is not text.

    >>> verify(r"Half of it, so the answer is \boxed{\frac{1}{2}}.", "0.5")
    True
    >>> verify("The answer is 19.", "18")
    False
    >>> verify("The answer is 3.1", "3.14", tolerance=0.05)
    True
    """
    try:
        return reward("", response, answer, tolerance=tolerance, limit_s=limit_s) == 1.0
    except Exception:
        return False


def equivalent(a: str, b: str, tolerance: float = 0.0, limit_s: float = LIMIT_S) -> bool:
    r"""Return whether two answers, such as `extract` returns them, are the same answer.

    Neither may be an unfinished calculation of the other (`volley.rewards.math.answers.unfinished`). Where it matters
    which of them is the gold answer (a rounded decimal), that is `a`.

    Args:
        a: one answer.
        b: the other answer.
        tolerance: how far numbers may be apart. 0 is exact.
        limit_s: seconds of processor time after which the result is False.

    >>> equivalent("(x+1)^2", "x^2 + 2x + 1")
    True
    >>> equivalent("5 cm", "5 m")
    False
    >>> equivalent("47+38", "85")
    False
    """
    try:
        with time_limit(limit_s):
            one, other = parse_answer(normalize(gold.as_text(a))), parse_answer(normalize(gold.as_text(b)))
            if not (one.is_readable and other.is_readable and equal_answers(one, other, _as_fraction(tolerance))):
                return False
            if one.tree is None or other.tree is None or one.choice or other.choice:
                return True
            return not is_unfinished(other.tree, one.tree)
    except Exception:
        return False


def extract(response: str, truncated: bool = False) -> str | None:
    r"""Return the answer that a response gives, in its own spelling; None if it gives none.

    The rules are in `volley.rewards.math.extraction`.

    Args:
        response: the text of the response, with or without thinking.
        truncated: whether the response ended at the token limit, so that its last line may be cut off.

    >>> extract(r"<think>Perhaps 12?</think> So it is $\boxed{x = 7}$.")
    'x = 7'
    >>> extract("She sells 18 eggs and buys 3 ducks with the money, which makes her very happy.") is None
    True
    """
    try:
        return extract_answer("", response, "", truncated=truncated)
    except TimeLimitError:
        return None


def reward(
    prompt: str,
    response: str,
    answer: str,
    *,
    truncated: bool = False,
    tolerance: float = 0.0,
    limit_s: float = LIMIT_S,
    **row: Any,
) -> float:
    """Return 1.0 if the answer of a response equals the gold answer, else 0.0.

    Args:
        prompt: the prompt, which may have opened the thinking already.
        response: the text of the response.
        answer: the gold answer. A number is taken as its text.
        truncated: whether the response ended at the token limit.
        tolerance: how far a number may be from the gold one; from the row or from the recipe.
        limit_s: seconds of processor time, to within milliseconds.
        row: the other columns, which are not used.

    Raises:
        Unscorable: after `limit_s` seconds, and for a gold answer that is not a number, a formula or words.
    """
    with time_limit(limit_s):
        extracted = extract_answer(prompt, response, answer, truncated=truncated)
        return grade_extracted(extracted, answer, tolerance=tolerance, limit_s=limit_s)


def quick_reward(
    prompt: str, response: str, answer: str, *, truncated: bool = False, tolerance: float = 0.0, **row: Any
) -> float | None:
    """Return `reward` if that takes microseconds; None if a formula must be parsed or evaluated."""
    extracted = extract_answer(prompt, response, answer, truncated=truncated)
    return quick_grade_extracted(extracted, answer, tolerance=tolerance)


def extract_answer(prompt: str, response: str, answer: str, *, truncated: bool = False, **row: Any) -> str | None:
    """Return the answer that `reward` finds in a response, None if there is none. Raises TimeLimitError."""
    if not isinstance(response, str):
        return None
    with time_limit(LIMIT_S):
        return extraction.extract(with_opened_thinking(prompt, response), truncated)


def grade_extracted(
    text: str | None, /, answer: str, *, tolerance: float = 0.0, limit_s: float = LIMIT_S, **row: Any
) -> float:
    """Return `reward` for a response whose answer `extract_answer` has found already."""
    with time_limit(limit_s):
        verdict = _verdict(text, gold.as_text(answer), tolerance, equal_answers)
    assert verdict is not None
    return verdict


def quick_grade_extracted(text: str | None, /, answer: str, *, tolerance: float = 0.0, **row: Any) -> float | None:
    """Return `quick_reward` for a response whose answer `extract_answer` has found already.

    Two shortcuts decide most cases from the text alone: whole numbers, and formulas that are spelled differently.
    """
    answer = gold.as_text(answer)
    if text is not None:
        gold_text = gold.final_answer(answer)
        if not tolerance and _INTEGER.fullmatch(text) and _INTEGER.fullmatch(gold_text):
            return float(int(text) == int(gold_text))
        if _FORMULA.search(text) and _FORMULA.search(gold_text) and _compact(text) != _compact(gold_text):
            return None
    return _verdict(text, answer, tolerance, quick_equal_answers)


_INTEGER = re.compile(r"-?[0-9]{1,80}")
_FORMULA = re.compile(
    r"\^|\\(?:sqrt|pi|sin|cos|tan|log|ln|exp)|\{ ?[A-Za-z] ?\}"
    r"|(?<![A-Za-z])[A-Za-z] ?[-+*/=]|[-+*/=] ?[A-Za-z](?![A-Za-z])"
)
"""Matches text that is a formula: it occurs in no number and in few words."""


def _compact(text: str) -> str:
    """Remove the most frequent differences in the spelling of formulas."""
    return text.replace(" ", "").replace("dfrac", "frac")


def _verdict(
    text: str | None, answer: str, tolerance: float, equal: Callable[[Answer, Answer, Fraction], bool | None]
) -> float | None:
    """Compare an extracted answer with a gold answer. None if `equal` returns None."""
    given = parse_answer(normalize(text)) if text is not None else None
    verdict: bool | None = False
    if given is not None and (given.tree or given.words or given.choice or given.clock or given.base):
        verdict = equal(gold.parse_gold(answer), given, _as_fraction(tolerance))
    if verdict is None:
        return None
    # Checked last, because this may evaluate a formula.
    if not gold.is_readable(answer):
        shown = answer if len(answer) <= 60 else answer[:60] + "..."
        raise Unscorable(f"the gold answer {shown!r} cannot be read as a number, a formula or words")
    return float(verdict)


def _as_fraction(tolerance: float) -> Fraction:
    try:
        return abs(Fraction(str(tolerance))) if tolerance else Fraction(0)
    except ValueError:
        raise Unscorable(f"the tolerance {str(tolerance)[:60]!r} is not a number") from None


def warm_up() -> None:
    """Import and use everything once, so that the first response does not pay for it."""
    equivalent(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")
