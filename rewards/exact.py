"""Numbers as exact fractions, read from plain text or LaTeX without any symbolic engine.

Reads integers, decimals, thousands groups, fractions, mixed numbers, powers and plain arithmetic, with a currency sign,
a percent sign or a unit. Everything is bounded before it is computed: characters, nesting, bits. Never uses floats.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_CHARS = 256
MAX_NESTING = 16
MAX_BITS = 4096

CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
# Units that are told apart; others (eggs, muffins) are taken as words that only name what was counted.
_MEASURES = {
    "cent": "cent cents ¢",
    "dollar": "dollar dollars usd",
    "euro": "euro euros eur",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "inch": "inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "ounce": "oz ounce ounces",
    "pound": "lb lbs pound pounds",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l liter liters litre litres",
    "gallon": "gal gallon gallons",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "degree": "degree degrees",
}
MEASURES = {word: name for name, words in _MEASURES.items() for word in words.split()}
# Words after a number that change it, or offer another one.
_CHANGING = """
or and to not nor but plus minus times over by than if is are hundred thousand million billion trillion dozen half
halves third thirds quarter quarters fifth fifths tenth tenths hundredth hundredths mod base squared cubed
"""
NOT_UNITS = frozenset(_CHANGING.split())

_REPLACEMENTS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"\\(?:left|right|displaystyle|,|!)(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])|°"), " degrees"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])|[×·⋅]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|÷"), "/"),
    (re.compile(r"\\%|\bpercent\b"), "%"),
    (re.compile(r"\\([$#&])"), r"\1"),
    (re.compile(r"\\(?:[;: ]|quad(?![A-Za-z])|qquad(?![A-Za-z]))|~"), " "),
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])|π"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile("[\N{MINUS SIGN}\N{EN DASH}]"), "-"),
    (re.compile(r"\s+"), " "),
]
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))


def normal_form(text: str) -> str:
    """One spelling for what means the same on paper: without delimiters, spacing commands, text commands and the full
    stop at the end; `\\frac`, `^`, `*`, `/`, `-`, `%` for their variants. "" for what is longer than `MAX_CHARS`."""
    text = text.strip()
    return _normal_form(text) if len(text) <= MAX_CHARS else ""


@lru_cache(4096)
def _normal_form(text: str) -> str:
    before = None
    while before != text:
        before = text
        text = text.strip(" \t\r\n").rstrip(".,;:")
        for left, right in _WRAPPERS:
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                inside = text[len(left) : -len(right)]
                if left not in inside:
                    text = inside
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text.strip()


@dataclass(frozen=True, slots=True)
class Exact:
    """A rational number. percent: it carried a percent sign (which `value` leaves out). unit: what stood behind it, by
    its name in `MEASURES` where it has one, with its power (`cm^2`); "" where nothing stood."""

    value: Fraction
    percent: bool = False
    unit: str = ""

    def equals(self, other: "Exact") -> bool:
        """Equal numbers, and not in two different measures (cm is not m). Where only one has a percent sign, 50 % is
        both 50 (the sign is the unit that the other left out) and 0.5 (its value)."""
        if self.unit != other.unit and _is_measure(self.unit) and _is_measure(other.unit):
            return False
        if self.percent == other.percent:
            return self.value == other.value
        share, plain = (self, other) if self.percent else (other, self)
        return not plain.unit and plain.value in (share.value, share.value / 100)


def _is_measure(unit: str) -> bool:
    return unit.partition("^")[0] in _MEASURES


_NUMBER_PART = re.compile(r"(?:\\frac|(?<=[0-9])[eE](?=[+-]?[0-9])|[^A-Za-z\\])*")
_CURRENCY = re.compile(rf"^([+-]?) ?([{''.join(CURRENCIES)}])|([{''.join(CURRENCIES)}])$")
_UNIT = re.compile(r"([A-Za-z¢]+)(?: ?(?:\^ ?)?\{?([23²³])\}?)?(?:[ /-]+[A-Za-z]+){0,5}")
_MIXED = re.compile(r"([+-]?)([0-9]{1,30}) ([0-9]{1,30})/([0-9]{1,30})")


def parse_exact(text: str) -> Exact | None:
    """The number that `text` spells, whole; None if it is anything else, or too large to be computed safely."""
    return _parse_exact(normal_form(text))


@lru_cache(4096)
def _parse_exact(text: str) -> Exact | None:
    number = _NUMBER_PART.match(text)
    assert number is not None
    digits, rest = number[0].strip(), text[number.end() :].strip()
    percent = digits.endswith("%")
    digits = digits.removesuffix("%").rstrip()
    unit = ""
    if currency := _CURRENCY.search(digits):
        unit = CURRENCIES[currency[2] or currency[3]]
        digits = digits[: currency.start()] + (currency[1] or "") + digits[currency.end() :]
    if rest:
        named = _unit_name(rest, spaced=number[0].endswith((" ", "%")))
        if named is None:
            return None
        unit = unit or named
    value = _evaluate(digits.strip())
    return None if value is None else Exact(value, percent, unit)


def _unit_name(text: str, spaced: bool) -> str | None:
    """The unit's name; None if the text is no unit. Letters right behind a number are algebra unless they are a measure
    of two letters or more (5cm, but not 2t)."""
    match = _UNIT.fullmatch(text)
    if match is None or any(word in NOT_UNITS for word in re.findall("[a-z]+", text.lower())):
        return None
    word = match[1].lower()
    if not spaced and (len(word) < 2 or word not in MEASURES):
        return None
    if len(word) < 2 and word not in MEASURES:
        return None
    power = {"²": "2", "³": "3"}.get(match[2], match[2])
    return MEASURES.get(word, word) + (f"^{power}" if power else "")


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])|[0-9]+)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?"
    r"|\.[0-9]+)|(?P<operator>\\frac|[-+*/^(){}]))"
)


def _evaluate(text: str) -> Fraction | None:
    if max(text.count("("), text.count("{")) > MAX_NESTING:
        return None
    mixed = _MIXED.fullmatch(text)
    try:
        if mixed:
            value = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
            return -value if mixed[1] == "-" else value
        return _Arithmetic(text).value()
    except (_NotExactError, ZeroDivisionError):
        return None


class _NotExactError(Exception):
    pass


class _Arithmetic:
    """Recursive descent over `+ - * / ^ ( ) { } \\frac`; no name, no function, no implicit product but a mixed number
    (`3\\frac{1}{4}` is 3.25)."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        place = 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise _NotExactError
            self._tokens.append(match["number"] or match["operator"])
            place = match.end()
        self._place = 0

    def value(self) -> Fraction:
        result = self._sum()
        if self._peek():
            raise _NotExactError
        return result

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._peek()
        if token not in wanted or not token:
            return ""
        self._place += 1
        return token

    def _sum(self) -> Fraction:
        result = self._product()
        while operator := self._take("+", "-"):
            term = self._product()
            result = _bounded(result + term if operator == "+" else result - term)
        return result

    def _product(self) -> Fraction:
        result = self._signed()
        while operator := self._take("*", "/"):
            factor = self._signed()
            result = _bounded(result * factor if operator == "*" else result / factor)
        return result

    def _signed(self) -> Fraction:
        sign = 1
        while operator := self._take("+", "-"):
            sign = -sign if operator == "-" else sign
        return sign * self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._take("^"):
            return base
        negative = bool(self._take("-"))
        exponent = self._atom()
        if exponent.denominator != 1 or abs(exponent) > MAX_BITS:
            raise _NotExactError
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) > MAX_BITS:
            raise _NotExactError
        return base ** int(-exponent if negative else exponent)

    def _atom(self) -> Fraction:
        token = self._peek()
        self._place += 1
        if token == "(":
            return self._until(")")
        if token == "{":
            return self._until("}")
        if token == "\\frac":
            return self._fraction()
        if not token or token in "+-*/^)}":
            raise _NotExactError
        number = _bounded(Fraction(token.replace(",", "")))
        if self._take("\\frac"):
            part = self._fraction()
            if number.denominator != 1 or not 0 < part < 1:
                raise _NotExactError
            return number + part
        return number

    def _until(self, close: str) -> Fraction:
        result = self._sum()
        if not self._take(close):
            raise _NotExactError
        return result

    def _fraction(self) -> Fraction:
        return _bounded(self._group() / self._group())

    def _group(self) -> Fraction:
        if not self._take("{"):
            raise _NotExactError
        return self._until("}")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _NotExactError
    return value
