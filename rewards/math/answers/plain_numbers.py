"""Parses plain numbers with regular expressions, so that the common case costs microseconds."""

import re
from fractions import Fraction

from volley.rewards.math.answers.answer import DEGREE, Answer
from volley.rewards.math.answers.known_units import CURRENCIES
from volley.rewards.math.answers.units import SCALES, unit_name
from volley.rewards.math.expressions.tree import Node, number

# Sign, currency, sign, digits, decimals, exponent, currency or percent sign, and the rest: -$1,234.50 dollars.
_NUMERAL = re.compile(
    rf"([+-]?) ?([{''.join(CURRENCIES)}]?) ?([+-]?)"
    r"([0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])|[0-9]{1,80}(?!,[0-9])|(?=\.[0-9]))"
    rf"(\.[0-9]{{0,80}})?([eE][+-]?[0-9]{{1,3}}(?![0-9.]))?( ?[{''.join(CURRENCIES)}]| ?%)?(?=$|[ A-Za-z¢])(.*)"
)
_FRACTION = re.compile(r"(-?) ?(?:\\frac ?\{(-?[0-9]{1,80})\} ?\{(-?[0-9]{1,80})\}|([0-9]{1,80}) ?/ ?([0-9]{1,80}))")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
# 0.333...; 30 degrees 15' 20".
_ELLIPSIS = re.compile(r"(-?)([0-9]{0,40})\.([0-9]{3,40}) ?(?:\.{3}|\\[lc]?dots|…)")
_MINUTES = re.compile(r"(-?)([0-9]{1,3}) degrees ([0-9]{1,2}) ?'(?: ?([0-9]{1,2}(?:\.[0-9]{1,9})?) ?(?:''|\"))?")


def parse_plain_number(text: str) -> Answer | None:
    """Parse a decimal number, a fraction, a repeating decimal, or an angle in degrees and minutes.

    None if the text has none of these forms. An empty answer if it has the form but no value.
    """
    if match := _NUMERAL.fullmatch(text):
        answer = _numeral(match)
        if answer is not None:
            return answer
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = int(match[2] or match[4]), int(match[3] or match[5])
        if denominator:
            return Answer(number(Fraction(-numerator if match[1] else numerator, denominator)))
    if match := _ELLIPSIS.fullmatch(text):
        return _repeating(match)
    if match := _MINUTES.fullmatch(text):
        return _angle(match)
    return None


def _numeral(match: re.Match[str]) -> Answer | None:
    """Parse a decimal number with its sign, currency, percent sign, scale (million) and unit."""
    sign, currency, inner_sign, digits, decimals, exponent, mark, rest = match.groups("")
    if (sign and inner_sign) or (mark and currency):
        return None
    sign, mark = sign or inner_sign, mark.strip()
    if decimals or exponent:
        value = Fraction((digits.replace(",", "") or "0") + decimals + exponent)
    else:
        value = Fraction(int(digits.replace(",", "")))
    unit = CURRENCIES[currency or mark] if currency or mark in CURRENCIES else ""
    rest, is_spaced = rest.strip(), rest.startswith(" ") or mark == "%"
    if ordinal := _ORDINAL.match(rest):
        rest, is_spaced = rest[ordinal.end() :].strip(), True
    word = rest.partition(" ")[0].lower()
    if word in SCALES:
        value, rest = value * SCALES[word], rest[len(word) :].strip()
    if rest:
        name = unit_name(rest, is_spaced)
        if name is None:
            return None
        unit = unit or name
    places = str(len(decimals) - 1) if len(decimals) > 1 and not exponent and word not in SCALES else ""
    node = Node("number", number=value, name=places)
    return Answer(Node("minus", (node,)) if sign == "-" else node, unit, mark == "%")


def _repeating(match: re.Match[str]) -> Answer:
    """Parse a decimal with an ellipsis, such as 0.333... or 0.1212....

    A single digit must occur three times to count as the period, two or more digits twice.
    """
    sign, whole, decimals = match.groups("")
    for length in range(1, len(decimals) // 2 + 1):
        period = decimals[-length:]
        if decimals.endswith(period * (3 if length == 1 else 2)):
            shown = Fraction(int(whole + decimals[:-length] or "0"), 10 ** (len(decimals) - length))
            value = shown + Fraction(int(period), (10**length - 1) * 10 ** (len(decimals) - length))
            return Answer(number(-value if sign else value))
    return Answer()


def _angle(match: re.Match[str]) -> Answer:
    """Parse an angle in degrees, minutes and seconds."""
    degrees, minutes, seconds = (Fraction(part or 0) for part in match.groups()[1:])
    if minutes >= 60 or seconds >= 60:
        return Answer()
    value = degrees + minutes / 60 + seconds / 3600
    return Answer(number(-value if match[1] else value), DEGREE)
