"""Is the response's answer the gold answer? Exact for numbers, by evaluation for formulas, literal for words.

    verify(response, answer) -> bool        extract(response) -> str | None        equivalent(a, b) -> bool

`extraction` finds the answer, `spelling` gives it one spelling, `answer` and `grammar`
read it, `verdict` and `compare` compare. None of these raises or executes its input, the work for an
answer is bounded by its length, and on a machine that is too slow for that it ends after `LIMIT_S` of work all the
same; so they may be called from any thread, process and event loop.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from numbers import Real
from typing import Any

from volley.rewards.item import Unscorable
from volley.rewards.math import extraction
from volley.rewards.math.answers.answer import Answer
from volley.rewards.math.answers.equality import equal_answers, quick_equal_answers
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import parse_answer
from volley.rewards.math.answers.unfinished import is_unfinished
from volley.rewards.math.expressions.limits import TimeLimitError, time_limit
from volley.rewards.think_format import with_opened_thinking

__all__ = ["equivalent", "extract", "quick_reward", "reward", "verify"]

LIMIT_S = 2.0


def verify(response: str, answer: str, tolerance: float = 0.0, limit_s: float = LIMIT_S) -> bool:
    """Whether the response's answer equals the gold answer. False where the gold answer cannot be read, for a response
    that is no text, and after `limit_s` seconds of work. tolerance: how far a number may be from the gold one; 0 is
    exact."""
    try:
        return reward("", response, answer, tolerance=tolerance, limit_s=limit_s) == 1.0
    except Exception:
        return False


def equivalent(a: str, b: str, tolerance: float = 0.0, limit_s: float = LIMIT_S) -> bool:
    """Whether two answers, as `extract` gives them, are the same answer: neither is a calculation whose result the
    other is (`worked_out`). False after `limit_s` seconds of work. Where it matters which is the true one (a
    rounded decimal), that is `a`."""
    try:
        with time_limit(limit_s):
            gold, given = parse_answer(normalize(_as_text(a))), parse_answer(normalize(_as_text(b)))
            if not (gold.is_readable and given.is_readable and equal_answers(gold, given, _exact(tolerance))):
                return False
            if gold.tree is None or given.tree is None or gold.choice or given.choice:
                return True
            return not is_unfinished(given.tree, gold.tree)
    except Exception:
        return False


def extract(response: str, truncated: bool = False) -> str | None:
    """The answer that a response gives, as it spells it; None where it gives none: see `extraction`."""
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
    """1.0 if the response's answer is the gold answer, else 0.0. tolerance: of the row or the recipe, how far a number
    may be from the gold one. A gold answer that is a number is read as its text. limit_s: seconds of work after which a
    response is unscorable, to within milliseconds. Raises `Unscorable` then, and for a gold answer that is neither
    number nor formula nor words."""
    with time_limit(limit_s):
        return grade_extracted(
            extract_answer(prompt, response, answer, truncated=truncated), answer, tolerance=tolerance, limit_s=limit_s
        )


def grade_extracted(
    text: str | None, /, answer: str, *, tolerance: float = 0.0, limit_s: float = LIMIT_S, **row: Any
) -> float:
    """`reward` of a response in which `found` has found this."""
    with time_limit(limit_s):
        verdict = _verdict(text, _as_text(answer), tolerance, equal_answers)
    assert verdict is not None
    return verdict


def quick_reward(
    prompt: str, response: str, answer: str, *, truncated: bool = False, tolerance: float = 0.0, **row: Any
) -> float | None:
    """`reward` where it takes microseconds; None where formulas must be evaluated, or would have to be parsed only to
    find that out."""
    return quick_grade_extracted(
        extract_answer(prompt, response, answer, truncated=truncated), answer, tolerance=tolerance
    )


def quick_grade_extracted(text: str | None, /, answer: str, *, tolerance: float = 0.0, **row: Any) -> float | None:
    """`quick_reward` of a response in which `found` has found this. Most are decided as they stand: whole numbers, and
    formulas that are not spelt alike."""
    answer = _as_text(answer)
    if text is not None:
        gold = _gold_text(answer)
        if not tolerance and _WHOLE.fullmatch(text) and _WHOLE.fullmatch(gold):
            return float(int(text) == int(gold))
        if _FORMULA.search(text) and _FORMULA.search(gold) and _without_spacing(text) != _without_spacing(gold):
            return None
    return _verdict(text, answer, tolerance, quick_equal_answers)


def extract_answer(prompt: str, response: str, answer: str, *, truncated: bool = False, **row: Any) -> str | None:
    """What `reward` takes for the response's answer, None where there is none. Raises TimeLimitError."""
    if not isinstance(response, str):
        return None
    with time_limit(LIMIT_S):
        return extraction.extract(with_opened_thinking(prompt, response), truncated)


_WHOLE = re.compile(r"-?[0-9]{1,80}")
_FORMULA = re.compile(
    r"\^|\\(?:sqrt|pi|sin|cos|tan|log|ln|exp)|\{ ?[A-Za-z] ?\}"
    r"|(?<![A-Za-z])[A-Za-z] ?[-+*/=]|[-+*/=] ?[A-Za-z](?![A-Za-z])"
)
"""What stands in no number and few words, so that two of them are not worth a quick look."""


def _without_spacing(text: str) -> str:
    """Without what formulas are most often spelt differently by."""
    return text.replace(" ", "").replace("dfrac", "frac")


def _verdict(
    text: str | None, answer: str, tolerance: float, compare: Callable[[Answer, Answer, Fraction], bool | None]
) -> float | None:
    given = parse_answer(normalize(text)) if text is not None else None
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
    return parse_answer(_gold_form(answer))


@lru_cache(1024)
def _gold_form(answer: str) -> str:
    """The gold answer's one spelling; many responses share it."""
    return normalize(_gold_text(answer))


def _gold_text(answer: str) -> str:
    """The gold answer as it stands there. A worked solution, as data sets have them, counts for its box or for what
    follows its `####`."""
    return _extract_from_solution(answer) if "\\boxed" in answer or "####" in answer else answer.strip()


@lru_cache(1024)
def _extract_from_solution(solution: str) -> str:
    return extraction.extract(solution) or ""


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
