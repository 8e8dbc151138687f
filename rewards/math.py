"""Is the response's answer the gold answer? Exact for numbers, symbolic for formulas, literal for words.

    verify(response, answer) -> bool        extract(response) -> str | None        equivalent(a, b) -> bool

What two spellings of an answer are is decided in this order: equal if both are numbers with the same exact value; equal
if both are words with the same letters; otherwise compared as formulas. Equations: a lone symbol on the left is dropped
where the other side has no equation, and whatever is chained by "=" must be equal throughout, so `2x = 5` is not 5 and
neither is `3 + 1 = 5`.

None of these functions raises or executes its input. A comparison of formulas may take long: the scorer runs those in
child processes that it can kill.
"""

import re
from functools import lru_cache
from typing import Any

from rewards import symbolic
from rewards.exact import normal_form, parse_exact
from rewards.extraction import extract
from rewards.item import Unscorable
from rewards.think_format import with_opened_thinking

__all__ = ["equivalent", "extract", "quick_reward", "reward", "verify"]

_LETTER = r"[^\W\d_]"
_WORD = rf"{_LETTER}(?:{_LETTER}|['’.-])*"
_WORDS = re.compile(rf"\(?[A-Z]\)|[A-J]|{_WORD}(?: {_WORD}){{0,9}}")
_SYMBOLS = re.compile(r"[a-zK-Z]|[b-df-hj-np-tv-z]{2,3}")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_LONE_SYMBOL = re.compile(
    r"(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\{\w{1,8}\}|\w))?(?:\([A-Za-z]\))?|[A-Za-z]{4,}|[A-Za-z]+(?: [A-Za-z]+){1,8}"
)


def verify(response: str, answer: str) -> bool:
    """Whether the response's answer equals the gold answer. False where the gold answer cannot be read."""
    try:
        return reward("", response, answer) == 1.0
    except Exception:
        return False


def equivalent(a: str, b: str) -> bool:
    """Whether two answers, as `extract` gives them, mean the same."""
    try:
        verdict = _quick(normal_form(a), normal_form(b))
        return _compare(normal_form(a), normal_form(b)) if verdict is None else verdict
    except Exception:
        return False


def reward(prompt: str, response: str, answer: str, *, truncated: bool = False, **row: Any) -> float:
    """1.0 if the response's answer is the gold answer, else 0.0. Raises `Unscorable` for a gold answer that is neither
    number nor formula nor words."""
    verdict = quick_reward(prompt, response, answer, truncated=truncated)
    if verdict is not None:
        return verdict
    gold = normal_form(answer)
    if not _is_formula(gold):
        raise _unreadable(answer)
    given = _given(prompt, response, truncated)
    return float(given is not None and equivalent(gold, given))


def quick_reward(prompt: str, response: str, answer: str, *, truncated: bool = False, **row: Any) -> float | None:
    """`reward` where it takes microseconds and no symbolic engine; None where it would take one."""
    gold = normal_form(answer)
    if not _is_plain(gold):
        if not all(_is_plain(part) or symbolic.is_admitted(part.strip()) for part in _EQUALS.split(gold)):
            raise _unreadable(answer)
        return None
    given = _given(prompt, response, truncated)
    verdict = given is not None and _quick(gold, normal_form(given))
    return None if verdict is None else float(verdict)


def _given(prompt: str, response: str, truncated: bool) -> str | None:
    return extract(with_opened_thinking(prompt, response), truncated)


def _unreadable(answer: str) -> Unscorable:
    shown = answer if len(answer) <= 60 else answer[:60] + "..."
    return Unscorable(f"the gold answer {shown!r} cannot be read as a number, a formula or words")


def _is_plain(text: str) -> bool:
    return parse_exact(text) is not None or _words(text) is not None


@lru_cache(512)
def _is_formula(text: str) -> bool:
    parts = _EQUALS.split(text)
    return all(_is_plain(part) or symbolic.is_readable(part.strip()) for part in parts)


def _words(text: str) -> str | None:
    """Words in lower case, a choice without its brackets; None for what is no words. A small letter, or two or three
    without a vowel, are symbols."""
    if _SYMBOLS.fullmatch(text) or not _WORDS.fullmatch(text):
        return None
    return " ".join(text.strip("()").lower().split())


def _quick(gold: str, given: str) -> bool | None:
    """The verdict where no symbolic engine is needed, None where it is."""
    if not gold or not given:
        return False
    one, other = parse_exact(gold), parse_exact(given)
    if one is not None and other is not None:
        return one.equals(other)
    words, other_words = _words(gold), _words(given)
    if words is not None and other_words is not None:
        return words == other_words
    gold_parts, given_parts = _EQUALS.split(gold), _EQUALS.split(given)
    if (len(gold_parts) > 1) != (len(given_parts) > 1):
        return _quick_equation(gold_parts, given_parts)
    if words is not None or other_words is not None:
        return False
    if (one is not None and symbolic.has_variables(given)) or (other is not None and symbolic.has_variables(gold)):
        return False
    return None if symbolic.is_admitted(gold) and symbolic.is_admitted(given) else False


def _quick_equation(gold_parts: list[str], given_parts: list[str]) -> bool | None:
    """One side is an equation, the other is not: each of the equation's values must equal the other side."""
    plain, chain = (gold_parts, given_parts) if len(gold_parts) == 1 else (given_parts, gold_parts)
    verdicts = [_quick(plain[0].strip(), value) for value in _values(chain)]
    if False in verdicts or not verdicts:
        return False
    return None if None in verdicts else True


def _values(chain: list[str]) -> list[str]:
    """What stands between the equal signs, without a lone symbol in front."""
    parts = [part.strip() for part in chain]
    return parts[1:] if _LONE_SYMBOL.fullmatch(parts[0]) else parts


def _compare(a: str, b: str) -> bool:
    a_parts, b_parts = _EQUALS.split(a), _EQUALS.split(b)
    if (len(a_parts) > 1) == (len(b_parts) > 1):
        return symbolic.are_equal(a, b)
    plain, chain = (a, b_parts) if len(a_parts) == 1 else (b, a_parts)
    return all(equivalent(plain, value) for value in _values(chain))
