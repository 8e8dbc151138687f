"""A formula as a tree, the fixed vocabulary that formulas are read with, and the tokens of a text.

`grammar` makes trees of tokens; `evaluate` gives them values.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 256
MAX_NESTING = 24
MAX_DIGITS = 80

_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp floor ceil sqrt cbrt abs"
FUNCTIONS = frozenset(_FUNCTIONS.split())
NAMES = {"sen": "sin", "tg": "tan", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_GREEK = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar
"""
GREEK = frozenset(_GREEK.split())
RELATIONS = {
    **{sign: sign for sign in ("=", "<", ">", "<=", ">=", "!=")},
    "==": "=",
    "\\le": "<=",
    "\\leq": "<=",
    "\\leqslant": "<=",
    "\\ge": ">=",
    "\\geq": ">=",
    "\\geqslant": ">=",
    "\\lt": "<",
    "\\gt": ">",
    "\\ne": "!=",
    "\\neq": "!=",
    "\\in": "in",
    "\\approx": "~",
    "\\simeq": "~",
}
SET_OPERATORS = {
    "\\cup": "union",
    "\\cap": "intersection",
    "U": "union",
    "\\setminus": "difference",
    "\\backslash": "difference",
}
_SPELT = {"\\lor": "or", "\\vee": "or", "\\land": "and", "\\wedge": "and"}
MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"])
SEPARATORS = frozenset([",", ";", "and", "or"])
CLOSING = {
    "(": (")", "]"),
    "[": ("]", ")"),
    "{": ("}",),
    "\\{": ("\\}",),
    "\\lbrace": ("\\rbrace",),
    "\\langle": ("\\rangle",),
    "\\lbrack": ("\\rbrack",),
}
SET_BRACKETS = ("\\{", "\\lbrace")
WHOLE = {
    "\\lfloor": ("\\rfloor", "floor"),
    "\\lceil": ("\\rceil", "ceil"),
    "|": ("|", "abs"),
    "\\|": ("\\|", "abs"),
    "\\lvert": ("\\rvert", "abs"),
    "\\vert": ("\\vert", "abs"),
}
OPENING = frozenset([*CLOSING, *WHOLE])
MARKED = ("overline", "overrightarrow", "vec", "hat", "bar", "angle", "triangle", "widehat")
# A function written with f(x), a part of a figure, a probability: what may stand alone before "=" beside plain symbols.
LONE = re.compile(
    r"(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\{[\w ,+-]{1,12}\}|\w))?'{0,3}"
    r"|[fghpqrFGHPQTV](?:_(?:\{\w{1,8}\}|\w))?'{0,3} ?\([A-Za-z0-9, ]{1,12}\)|f ?\^ ?\{?-1\}? ?\([a-z]\)"
    r"|\([A-Za-z](?:_[0-9a-z])?(?:, ?[A-Za-z](?:_[0-9a-z])?){1,5}\)"
    r"|[A-Z]{2,4}|\|[A-Z]{2}\||(?:m ?)?\\(?:angle|triangle|overline|vec|hat|bar) ?\{? ?[A-Za-z]{1,3} ?\}?"
    r"|\\frac ?\{ ?d[a-z]? ?\} ?\{ ?d[a-z] ?\}"
)

_TOKEN = re.compile(
    r"\s*(?:([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3}(?![0-9.]))?|\.[0-9]+|\\(?:[A-Za-z]+|.)|[A-Za-z]+"
    r"|<=|>=|!=(?!=)|==|[-+*/^_=<>()\[\]{}|,;:!%&'])|$)"
)
_GROUPED = re.compile(r"\s*([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?)(?![0-9]|,[0-9])")
WORDS = FUNCTIONS | set(NAMES) | {"and", "or", "degrees"}
_STARTS_OF_WORDS = re.compile("(?:" + "|".join(sorted(WORDS - {"or", "and"}, key=len, reverse=True)) + ")")
_COMMANDS = ("frac", "binom", "dbinom", "tbinom", "sqrt", "begin", "pi", "infty", "emptyset", "varnothing", "mathbb")
ATOMS = frozenset("\\" + word for word in [*_COMMANDS, *MARKED, *GREEK, *FUNCTIONS, *NAMES])


class NotAFormulaError(Exception):
    """The text is none of what the grammar knows, or too large."""


class Node(NamedTuple):
    """A part of a formula. op: what it is; parts: its operands; number: of a `number`; name: a symbol's or function's
    name, a relation's signs, a tuple's brackets, the decimal places that a number is written with, a list's word."""

    op: str
    parts: tuple["Node", ...] = ()
    number: Fraction = Fraction(0)
    name: str = ""


def symbols(node: Node) -> frozenset[str]:
    """The names of the symbols in a formula."""
    if node.op == "symbol":
        return frozenset([node.name])
    return frozenset().union(*map(symbols, node.parts)) if node.parts else frozenset()


def number(value: int | Fraction) -> Node:
    return Node("number", number=Fraction(value))


class Tokens:
    """The tokens of a text, one at a time. Letters are one symbol each unless they spell a known word."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.depth = 0
        self._position = 0
        self._peeked: tuple[str, int] | None = None

    @property
    def position(self) -> int:
        return self._position

    @position.setter
    def position(self, place: int) -> None:
        self._position = place
        self._peeked = None

    def peek(self) -> str:
        """The token that comes; "" at the end."""
        if self._peeked is None:
            self._peeked = self._next()
        return self._peeked[0]

    def _next(self) -> tuple[str, int]:
        # Commas group thousands only outside of brackets, where "(1,234)" cannot be meant.
        match = None if self.depth else _GROUPED.match(self.text, self._position)
        match = match or _TOKEN.match(self.text, self._position)
        if match is None:
            raise NotAFormulaError
        token, end = match[1] or "", match.end()
        if token.isalpha() and token not in WORDS:
            if word := _STARTS_OF_WORDS.match(token):
                return word[0], end - len(token) + word.end()
            if len(token) > 3:
                raise NotAFormulaError
            return token[0], end - len(token) + 1
        return _SPELT.get(token, token), end

    def take(self) -> str:
        token = self.peek()
        if token == "":
            raise NotAFormulaError
        assert self._peeked is not None
        self.position = self._peeked[1]
        return token

    def expect(self, *wanted: str) -> str:
        token = self.take()
        if token not in wanted:
            raise NotAFormulaError
        return token

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What the pattern finds right here, which is then behind us."""
        if found := pattern.match(self.text, self._position):
            self.position = found.end()
        return found

    def enter(self) -> None:
        self.depth += 1
        self._peeked = None
        if self.depth > MAX_NESTING:
            raise NotAFormulaError

    def leave(self) -> None:
        self.depth -= 1
        self._peeked = None
