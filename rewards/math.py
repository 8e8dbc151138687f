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
    """Whether two answers, as `extract` gives them, mean the same. Where it matters which is the true one (a decimal
    against a formula), that is `a`."""
    try:
        gold, given = normal_form(a), normal_form(b)
        verdict = _quick(gold, given)
        return _compare(gold, given) if verdict is None else verdict
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
    parts = _split(gold)
    if not all(_is_plain(part) for part in (_values(parts) if len(parts) > 1 else parts)):
        if not all(_is_plain(part) or symbolic.is_admitted(part) for part in parts):
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
    return all(_is_plain(part) or symbolic.is_readable(part) for part in _split(text))


def _words(text: str) -> str | None:
    """Words in lower case, a choice without its brackets; None for what is no words. A small letter, or two or three
    without a vowel, are symbols."""
    if _SYMBOLS.fullmatch(text) or not _WORDS.fullmatch(text):
        return None
    return " ".join(text.strip("()").lower().split())


def _quick(gold: str, given: str) -> bool | None:
    """The verdict where no symbolic engine is needed, None where it is."""
    verdicts = [_quick_pair(*pair) for pair in _pairs(gold, given)]
    if False in verdicts or not verdicts:
        return False
    return None if None in verdicts else True


def _compare(gold: str, given: str) -> bool:
    """The verdict where `_quick` has none."""
    return all(_quick_pair(*pair) or symbolic.are_equal(*pair) for pair in _pairs(gold, given))


def _pairs(gold: str, given: str) -> list[tuple[str, str]]:
    """What must be equal for the answers to be: they themselves, or, where only one is an equation, each of its values
    and the other."""
    gold_parts, given_parts = _split(gold), _split(given)
    if len(given_parts) > 1 and len(gold_parts) == 1:
        return [(gold, value) for value in _values(given_parts)]
    if len(gold_parts) > 1 and len(given_parts) == 1:
        return [(value, given) for value in _values(gold_parts)]
    return [(gold, given)]


def _split(text: str) -> list[str]:
    return [part.strip() for part in _EQUALS.split(text)]


def _values(parts: list[str]) -> list[str]:
    """The parts of an equation without a lone symbol in front."""
    return parts[1:] if _LONE_SYMBOL.fullmatch(parts[0]) else parts


def _quick_pair(gold: str, given: str) -> bool | None:
    if not gold or not given:
        return False
    one, other = parse_exact(gold), parse_exact(given)
    if one is not None and other is not None:
        return one.equals(other)
    words, other_words = _words(gold), _words(given)
    if words is not None or other_words is not None:
        return words == other_words
    if (one is not None and symbolic.has_variables(given)) or (other is not None and symbolic.has_variables(gold)):
        return False
    return None if symbolic.is_admitted(gold) and symbolic.is_admitted(given) else False
