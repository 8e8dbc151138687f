"""Parses the atoms of a formula: numbers, symbols, brackets, functions, roots, fractions and matrices.

    atom      number | symbol | constant | bracket list bracket | "|" list "|" | function | command
    function  name ("_" base)? ("^" exponent)? (bracket | factors up to the next function)

The operators between atoms are parsed by a subclass in `volley.rewards.math.expressions.grammar`.
"""

import re
from abc import ABC, abstractmethod
from fractions import Fraction

from volley.rewards.math.expressions.tokens import NotAFormulaError, Tokens
from volley.rewards.math.expressions.tree import Node, number
from volley.rewards.math.expressions.vocabulary import (
    ACCENTS,
    ATOM_COMMANDS,
    CLOSING_BRACKETS,
    FUNCTION_ALIASES,
    FUNCTION_BRACKETS,
    FUNCTIONS,
    GREEK,
    MATRIX_ENVIRONMENTS,
    OPENING_BRACKETS,
    SEPARATORS,
    SET_BRACKETS,
)

MAX_DIGITS = 80

_MIXED = re.compile(r" ([0-9]{1,9})/([0-9]{1,9})(?![0-9.])")
_REPEATING = re.compile(r"\\(?:overline|bar|dot) ?\{([0-9]{1,20})\}")
_BEGIN = re.compile(r"\s*\{([A-Za-z]+\*?)\}(?:\s*\{[lcr|]*\})?")
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{([A-Za-z0-9 +\-,*]{1,12})\}|([A-Za-z0-9]))")
_BLACKBOARD = re.compile(r"\s*(?:\{\s*([RZNQC])\s*\}|([RZNQC]))(\^\s*\{?[-+*]\}?|_\s*\{?[-+*]\}?)?")
_LETTERS = re.compile(r"\s*\{?\s*([A-Za-z]{1,4})\s*\}?")
_PRIMES = re.compile(r"'{1,3}")
_ROW_END = ("&", "\\\\", "\\end")


class AtomParser(Tokens, ABC):
    """Parses one atom. The formula inside an atom is parsed by the methods for operators, which a subclass defines.

    All methods raise NotAFormulaError.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._closing: list[str] = []  # the tokens that may close the brackets around the current position

    @abstractmethod
    def list_until(self, *closing: str) -> Node:
        """Parse relations between separators. A single relation is returned as it is, not as a list of one."""

    @abstractmethod
    def sum(self) -> Node:
        """Parse products with signs between them."""

    @abstractmethod
    def power(self) -> Node:
        """Parse an atom with its exponent and the signs after it."""

    @abstractmethod
    def exponent(self) -> Node:
        """Parse what follows "^": a sign, one atom, and a further exponent (`a^b^c` is `a^(b^c)`)."""

    def starts_atom(self, token: str) -> bool:
        """Return whether the next token, which is given, begins another atom. Then that atom is a factor."""
        if token == "" or token in self._closing or token in SEPARATORS or token == "degrees":
            return False
        if token == "U" and follows_bracket(self.text, self.position):
            return False
        return token[0].isalnum() or token[0] == "." or token in OPENING_BRACKETS or token in ATOM_COMMANDS

    def atom(self) -> Node:
        """Parse one atom."""
        token = self.take()
        if token[0] in "0123456789.":
            return self._number(token)
        if token in CLOSING_BRACKETS:
            return self._bracketed(token)
        if token in FUNCTION_BRACKETS:
            closing, name = FUNCTION_BRACKETS[token]
            inside = self._inside(closing)
            self.expect(closing)
            return Node("function", (inside,), name=name)
        word = token.removeprefix("\\")
        word = FUNCTION_ALIASES.get(word, word)
        if word in FUNCTIONS and token != "\\sqrt":
            return self._function(word)
        if token.startswith("\\"):
            return self._command(word)
        if token.isalpha() and len(token) == 1:
            if token in "ei" and _SUBSCRIPT.match(self.text, self.position) is None:
                return Node("constant", name=token)
            return self._symbol(token)
        raise NotAFormulaError

    def _inside(self, *closing: str) -> Node:
        """Parse the content of brackets, up to a closing token, which is not consumed."""
        self.enter()
        self._closing.extend(closing)
        inside = self.list_until(*closing)
        del self._closing[-len(closing) :]
        self.leave()
        return inside

    def _bracketed(self, opening: str) -> Node:
        """Parse what an opening bracket begins: a set, a tuple, an interval, or a formula in brackets."""
        closing = CLOSING_BRACKETS[opening]
        if opening in SET_BRACKETS and self.peek() in closing:
            self.take()
            return Node("set")
        inside = self._inside(*closing)
        name = opening + self.expect(*closing)
        parts = inside.parts if inside.op == "list" else (inside,)
        if opening in SET_BRACKETS:
            return Node("set", parts)
        if opening == "{":  # braces that only group, which LaTeX does not print
            return inside
        name = "()" if opening == "\\langle" else "[]" if opening == "\\lbrack" else name
        if inside.op == "list":
            if name in ("(]", "[)") and len(parts) != 2:
                raise NotAFormulaError
            return Node("tuple", parts, name=name)
        if name in ("(]", "[)"):
            raise NotAFormulaError
        return inside

    def _number(self, token: str) -> Node:
        """Parse a number, with a repeating part (0.1\\overline{6}) or a fraction (3 1/4) that follows it."""
        if len(token) > MAX_DIGITS:
            raise NotAFormulaError
        value = Fraction(token.replace(",", ""))
        places = len(token.partition(".")[2]) if "e" not in token.lower() else 0
        if "." in token and (repeating := self.match(_REPEATING)):
            period = Fraction(int(repeating[1]), 10 ** len(repeating[1]) - 1)
            return number(value + period / 10**places)
        if value.denominator == 1 and "." not in token:
            if mixed := self.match(_MIXED):
                part = Fraction(int(mixed[1]), int(mixed[2]))
                if part >= 1:
                    raise NotAFormulaError
                return number(value + part)
            if self.peek() == "\\frac":
                return self._mixed(value)
        return Node("number", number=value, name=str(places) if places else "")

    def _mixed(self, whole: Fraction) -> Node:
        """Parse a fraction after a whole number: `3\\frac{1}{4}` is 3.25, any other fraction is a factor."""
        part = self.atom()
        if all(each.op == "number" for each in part.parts):
            value = part.parts[0].number / part.parts[1].number
            if 0 < value < 1:
                return number(whole + value)
        return Node("product", (number(whole), part))

    def _argument(self) -> Node:
        """Parse an argument of `\\frac` and similar commands: a group, or one digit, letter or command."""
        rest = self.text[self.position :].lstrip()
        if rest[:1] and rest[0] in "0123456789":
            self.position = len(self.text) - len(rest) + 1
            return number(int(rest[0]))
        return self.atom()

    def _function(self, word: str) -> Node:
        """Parse a function after its name: the base of a logarithm, an exponent (sin^2 x), and the argument."""
        base, exponent = None, None
        if word == "log" and self.peek() == "_":
            self.take()
            base = self._argument()
        if self.peek() == "^":
            self.take()
            exponent = self.exponent()
        self.enter()
        argument = self.atom() if self.peek() in OPENING_BRACKETS - {"|"} else self._bare_argument()
        self.leave()
        if exponent == apply_sign("-", number(1)) and f"arc{word}" in FUNCTIONS:
            return Node("function", (argument,), name=f"arc{word}")
        if word == "lg":
            base = number(10)
        if word == "cbrt":
            return Node("root", (argument, number(3)))
        name = "log" if base else "ln" if word == "log" else word
        function = Node("function", (argument, base) if base else (argument,), name=name)
        return Node("power", (function, exponent)) if exponent else function

    def _bare_argument(self) -> Node:
        """Parse an argument without brackets: `\\sin 2x \\cos y` is sin(2x) cos(y).

        It extends to the next function, sign or division.
        """
        argument = self.power()
        while self.starts_atom(token := self.peek()) and token.removeprefix("\\") not in FUNCTIONS:
            if token[0].isdigit() or token in CLOSING_BRACKETS:
                break
            argument = Node("product", (argument, self.power()))
        return argument

    def _command(self, word: str) -> Node:
        """Parse what follows a LaTeX command other than a function."""
        if word in ("frac", "binom", "dbinom", "tbinom"):
            self.enter()
            parts = (self._argument(), self._argument())
            self.leave()
            return Node("quotient" if word == "frac" else "binomial", parts)
        if word == "sqrt":
            return self._root()
        if word == "begin":
            return self._matrix()
        if word in ("pi", "infty"):
            return Node("constant", name=word) if word == "pi" else Node("infinity")
        if word in ("emptyset", "varnothing"):
            return Node("set")
        if word == "mathbb":
            match = self.match(_BLACKBOARD)
            if match is None:
                raise NotAFormulaError
            return Node("numbers", name=(match[1] or match[2]) + (match[3] or "").replace("{", "").replace("}", ""))
        if word in ACCENTS:
            match = self.match(_LETTERS)
            if match is None:
                raise NotAFormulaError
            return Node("symbol", name=f"{word} {match[1]}")
        if word in GREEK:
            return self._symbol(word)
        raise NotAFormulaError

    def _symbol(self, name: str) -> Node:
        """Parse the subscript and the primes of a symbol."""
        if match := self.match(_SUBSCRIPT):
            name += "_" + (match[1] or match[2]).replace(" ", "")
        if primes := self.match(_PRIMES):
            name += primes[0]
        return Node("symbol", name=name)

    def _root(self) -> Node:
        index = number(2)
        self.enter()
        if self.peek() == "[":
            self.take()
            index = self._inside("]")
            self.expect("]")
        radicand = self._argument()
        self.leave()
        return Node("root", (radicand, index))

    def _matrix(self) -> Node:
        """Parse a matrix environment. All rows must have the same length."""
        begin = self.match(_BEGIN)
        if begin is None or begin[1] not in MATRIX_ENVIRONMENTS:
            raise NotAFormulaError
        self.enter()
        self._closing.append("\\end")
        rows: list[list[Node]] = [[]]
        while True:
            rows[-1].append(self.sum())
            token = self.expect(*_ROW_END)
            if token == "\\\\" and self.peek() == "\\end":
                token = self.take()
            if token == "\\\\":
                rows.append([])
            if token == "\\end":
                break
        end = self.match(_BEGIN)
        if end is None or end[1] != begin[1] or len({len(row) for row in rows}) != 1:
            raise NotAFormulaError
        self._closing.pop()
        self.leave()
        return Node("matrix", tuple(Node("row", tuple(row)) for row in rows))


def follows_bracket(text: str, position: int) -> bool:
    """Return whether a position follows a closing bracket: `(0,1) U (2,3)` is a union, `2U` a product."""
    return text[:position].rstrip().endswith((")", "]", "}"))


def apply_sign(sign: str, inside: Node) -> Node:
    """Put a minus or plus-minus sign in front of a formula."""
    return Node({"-": "minus", "\\pm": "plus-minus", "\\mp": "minus-plus"}[sign], (inside,))
