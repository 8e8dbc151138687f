"""The units of measurement that the verifier knows, with all of their spellings.

Two different known units make two answers different. Any other word after a number only names what was counted.
"""

CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
"""The name of a currency, by its symbol."""
_SPELLINGS = {
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
"""Units without prefixes, by their standard name. A `unit` is a unit of any measure: of length, squared of area."""
_PREFIXES = {"n": "nano", "u": "micro", "m": "milli", "c": "centi", "k": "kilo", "M": "mega", "G": "giga", "T": "tera"}
# Units with prefixes: symbol, words, and the prefixes in use.
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
_LETTER_WORDS = (
    "m meter, g gram, s second, l liter, L liter, h hour, t ton, N newton, J joule, W watt, V volt, A ampere"
)
UNIT_LETTERS = dict(pair.split() for pair in _LETTER_WORDS.split(", "))
"""Single letters that are units where LaTeX marks them as text, and symbols everywhere else."""


def _spellings() -> dict[str, str]:
    """Return the standard name by spelling. Lower-case spellings are added unless they mean another unit."""
    names = {word: name for name, words in _SPELLINGS.items() for word in words.split()}
    for base, words, prefixes in _PREFIXED:
        symbol = _SYMBOLS.get(base, base)
        for prefix, long in {"": "", **{each: _PREFIXES[each] for each in prefixes}}.items():
            name = prefix + (base if prefix == "" else symbol)
            if len(prefix + symbol) > 1 or symbol in "mgsl":
                names[prefix + symbol] = name
            for word in words.split():
                names |= {long + word: name, long + word + "s": name}
    for spelling, name in list(names.items()):
        names.setdefault(spelling.lower(), name)
    return names


UNIT_BY_SPELLING = _spellings()
UNIT_NAMES = frozenset([*UNIT_BY_SPELLING.values(), *CURRENCIES.values()])


def known_unit(word: str) -> str | None:
    """Return the standard name of a unit by one of its spellings; None if the word is not a known unit."""
    return UNIT_BY_SPELLING.get(word) or UNIT_BY_SPELLING.get(word.lower())
