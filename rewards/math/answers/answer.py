"""An answer's normal form, read: a number with its unit, words, a choice, a clock time, a numeral in a base, a formula.

A plain number is read by one pattern, so that the common case costs microseconds; whatever else is a formula goes to
`volley.rewards.math.expressions.grammar`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from volley.rewards.math.answers.known_units import CURRENCIES
from volley.rewards.math.answers.number_words import SMALL_NUMBERS, leading_number
from volley.rewards.math.answers.units import SCALES, split_unit, split_units, unit_name
from volley.rewards.math.expressions import compare
from volley.rewards.math.expressions.grammar import parse
from volley.rewards.math.expressions.tree import Node, number
from volley.rewards.math.expressions.vocabulary import FUNCTION_ALIASES, FUNCTIONS, GREEK, WORDS

DEGREE = "degree"

_NUMERAL = re.compile(
    rf"([+-]?) ?([{''.join(CURRENCIES)}]?) ?([+-]?)"
    r"([0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])|[0-9]{1,80}(?!,[0-9])|(?=\.[0-9]))"
    rf"(\.[0-9]{{0,80}})?([eE][+-]?[0-9]{{1,3}}(?![0-9.]))?( ?[{''.join(CURRENCIES)}]| ?%)?(?=$|[ A-Za-z¢])(.*)"
)
_FRACTION = re.compile(r"(-?) ?(?:\\frac ?\{(-?[0-9]{1,80})\} ?\{(-?[0-9]{1,80})\}|([0-9]{1,80}) ?/ ?([0-9]{1,80}))")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_CONTENT = r"[^*/^=,!%&|<>].*"
_CHOICE = re.compile(
    rf"\(([A-J])\)[.:]?(?: +({_CONTENT}))?|\(([a-j])\)[.:]?(?: +(?![-+(\[])({_CONTENT}))?"
    rf"|([A-J])(?:[.:)] *({_CONTENT})|\))?"
)
_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?(?::[0-9]{2})? ?(?:([ap])\.? ?m\b\.?)?", re.IGNORECASE)
_BASE = re.compile(
    r"\(?([0-9][0-9A-Fa-f]{0,60}|[A-Fa-f][0-9A-Fa-f]{0,60}[0-9][0-9A-Fa-f]{0,60}|[A-F]{2,60}|[a-f]{2,60})\)?"
    rf"(?: ?_ ?\{{? ?(?:base )?| (?:in )?base )([0-9]{{1,2}}|{'|'.join(SMALL_NUMBERS)}) ?\}}?"
)
_LETTER = r"[^\W\d_]"
_WORD = rf"{_LETTER}(?:{_LETTER}|['.-])*"
_WORDS = re.compile(rf"{_WORD}(?: (?:{_WORD}|[0-9]{{1,4}}(?:st|nd|rd|th)?))*(?:, {_WORD}(?: {_WORD})*)*")
_SYMBOLS = re.compile(r"(?:[a-zA-Z]|[b-df-hj-np-tv-z]{2,3})(?: [a-zA-Z])*")
_LETTERS = re.compile(r"[A-Z](?:(?:,? and |, ?)[A-Z])+")
# What may be words or a product: up to three small letters, or functions of such.
_NAME = "|".join(sorted({*FUNCTIONS, *FUNCTION_ALIASES}, key=len, reverse=True))
_FACTORS = rf"(?:(?:{_NAME})[a-z]{{0,3}}|[a-z]{{1,3}})"
_PRODUCT = re.compile(rf"{_FACTORS}(?:[ -]{_FACTORS}){{0,2}}")
_LABEL = re.compile(r"(?=[^=]*[A-Za-z]{4})([A-Za-z]+(?:[ -][A-Za-z]+){0,8}) ?=(?!=) ?")
# ]0, 1[ is (0, 1); 3 to 4 is 3:4.
_OUTWARD = re.compile(r"([\[\]])([^\[\]]+,[^\[\]]+)([\[\]])")
_TO = re.compile(r"([0-9]{1,9}) to ([0-9]{1,9})")
_HEDGES = re.compile(
    r"(?:(?i:approximately|about|roughly|exactly|simply|just|only|around|option|choice|equal to) |= ?"
    r"|\\(?:approx|sim)(?![A-Za-z]) ?)"
)
_NEGATIVE = re.compile(r"^(?:negative|minus) (?=[0-9$.\\])")
# Words and numbers that are no quantity, such as 5 feet 6 inches: equal if they are spelt alike.
_LITERAL = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z0-9]+(?:[ ,./:'&-]{1,3}[A-Za-z0-9]+)+")
_BUILDER = re.compile(r"\\\{ ?([a-z]) ?(?:\\in ?\\mathbb ?\{?R\}? ?)?(?:\\mid|\\vert|\||:) ?(.+)\\\}")
_ELLIPSIS = re.compile(r"(-?)([0-9]{0,40})\.([0-9]{3,40}) ?(?:\.{3}|\\[lc]?dots|…)")
_MINUTES = re.compile(r"(-?)([0-9]{1,3}) degrees ([0-9]{1,2}) ?'(?: ?([0-9]{1,2}(?:\.[0-9]{1,9})?) ?(?:''|\"))?")
_SET_WORDS = {
    **dict.fromkeys(["all real numbers", "all reals", "real numbers"], r"\mathbb{R}"),
    **dict.fromkeys(["no solution", "no solutions", "no real solution", "no real solutions", "none"], r"\emptyset"),
    **dict.fromkeys(["empty set"], r"\emptyset"),
    **dict.fromkeys(["infinity", "positive infinity"], r"\infty"),
    "negative infinity": r"-\infty",
}
_SAME_WORDS = {"dne": "does not exist"}
_AND = re.compile(r",? and |, ?")
_SAID_SIGN = re.compile(r"(?:minus|negative) ")
_ARTICLE = re.compile(r"(?:the|an?) (?!(?:and|or) )(?=..)")
_NAMED_PRICE = re.compile(rf"([A-Za-z] ?= ?-?)([{''.join(CURRENCIES)}]) ?([0-9].*)")
_TIMES = {"noon": (12 * 60, "p"), "midnight": (0, "a")}


@dataclass(frozen=True, slots=True)
class Answer:
    """tree: the formula, without what follows; None for what is none. unit: what stands behind or in front of a number,
    by its name where it is a measure, with its power (`cm^2`). is_percent: it has a percent sign, which `tree` leaves
    out. words: in lower case; beside a tree where it may be either. choice: the letter. clock: minutes after midnight
    and "a", "p", "24" or "" where it may be either half of the day. digits, base: of a numeral with a base."""

    tree: Node | None = None
    unit: str = ""
    is_percent: bool = False
    words: str = ""
    choice: str = ""
    clock: tuple[int, str] | None = None
    digits: str = ""
    base: int = 0

    @property
    def is_formula(self) -> bool:
        """Whether it is nothing but a formula and its unit."""
        return self.tree is not None and not (self.words or self.choice or self.clock or self.base)

    @property
    def is_readable(self) -> bool:
        """Whether it says anything: a formula must have a value."""
        is_other = self.words or self.choice or self.clock or self.base
        return bool(is_other) or (self.tree is not None and compare.has_value(self.tree))


@lru_cache(4096)
def parse_answer(text: str) -> Answer:
    """The answer that a normal form is; one that is not readable for what is none."""
    text = _HEDGES.sub("", text, count=1) if _HEDGES.match(text) else text
    text = _NEGATIVE.sub("-", text, count=1)
    if text[:3] == "US$":
        text = text[2:]
    if text[-1:] in ("m", "M", ".") and (clock := _clock(text)):
        return clock
    if match := _NUMERAL.fullmatch(text):
        answer = _numeral(match)
        if answer is not None:
            return answer
    if match := _FRACTION.fullmatch(text):
        above, below = int(match[2] or match[4]), int(match[3] or match[5])
        if below:
            return Answer(number(Fraction(-above if match[1] else above, below)))
    if match := _ELLIPSIS.fullmatch(text):
        return _repeating(match)
    if match := _MINUTES.fullmatch(text):
        return _angle(match)
    if match := _BUILDER.fullmatch(text):
        text = match[2].strip()
    if (match := _LABEL.match(text)) and match[1].split()[0] not in WORDS:
        text = text[match.end() :]
    answer = _clock(text) or _base(text) or _choice(text) or _words(text) or _formula(text)
    if answer.tree is None and not answer.is_readable and _LITERAL.fullmatch(text):
        return Answer(words=" ".join(text.lower().split()))
    return answer


def is_number(text: str) -> bool:
    """Whether a normal form is a number written out."""
    tree = parse_answer(text).tree
    return tree is not None and compare.is_rational(tree) and tree.op not in ("list", "set", "tuple", "matrix")


def _numeral(match: re.Match[str]) -> Answer | None:
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
    """0.333... and 0.1212...: digits that a reader goes on with, for they came three times, or two at least twice."""
    sign, whole, decimals = match.groups("")
    for length in range(1, len(decimals) // 2 + 1):
        period = decimals[-length:]
        if decimals.endswith(period * (3 if length == 1 else 2)):
            shown = Fraction(int(whole + decimals[:-length] or "0"), 10 ** (len(decimals) - length))
            value = shown + Fraction(int(period), (10**length - 1) * 10 ** (len(decimals) - length))
            return Answer(number(-value if sign else value))
    return Answer()


def _angle(match: re.Match[str]) -> Answer:
    """Degrees, minutes and seconds."""
    degrees, minutes, seconds = (Fraction(part or 0) for part in match.groups()[1:])
    if minutes >= 60 or seconds >= 60:
        return Answer()
    value = degrees + minutes / 60 + seconds / 3600
    return Answer(number(-value if match[1] else value), DEGREE)


def _clock(text: str) -> Answer | None:
    if text.lower() in _TIMES:
        return Answer(clock=_TIMES[text.lower()], words=text.lower())
    match = _CLOCK.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    hours, minutes, half = int(match[1]), int(match[2] or 0), (match[3] or "").lower()
    if minutes > 59 or hours > (12 if half else 24):
        return None
    # Without am or pm it may be a ratio, which is written in lowest terms.
    tree = None if half else parse(text)
    if half:
        hours = hours % 12 + (12 if half == "p" else 0)
    return Answer(tree, clock=(hours * 60 + minutes, half or ("24" if hours > 12 else "")))


def _base(text: str) -> Answer | None:
    match = _BASE.fullmatch(text)
    if match is None:
        return None
    base = int(match[2]) if match[2].isdigit() else SMALL_NUMBERS.index(match[2])
    digits = match[1].lstrip("0").upper() or "0"
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return Answer(number(int(digits)) if base == 10 else None, digits=digits, base=base)


def _choice(text: str) -> Answer | None:
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    letter, content = match[1] or match[3] or match[5], match[2] or match[4] or match[6]
    tree = _content(content) if content else Node("symbol", name=letter)
    return Answer(tree.tree if isinstance(tree, Answer) else tree, choice=letter.upper(), words=_content_words(content))


def _content(text: str) -> Answer:
    return _words(text) or _formula(text)


def _content_words(text: str | None) -> str:
    return (_content(text).words or " ") if text else ""


def _words(text: str) -> Answer | None:
    """Words in lower case, or the number that they say. A single letter, and two or three without a vowel, are symbols;
    a few more that may be symbols, too (ab, sin x), are both."""
    is_words = _WORDS.fullmatch(text) or _LETTERS.fullmatch(text)
    if _SYMBOLS.fullmatch(text) or not is_words or text in WORDS:
        return None
    words = _ARTICLE.sub("", " ".join(text.lower().split()))
    if words in _SET_WORDS:
        return Answer(parse(_SET_WORDS[words]))
    if text in GREEK:
        return Answer(parse(f"\\{text}"), words=text)
    sign = _SAID_SIGN.match(words)
    if leading := leading_number(" ".join(text.lower().split())[sign.end() if sign else 0 :]):
        value, rest = (-leading[0] if sign else leading[0]), leading[1]
        unit = unit_name(rest, True) if rest else ""
        if unit is not None and leading_number(rest) is None:
            return Answer(number(value), unit)
    words = " and ".join(sorted(_AND.split(_SAME_WORDS.get(words, words))))
    return Answer(parse(text) if _PRODUCT.fullmatch(text) else None, words=words)


def _formula(text: str) -> Answer:
    if match := _OUTWARD.fullmatch(text):
        text = "[("[match[1] == "]"] + match[2] + "])"[match[3] == "["]
    elif match := _TO.fullmatch(text):
        text = f"{match[1]}:{match[2]}"
    body, unit, is_percent = text, "", False
    if body[:1] in CURRENCIES or body[:2] in [f"-{sign}" for sign in CURRENCIES]:
        sign = "-" if body[0] == "-" else ""
        unit, body = CURRENCIES[body[len(sign)]], sign + body[len(sign) + 1 :].lstrip()
    elif body.endswith("degrees"):
        tree = parse(text)
        inside = _without_degrees(tree) if tree else None
        return Answer(inside or tree, DEGREE if inside else "")
    elif body.endswith("%"):
        is_percent, body = True, body[:-1].rstrip()
        if (leading := leading_number(body.lower())) and not leading[1]:
            return Answer(number(leading[0]), is_percent=True)
    elif match := _NAMED_PRICE.fullmatch(body):
        unit, body = CURRENCIES[match[2]], match[1] + match[3]
    else:
        body, unit = split_units(text)
        if not unit:
            body, unit = split_unit(text)
    tree = parse(body)
    is_compound = tree and (tree.op in ("sum", "list") or (tree.op == "relation" and tree.parts[0].op != "lone-symbol"))
    if tree is None or (is_compound and is_percent):
        tree, unit, is_percent = parse(text), "", False
    return Answer(tree, unit, is_percent)


def _without_degrees(tree: Node) -> Node | None:
    """The number of degrees that a formula is; None for what only ends with degrees, such as a sine of them."""
    if tree.op == "degrees":
        return tree.parts[0]
    if tree.op in ("minus", "relation") and (inside := _without_degrees(tree.parts[-1])):
        return (
            tree._replace(parts=(*tree.parts[:-1], inside))
            if tree.parts[0].op == "lone-symbol" or len(tree.parts) == 1
            else None
        )
    return None
