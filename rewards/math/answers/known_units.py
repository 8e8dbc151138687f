"""Units that are told apart, by every way to write them; other words behind a number only name what was counted."""

CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
_WORDS = {
    "cent": "cent cents ¢",
    "dollar": "dollar dollars usd",
    "euro": "euro euros eur",
    "peso": "peso pesos",
    "rupee": "rupee rupees",
    "yen": "yen",
    "yuan": "yuan",
    "ruble": "ruble rubles rouble roubles",
    "rand": "rands",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "ounce": "oz ounce ounces",
    "pound": "lb lbs pound pounds",
    "ton": "ton tons tonne tonnes",
    "acre": "acre acres",
    "hectare": "ha hectare hectares",
    "teaspoon": "tsp teaspoon teaspoons",
    "tablespoon": "tbsp tablespoon tablespoons",
    "cup": "cup cups",
    "pint": "pt pint pints",
    "quart": "qt quart quarts",
    "gallon": "gal gallon gallons",
    "second": "sec secs",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "decade": "decade decades",
    "century": "century centuries",
    "degree": "degree degrees",
    "radian": "rad radian radians",
    "psi": "psi",
    "atmosphere": "atm atmospheres",
    "mile/hour": "mph",
    "km/hour": "kmh kph kmph",
    "knot": "knot knots",
    "unit": "unit units",
}
"""A `unit` is a unit of any measure: of length, squared of area."""
_PREFIXES = {"n": "nano", "u": "micro", "m": "milli", "c": "centi", "k": "kilo", "M": "mega", "G": "giga", "T": "tera"}
# Symbol, words, the prefixes that are in use, and whether a spelling in small letters says the same.
_PREFIXED = [
    ("m", "meter metre", "numck"),
    ("g", "gram", "umk"),
    ("l", "liter litre", "umck"),
    ("second", "second", "num"),
    ("Hz", "hertz", "kMG"),
    ("Pa", "pascal", "kM"),
    ("N", "newton", "k"),
    ("J", "joule", "kM"),
    ("cal", "calorie", "k"),
    ("W", "watt", "mkMG"),
    ("Wh", "watthour", "kM"),
    ("V", "volt", "mk"),
    ("A", "ampere amp", "m"),
    ("K", "kelvin", ""),
    ("eV", "electronvolt", "kMG"),
    ("ohm", "ohm", "kM"),
    ("mol", "mole", "m"),
    ("b", "bit", "kMGT"),
    ("B", "byte", "kMGT"),
]
_SYMBOLS = {"second": "s", "b": "bit"}
# Single letters that stand for a unit where text shows that they are no symbol.
_LETTER_WORDS = (
    "m meter, g gram, s second, l liter, L liter, h hour, t ton, N newton, J joule, W watt, V volt, A ampere"
)
LETTERS = dict(pair.split() for pair in _LETTER_WORDS.split(", "))


def _spellings() -> dict[str, str]:
    """The name of a unit by its spelling; small letters only where these are not another unit's."""
    found = {word: name for name, words in _WORDS.items() for word in words.split()}
    for base, words, prefixes in _PREFIXED:
        symbol = _SYMBOLS.get(base, base)
        for prefix, long in {"": "", **{each: _PREFIXES[each] for each in prefixes}}.items():
            name = prefix + (base if prefix == "" else symbol)
            if len(prefix + symbol) > 1 or symbol in "mgsl":
                found[prefix + symbol] = name
            for word in words.split():
                found |= {long + word: name, long + word + "s": name}
    for spelling, name in list(found.items()):
        found.setdefault(spelling.lower(), name)
    return found


UNIT_BY_SPELLING = _spellings()
NAMES = frozenset([*UNIT_BY_SPELLING.values(), *CURRENCIES.values()])


def known_unit(word: str) -> str | None:
    """The name of the unit that a word is, None if it is none that is told apart."""
    return UNIT_BY_SPELLING.get(word) or UNIT_BY_SPELLING.get(word.lower())
