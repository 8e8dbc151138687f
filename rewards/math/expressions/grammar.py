"""Parses a normalized answer into a tree of numbers, symbols, functions, lists, sets, matrices and relations.

A recursive descent parser, written by hand, over a fixed vocabulary. This module handles the operators and
`volley.rewards.math.expressions.atoms` everything between them.

    list      relation (("," | ";" | "and" | "or") relation)*
    relation  union (("=" | "<" | ...) union)*
    union     ratio ((\\cup | \\cap | \\setminus) ratio)*
    ratio     sum (":" sum)*
    sum       product (("+" | "-" | \\pm | \\mp) product)*
    product   power (("*" | "/" | nothing) power)*
    power     atom ("!" | "%" | "degrees")* ("^" exponent)?

Safety: nothing is computed here and no part of the text is executed. A word outside the vocabulary ends the parsing.
The number of characters, digits and levels of nesting is checked before a node is made, so every tree is small. The
size of its *value* is limited during evaluation (`volley.rewards.math.expressions.evaluate`).

Left out on purpose: sums with bounds, products with bounds, integrals, limits and derivatives. They are tasks, not
answers. Tasks written with the operators above are refused by `volley.rewards.math.answers.unfinished`.
"""

from functools import lru_cache

from volley.rewards.math.expressions.atoms import AtomParser, apply_sign
from volley.rewards.math.expressions.tokens import NotAFormulaError
from volley.rewards.math.expressions.tree import Node, number
from volley.rewards.math.expressions.vocabulary import LEFT_SIDE_NAME, RELATIONS, SEPARATORS, SET_OPERATORS

MAX_CHARS = 256
"""Characters of a formula."""


@lru_cache(4096)
def parse(text: str) -> Node | None:
    """Parse a whole normalized text. None if the grammar does not know it or it exceeds a limit."""
    if not 0 < len(text) <= MAX_CHARS:
        return None
    try:
        parser = _Parser(text)
        tree = parser.list_until()
        return tree if parser.peek() == "" else None
    except (NotAFormulaError, RecursionError, ZeroDivisionError):
        return None


class _Parser(AtomParser):
    """Parses operators, from those that bind least (`list_until`) to those that bind most (`exponent`)."""

    def list_until(self, *closing: str) -> Node:
        parts, words = [self._relation()], set()
        while self.peek() in SEPARATORS:
            words.add(self.take())
            while self.peek() in ("and", "or"):
                words.add(self.take())
            if self.peek() in ("", *closing):
                raise NotAFormulaError
            parts.append(self._relation())
        name = "or" if "or" in words else "and" if "and" in words else ","
        return parts[0] if len(parts) == 1 else Node("list", tuple(parts), name=name)

    def _relation(self) -> Node:
        """Parse a chain of relations. A name in front of the first sign is marked by a `lone-symbol` node."""
        start = self.position
        parts, signs = [self._union()], []
        if self.peek() in RELATIONS and LEFT_SIDE_NAME.fullmatch(self.text[start : self.position].strip()):
            parts = [Node("lone-symbol", (parts[0],))]
        while self.peek() in RELATIONS:
            signs.append(RELATIONS[self.take()])
            parts.append(self._union())
        return Node("relation", tuple(parts), name=" ".join(signs)) if signs else parts[0]

    def _union(self) -> Node:
        left = self._ratio()
        while self.peek() in SET_OPERATORS:
            left = Node(SET_OPERATORS[self.take()], (left, self._ratio()))
        return left

    def _ratio(self) -> Node:
        parts = [self.sum()]
        while self.peek() == ":":
            self.take()
            parts.append(self.sum())
        return Node("ratio", tuple(parts)) if len(parts) > 1 else parts[0]

    def sum(self) -> Node:
        left = self._product()
        while (sign := self.peek()) in ("+", "-", "\\pm", "\\mp"):
            self.take()
            right = self._product()
            left = Node("sum", (left, right if sign == "+" else apply_sign(sign, right)))
        return left

    def _product(self) -> Node:
        left = self._factor()
        while True:
            token = self.peek()
            if token in ("*", "/"):
                self.take()
                left = Node("product" if token == "*" else "quotient", (left, self._factor()))
            elif self.starts_atom(token):
                # Digits that follow a factor are refused: "1 8" is not 1 * 8, and no one writes "x2". 3!7! is fine.
                if token[0] in "0123456789." and self.text[self.position - 1 : self.position] != "!":
                    raise NotAFormulaError
                left = Node("product", (left, self.power()))
            else:
                return left

    def _factor(self) -> Node:
        if (sign := self.peek()) in ("+", "-", "\\pm", "\\mp"):
            self.take()
            self.enter()
            inside = self._factor()
            self.leave()
            return inside if sign == "+" else apply_sign(sign, inside)
        return self.power()

    def power(self) -> Node:
        base = self._postfix(self.atom())
        if self.peek() != "^":
            return base
        self.take()
        self.enter()
        exponent = self.exponent()
        self.leave()
        return self._postfix(Node("power", (base, exponent)))

    def _postfix(self, base: Node) -> Node:
        """Apply the factorial, percent and degree signs that follow. A double factorial is refused."""
        while (token := self.peek()) in ("!", "%", "degrees"):
            self.take()
            if token == "!" and base.op == "factorial":
                raise NotAFormulaError
            if token == "%":
                base = Node("quotient", (base, number(100)))
            else:
                base = Node("factorial" if token == "!" else "degrees", (base,))
        return base

    def exponent(self) -> Node:
        if self.peek() in ("-", "+"):
            sign = self.take()
            self.enter()
            inside = self.exponent()
            self.leave()
            return apply_sign("-", inside) if sign == "-" else inside
        atom = self._postfix(self.atom())
        if self.peek() == "^":
            self.take()
            self.enter()
            atom = Node("power", (atom, self.exponent()))
            self.leave()
        return atom
