"""Units that are told apart, and the words behind a number that are none."""

import re

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
    "inch": "in inch inches",
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
    "radian": "rad radian radians",
}
_NAMES = frozenset([*_MEASURES, *CURRENCIES.values()])
_RATE = re.compile(r"(?: ?/ ?| per )([A-Za-z]+)$")
MEASURES = {word: name for name, words in _MEASURES.items() for word in words.split()}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_TEMPERATURES = ("f", "c", "k", "fahrenheit", "celsius", "kelvin")
_ADJECTIVES = {"square": "2", "sq": "2", "cubic": "3"}
# Words after a number that change it, or offer another one.
_CHANGING = """
or and to not nor but plus minus times over by than if is are hundred thousand million billion trillion dozen half
halves third thirds quarter quarters fifth fifths tenth tenths hundredth hundredths mod base squared cubed pi infinity
point negative below twice double triple factorial root maybe perhaps actually wait no alternatively instead either
"""
NOT_UNITS = frozenset(_CHANGING.split())
_UNIT = re.compile(r"([A-Za-z¢]+)\.?(?: ?(?:\^ ?)?\{?([23])\}?)?(?:[ /-]+[A-Za-z]+){0,5}")
_TRAILING = re.compile(r"(.*(?:[0-9)}\]!]|\\pi)) ([A-Za-z]{2,}(?:[ /-]+[A-Za-z]+){0,5}(?: ?\^ ?\{?[23]\}?)?)")


def unit_name(text: str, spaced: bool) -> str | None:
    """The name of the unit behind a number, with its power (`cm^2`); None if the text is no unit. Letters right behind
    a number are algebra unless they are a measure of two letters or more (5cm, but not 2t)."""
    match = _UNIT.fullmatch(text)
    if match is None or any(word in NOT_UNITS for word in re.findall("[a-z]+", text.lower())):
        return None
    word, power = match[1].lower(), match[2]
    if not spaced and (len(word) < 2 or word not in MEASURES):
        return None
    if len(word) < 2 and word not in MEASURES:
        return None
    words = text.lower().split()
    if word in ("degree", "degrees") and words[1:] and words[1][0] in "fck" and words[1] in _TEMPERATURES:
        return f"degree {words[1][0]}"
    if word in _ADJECTIVES and len(words) == 2 and words[1] in MEASURES:
        word, power = words[1], _ADJECTIVES[word]
    name = MEASURES.get(word, word) + (f"^{power}" if power else "")
    rate = _RATE.search(text)
    return f"{name}/{MEASURES[rate[1].lower()]}" if rate and rate[1].lower() in MEASURES and word in MEASURES else name


def is_measure(unit: str) -> bool:
    return unit.partition("/")[0].partition("^")[0] in _NAMES or unit.startswith("degree ")


def agree(unit: str, other: str) -> bool:
    """Whether two units may name the same thing: equal, one says less (pounds sterling, pounds), or one is no measure
    (or missing)."""
    is_less_said = f"{unit} ".startswith(f"{other} ") or f"{other} ".startswith(f"{unit} ")
    return is_less_said or not (is_measure(unit) and is_measure(other))


def split_unit(formula: str) -> tuple[str, str]:
    """A formula and the unit behind it: `2\\sqrt{3} cm^2` is `2\\sqrt{3}` and `cm^2`; "" where there is none."""
    match = _TRAILING.fullmatch(formula)
    if match is None:
        return formula, ""
    word = match[2].split()[0].lower()
    is_unit = word in MEASURES or word.partition("/")[0] in MEASURES or len(word) >= 4 or word in ("of", "sq")
    name = unit_name(match[2], True) if is_unit and word != "degrees" else None
    return (match[1], name) if name else (formula, "")
