"""Parses a normalized answer: a number with its unit, words, a choice, a time of day, a numeral in a base, a formula.

Plain numbers take the fast way in `plain_numbers`. All other formulas are parsed by
`volley.rewards.math.expressions.grammar`.
"""

import re
from functools import lru_cache

from volley.rewards.math.answers.answer import DEGREE, Answer
from volley.rewards.math.answers.known_units import CURRENCIES
from volley.rewards.math.answers.number_words import SMALL_NUMBERS, leading_number
from volley.rewards.math.answers.plain_numbers import parse_plain_number
from volley.rewards.math.answers.units import split_unit, split_units, unit_name
from volley.rewards.math.expressions import compare
from volley.rewards.math.expressions.grammar import parse
from volley.rewards.math.expressions.tree import Node, number
from volley.rewards.math.expressions.vocabulary import FUNCTION_ALIASES, FUNCTIONS, GREEK, WORDS

# (A), A) or A. with or without the content of the choice.
_CONTENT = r"[^*/^=,!%&|<>].*"
_CHOICE = re.compile(
    rf"\(([A-J])\)[.:]?(?: +({_CONTENT}))?|\(([a-j])\)[.:]?(?: +(?![-+(\[])({_CONTENT}))?"
    rf"|([A-J])(?:[.:)] *({_CONTENT})|\))?"
)
# 5:30, 5:30 pm, 5 p.m.
_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?(?::[0-9]{2})? ?(?:([ap])\.? ?m\b\.?)?", re.IGNORECASE)
# 1011_2, 1011_{two}, 1011 base 2.
_BASE = re.compile(
    r"\(?([0-9][0-9A-Fa-f]{0,60}|[A-Fa-f][0-9A-Fa-f]{0,60}[0-9][0-9A-Fa-f]{0,60}|[A-F]{2,60}|[a-f]{2,60})\)?"
    rf"(?: ?_ ?\{{? ?(?:base )?| (?:in )?base )([0-9]{{1,2}}|{'|'.join(SMALL_NUMBERS)}) ?\}}?"
)
# Words; symbols that only look like words; a list of single letters.
_LETTER = r"[^\W\d_]"
_WORD = rf"{_LETTER}(?:{_LETTER}|['.-])*"
_WORDS = re.compile(rf"{_WORD}(?: (?:{_WORD}|[0-9]{{1,4}}(?:st|nd|rd|th)?))*(?:, {_WORD}(?: {_WORD})*)*")
_SYMBOLS = re.compile(r"(?:[a-zA-Z]|[b-df-hj-np-tv-z]{2,3})(?: [a-zA-Z])*")
_LETTERS = re.compile(r"[A-Z](?:(?:,? and |, ?)[A-Z])+")
# Text that may be words or a product: up to three small letters, or functions of them.
_NAME = "|".join(sorted({*FUNCTIONS, *FUNCTION_ALIASES}, key=len, reverse=True))
_FACTORS = rf"(?:(?:{_NAME})[a-z]{{0,3}}|[a-z]{{1,3}})"
_PRODUCT = re.compile(rf"{_FACTORS}(?:[ -]{_FACTORS}){{0,2}}")
# A description of the answer: "number of ways = 12".
_LABEL = re.compile(r"(?=[^=]*[A-Za-z]{4})([A-Za-z]+(?:[ -][A-Za-z]+){0,8}) ?=(?!=) ?")
# ]0, 1[ means (0, 1), and 3 to 4 means 3:4.
_REVERSED_BRACKETS = re.compile(r"([\[\]])([^\[\]]+,[^\[\]]+)([\[\]])")
_TO = re.compile(r"([0-9]{1,9}) to ([0-9]{1,9})")
# Words and signs that do not change the answer.
_HEDGES = re.compile(
    r"(?:(?i:approximately|about|roughly|exactly|simply|just|only|around|option|choice|equal to) |= ?"
    r"|\\(?:approx|sim)(?![A-Za-z]) ?)"
)
_NEGATIVE = re.compile(r"^(?:negative|minus) (?=[0-9$.\\])")
# Words with numbers that are not one quantity, such as 5 feet 6 inches. They are compared by spelling.
_LITERAL = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z0-9]+(?:[ ,./:'&-]{1,3}[A-Za-z0-9]+)+")
# { x | x > 1 } is taken as its condition.
_SET_BUILDER = re.compile(r"\\\{ ?([a-z]) ?(?:\\in ?\\mathbb ?\{?R\}? ?)?(?:\\mid|\\vert|\||:) ?(.+)\\\}")
_SET_WORDS = {
    **dict.fromkeys(["all real numbers", "all reals", "real numbers"], r"\mathbb{R}"),
    **dict.fromkeys(["no solution", "no solutions", "no real solution", "no real solutions", "none"], r"\emptyset"),
    **dict.fromkeys(["empty set"], r"\emptyset"),
    **dict.fromkeys(["infinity", "positive infinity"], r"\infty"),
    "negative infinity": r"-\infty",
}
_SYNONYMS = {"dne": "does not exist"}
_AND = re.compile(r",? and |, ?")
_SIGN_WORD = re.compile(r"(?:minus|negative) ")
_ARTICLE = re.compile(r"(?:the|an?) (?!(?:and|or) )(?=..)")
# x = $5.
_NAMED_PRICE = re.compile(rf"([A-Za-z] ?= ?-?)([{''.join(CURRENCIES)}]) ?([0-9].*)")
_NAMED_TIMES = {"noon": (12 * 60, "p"), "midnight": (0, "a")}


@lru_cache(4096)
def parse_answer(text: str) -> Answer:
    """Parse a normalized text. If it is not an answer, the result is not readable (`Answer.is_readable`)."""
    text = _HEDGES.sub("", text, count=1) if _HEDGES.match(text) else text
    text = _NEGATIVE.sub("-", text, count=1)
    if text[:3] == "US$":
        text = text[2:]
    if text[-1:] in ("m", "M", ".") and (clock := _clock(text)):
        return clock
    if plain := parse_plain_number(text):
        return plain
    if match := _SET_BUILDER.fullmatch(text):
        text = match[2].strip()
    if (match := _LABEL.match(text)) and match[1].split()[0] not in WORDS:
        text = text[match.end() :]
    answer = _clock(text) or _base(text) or _choice(text) or _words(text) or _formula(text)
    if answer.tree is None and not answer.is_readable and _LITERAL.fullmatch(text):
        return Answer(words=" ".join(text.lower().split()))
    return answer


def is_number(text: str) -> bool:
    """Return whether a normalized text is a number, or numbers joined by the four operations."""
    tree = parse_answer(text).tree
    return tree is not None and compare.is_rational(tree) and tree.op not in ("list", "set", "tuple", "matrix")


def _clock(text: str) -> Answer | None:
    """Parse a time of day. Without am or pm it may also be a ratio, so it keeps its tree."""
    if text.lower() in _NAMED_TIMES:
        return Answer(clock=_NAMED_TIMES[text.lower()], words=text.lower())
    match = _CLOCK.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    hours, minutes, half = int(match[1]), int(match[2] or 0), (match[3] or "").lower()
    if minutes > 59 or hours > (12 if half else 24):
        return None
    tree = None if half else parse(text)
    if half:
        hours = hours % 12 + (12 if half == "p" else 0)
    return Answer(tree, clock=(hours * 60 + minutes, half or ("24" if hours > 12 else "")))


def _base(text: str) -> Answer | None:
    """Parse a numeral with a base, such as 1011_2 or 1011 base two."""
    match = _BASE.fullmatch(text)
    if match is None:
        return None
    base = int(match[2]) if match[2].isdigit() else SMALL_NUMBERS.index(match[2])
    digits = match[1].lstrip("0").upper() or "0"
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return Answer(number(int(digits)) if base == 10 else None, digits=digits, base=base)


def _choice(text: str) -> Answer | None:
    """Parse the letter of a multiple-choice answer, alone or with the content of that choice."""
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
    """Parse words, or the number that they spell.

    A single letter, and two or three letters without a vowel, are symbols instead. Other short words that may be a
    product (ab, sin x) are parsed as both.
    """
    is_words = _WORDS.fullmatch(text) or _LETTERS.fullmatch(text)
    if _SYMBOLS.fullmatch(text) or not is_words or text in WORDS:
        return None
    words = _ARTICLE.sub("", " ".join(text.lower().split()))
    if words in _SET_WORDS:
        return Answer(parse(_SET_WORDS[words]))
    if text in GREEK:
        return Answer(parse(f"\\{text}"), words=text)
    sign = _SIGN_WORD.match(words)
    if leading := leading_number(" ".join(text.lower().split())[sign.end() if sign else 0 :]):
        value, rest = (-leading[0] if sign else leading[0]), leading[1]
        unit = unit_name(rest, True) if rest else ""
        if unit is not None and leading_number(rest) is None:
            return Answer(number(value), unit)
    words = " and ".join(sorted(_AND.split(_SYNONYMS.get(words, words))))
    return Answer(parse(text) if _PRODUCT.fullmatch(text) else None, words=words)


def _formula(text: str) -> Answer:
    """Parse a formula with its currency, degree sign, percent sign or unit."""
    if match := _REVERSED_BRACKETS.fullmatch(text):
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
    """Return the number of degrees in an angle. None for formulas that only end with degrees, such as their sine."""
    if tree.op == "degrees":
        return tree.parts[0]
    if tree.op in ("minus", "relation") and (inside := _without_degrees(tree.parts[-1])):
        is_angle = tree.parts[0].op == "lone-symbol" or len(tree.parts) == 1
        return tree._replace(parts=(*tree.parts[:-1], inside)) if is_angle else None
    return None
