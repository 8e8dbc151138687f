"""The unit after a number: finding it in a text, naming it, and comparing two units.

The name of a unit has the first unit with its power, then the further factors and divisors: `cm^2`, `m/second^2`,
`N*m`. Units are compared but not converted, because the conversion is part of the task.
"""

import re

from volley.rewards.math.answers.known_units import CURRENCIES, UNIT_LETTERS, UNIT_NAMES, known_unit

SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_TEMPERATURES = ("f", "c", "k", "fahrenheit", "celsius", "kelvin")
_ADJECTIVES = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
# Two letters that are a unit also without a space after the digit. Others are two symbols: 2mn.
_TWO_LETTERS = "mm cm km mg kg ml mL ft in yd mi oz lb hr yr Hz Pa eV kJ kW MB GB TB"
_UNITS_WITHOUT_SPACE = frozenset(_TWO_LETTERS.split())
# Words after a number that change its value or offer another one, so that they are not units.
_CHANGING = """
or and to not nor but plus minus times over by than if is are hundred thousand million billion trillion dozen half
halves third thirds quarter quarters fifth fifths tenth tenths hundredth hundredths mod base squared cubed pi infinity
point negative below twice double triple factorial root maybe perhaps actually wait no alternatively instead either
"""
NOT_UNITS = frozenset(_CHANGING.split())
# One unit with its power; a further factor or divisor of it; the words after them, such as "of ink".
_POWER = r"(?: ?\^ ?\{? ?(-?[1-9]) ?\}?| ?\{?([23])\}?)?"
_TERM = re.compile(rf"([A-Za-z¢]+)\.?{_POWER}")
_PART = re.compile(rf"( ?/ ?| per | an? |\ ?\* ?| )(?:(square|sq|cubic|cu) )?([A-Za-z]+)\.?{_POWER}")
_REST = re.compile(r"(?:[ /-]+[A-Za-z]+){0,5}")
# The end of a number or formula, and a unit in plain letters behind a whole formula or behind the items of a list.
_VALUE = r"(?:[0-9)}\]!]|\\pi)"
_LETTER_RATE = r"[mgL](?= ?/ ?(?:s|h|hr|min|cm|mL|L|m)\b)"
_TRAILING = re.compile(
    rf"(.*{_VALUE}) ((?:[A-Za-z]{{2,}}|{_LETTER_RATE})[23]?(?:[ /*^{{}}-]{{1,3}}[A-Za-z0-9]+){{0,8}}\}}?)"
)
_LISTED = re.compile(r"(?<=[0-9)}\]!]) ?([A-Za-z]{2,20}) ?(?=$|,|;| ?and\b| ?or\b|[)\]]|\\\})")
_SEPARATOR = re.compile(r",? (?:and|or) |[,;]")
# A unit in LaTeX text, in Greek letters, or as a fraction.
_TEXT_COMMANDS = ("\\text", "\\mathrm", "\\mbox", "\\operatorname")
_TEXT = r"\\(?:text|mathrm|textrm|textnormal|mbox|operatorname)"
_GROUP = rf"{_TEXT}\s*\{{[^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)?\}}"
_TEXT_TAIL = re.compile(rf"({_VALUE}(?:[\s$]|\\[,;: !]|~)*)({_GROUP}(?:{_GROUP}|[/*^{{}}0-9 ~-]|\\cdot|\\[,;:!])*)$")
_TEXT_GROUP = re.compile(rf"{_TEXT}\s*\{{([^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)?)\}}")
_LETTER = re.compile(rf"(?<![A-Za-z])[{''.join(UNIT_LETTERS)}](?![A-Za-z])")
_GREEK_UNIT = re.compile(rf"({_VALUE})(?:[\s$]|\\[,;: !]|~)+(?:\\mu\s*(?:{_TEXT}\s*\{{ ?)?([mgsL])\}}?|\\Omega)$")
_UNIT_TEXT = re.compile(r"[A-Za-z]{1,12}(?:[ /*^{}0-9-]{1,4}[A-Za-z]{1,12})*[ ^{}0-9-]*")
_AS_FRACTION = re.compile(
    rf"({_VALUE}) ?(?:\\[,;: ])? ?\\[dt]?frac ?"
    rf"(?:\{{? ?(m|km|cm|ft|mi|g|kg) ?\}}? ?\{{? ?(s|h|hr)(\^\{{?2\}}?)? ?\}}?"
    rf"|\{{ ?{_TEXT} ?\{{ ?([A-Za-z]+) ?\}} ?\}} ?\{{ ?{_TEXT} ?\{{ ?([A-Za-z]+) ?\}}(\^\{{?[23]\}}?)? ?\}})$"
)


def spell_out_unit(text: str) -> str:
    """Replace a unit in LaTeX at the end of a text by words, if LaTeX marks its letters as text.

    `\\frac34\\text{ m}` is 3/4 of a metre, `\\frac34 m` is a product.
    """
    if text.rfind("frac") >= 2 and (match := _AS_FRACTION.search(text)):
        _, above, below, power, above_text, below_text, power_text = match.groups("")
        rate = f"{_in_words(above or above_text)}/{_in_words(below or below_text)}{power or power_text}"
        return f"{text[: match.end(1)]} {rate}"
    if ("\\mu" in text or "\\Omega" in text) and (match := _GREEK_UNIT.search(text)):
        return f"{text[: match.end(1)]} {'u' + match[2] if match[2] else 'ohm'}"
    if not any(command in text for command in _TEXT_COMMANDS) or (match := _TEXT_TAIL.search(text)) is None:
        return text
    tail = _TEXT_GROUP.sub(r" \1 ", match[2])
    tail = re.sub(r"\\cdot", "*", re.sub(r"\\[,;:!]|~", " ", tail))
    tail = re.sub(r" ?([/*^]) ?", r"\1", " ".join(tail.split()))
    return f"{text[: match.end(1)].rstrip()} {_in_words(tail)}" if _UNIT_TEXT.fullmatch(tail) else text


def _in_words(unit: str) -> str:
    return _LETTER.sub(lambda letter: UNIT_LETTERS[letter[0]], unit)


def unit_name(text: str, spaced: bool) -> str | None:
    """Return the name of the unit that follows a number; None if the text is not a unit.

    Args:
        text: what follows the number.
        spaced: whether there is a space between. Without one, letters are symbols unless they are a known unit of two
            letters or more (5cm, but not 2t) or a metre with a power (40m^2).
    """
    match = _TERM.match(text)
    if match is None or any(word in NOT_UNITS for word in re.findall("[a-z]+", text.lower())):
        return None
    word, power = match[1], match[2] or match[3] or ""
    known = known_unit(word)
    if not spaced and not _is_unit_without_space(word, power):
        return None
    if len(word) < 2 and known is None:
        return None
    words = text.lower().split()
    if known == "degree" and words[1:] and words[1][0] in "fck" and words[1] in _TEMPERATURES:
        return f"degree {words[1][0]}"
    position = match.end()
    if word.lower() in _ADJECTIVES and (part := _PART.match(text, position)) and part[1] == " " and known_unit(part[3]):
        known, power, position = known_unit(part[3]), _ADJECTIVES[word.lower()], part.end()
    name = (known or word.lower()) + (f"^{power}" if power else "")
    while known and (part := _PART.match(text, position)) and (other := known_unit(part[3])):
        power = part[4] or part[5] or _ADJECTIVES.get(part[2] or "", "")
        is_divisor = part[1].strip() in ("/", "per", "a", "an")
        if part[1] == " " and power[:1] == "-":
            is_divisor, power = True, power[1:].removeprefix("1")
        name += ("/" if is_divisor else "*") + other + (f"^{power}" if power else "")
        position = part.end()
    return name if _REST.fullmatch(text, position) else None


def _is_unit_without_space(word: str, power: str) -> bool:
    """Return whether letters that follow a digit without a space are a unit."""
    if len(word) > 2:
        return known_unit(word) is not None
    return (
        word == "¢"
        or word in _UNITS_WITHOUT_SPACE
        or word.lower() in _UNITS_WITHOUT_SPACE
        or (word == "m" and power in ("2", "3"))
    )


def is_known_unit(unit: str) -> bool:
    return _base(unit) in UNIT_NAMES or unit in UNIT_NAMES or unit.startswith("degree ")


def _base(unit: str) -> str:
    """Return the first unit of a name: `m` of `m/second^2`."""
    return re.split(r"[/^*]", unit, maxsplit=1)[0]


def compatible_units(unit: str, other: str) -> bool:
    """Return whether two units may mean the same.

    They may if they are equal, if one is less specific (pounds and pounds sterling, units and centimetres), or if one
    is missing or not a known unit.
    """
    if f"{unit} ".startswith(f"{other} ") or f"{other} ".startswith(f"{unit} "):
        return True
    if not (is_known_unit(unit) and is_known_unit(other)):
        return True
    bases = [_base(each) for each in (unit, other)]
    if bases[0] == bases[1] in CURRENCIES.values() and bases[0] in (unit, other):
        return True  # a price may leave out what it is for: $5 and $5 per hour
    return "unit" in bases and unit.removeprefix(bases[0]) == other.removeprefix(bases[1])


def split_unit(formula: str) -> tuple[str, str]:
    """Split `2\\sqrt{3} cm^2` into the formula `2\\sqrt{3}` and its unit `cm^2`. The unit is "" if there is none."""
    match = _TRAILING.fullmatch(formula)
    if match is None:
        return formula, ""
    word = re.split("[ /*^]", match[2], maxsplit=1)[0]
    is_unit = known_unit(word) or len(word) >= 4 or word.lower() in ("of", "sq")
    name = unit_name(match[2], True) if is_unit and known_unit(word) != "degree" else None
    return (match[1], name) if name else (formula, "")


def split_units(items: str) -> tuple[str, str]:
    """Split a list from the unit of all its numbers: `3 cm and 5 cm` into `3 and 5` and `cm`.

    The unit is "" unless every number has the same one.
    """
    units = [known_unit(word) for word in _LISTED.findall(items)]
    is_each = len(units) == len(_SEPARATOR.split(items)) > 1 == len(set(units))
    return (_LISTED.sub("", items), units[0] or "") if is_each else (items, "")
