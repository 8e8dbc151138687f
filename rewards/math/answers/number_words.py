"""Parses numbers in words: `twenty-one`, `one hundred twenty-three`, `two and a half`, `three quarters`."""

from fractions import Fraction
from functools import lru_cache

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve"
_TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "half third fourth fifth sixth seventh eighth ninth tenth"
SMALL_NUMBERS = _SMALL.split()
_UNITS = {word: value for value, word in enumerate([*SMALL_NUMBERS, *_TEENS.split()])}
_TENFOLD = {word: 10 * (index + 2) for index, word in enumerate(_TENS.split())}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {word: index + 2 for index, word in enumerate(_ORDINALS.split())} | {"quarter": 4, "halve": 2}
_PARTS |= {f"{word}s": denominator for word, denominator in _PARTS.items()}
_FIRST = frozenset(["a", "an", "half", *_UNITS, *_TENFOLD])
_PIECES = frozenset([*_FIRST, *_SCALES, *_PARTS, "hundred", "and"])
MAX_WORDS = 16


@lru_cache(1024)
def leading_number(text: str) -> tuple[Fraction, str] | None:
    """Return the longest number in words at the start of a lower-case text, and the words after it.

    None if the text does not begin with a number. At most `MAX_WORDS` words are tried.
    """
    words: list[str] = []
    for word in text.split():
        pieces = word.split("-")
        words += pieces if _PIECES.issuperset(pieces) else [word]  # twenty-one, but not one-sided
    if not words or words[0] not in _FIRST:
        return None
    for end in range(min(len(words), MAX_WORDS), 0, -1):
        value = _value(words[:end])
        if value is not None:
            return value, " ".join(words[end:]).removeprefix("a ").removeprefix("an ")
    return None


def _value(words: list[str]) -> Fraction | None:
    if words == ["half"]:
        return Fraction(1, 2)
    if words[-1] in _PARTS and len(words) > 1:
        return _with_part(words)
    if words[0] in ("a", "an"):
        words = ["one", *words[1:]] if len(words) > 1 and words[1] in ("hundred", *_SCALES) else []
    whole = _whole(words)
    return None if whole is None else Fraction(whole)


def _with_part(words: list[str]) -> Fraction | None:
    """Parse a number with a fraction: `two thirds`, `a half`, `two and a half`, `two and three quarters`."""
    denominator, head = _PARTS[words[-1]], words[:-1]
    whole = 0
    if "and" in head:
        index = len(head) - 1 - head[::-1].index("and")
        before, head = _whole(head[:index]), head[index + 1 :]
        if before is None or not before:
            return None
        whole = before
    numerator = 1 if head in (["a"], ["an"]) else _whole(head)
    return None if not numerator or (whole and numerator >= denominator) else Fraction(numerator, denominator) + whole


def _whole(words: list[str]) -> int | None:
    """Parse a whole number: groups below a thousand with falling scales, as in one million two thousand three."""
    total, group, last = 0, [], 10**15
    for word in words:
        if word not in _SCALES:
            group.append(word)
            continue
        count = _hundreds(group)
        if not count or _SCALES[word] >= last:
            return None
        total, group, last = total + count * _SCALES[word], [], _SCALES[word]
    if not group:
        return total if words else None
    group = group[1:] if total and group[0] == "and" else group
    rest = _hundreds(group)
    return None if rest is None or (total and not 0 < rest < last) else total + rest


def _hundreds(words: list[str]) -> int | None:
    """Parse a number below 10,000: twenty one, one hundred and five, twelve hundred."""
    if "hundred" in words:
        index = words.index("hundred")
        count, rest = _tens(words[:index]), words[index + 1 :]
        rest = rest[1:] if rest[:1] == ["and"] else rest
        rest_value = _tens(rest) if rest else 0
        return None if not count or rest_value is None else 100 * count + rest_value
    return _tens(words)


def _tens(words: list[str]) -> int | None:
    """Parse a number below 100."""
    if len(words) == 1:
        return _UNITS.get(words[0], _TENFOLD.get(words[0]))
    if len(words) == 2 and words[0] in _TENFOLD and 0 < _UNITS.get(words[1], 0) < 10:
        return _TENFOLD[words[0]] + _UNITS[words[1]]
    return None
