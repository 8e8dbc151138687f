"""From the normal form of an answer to a tree of numbers, symbols, functions, lists, sets, matrices and relations.

A hand-written recursive descent over a fixed vocabulary. Nothing is computed here and nothing of the text is ever
executed: a word that is not in the vocabulary ends the reading. Characters, nesting and digits are bounded before a
node is made, so the tree of an answer is small whatever the answer says; how large its *value* may become is bounded
where it is computed (`volley.rewards.math.expressions.evaluate`).

    list      relation (("," | ";" | "and" | "or") relation)*
    relation  union (("=" | "<" | ...) union)*
    union     ratio ((\\cup | \\cap | \\setminus) ratio)*
    ratio     sum (":" sum)*
    sum       product (("+" | "-" | \\pm | \\mp) product)*
    product   power (("*" | "/" | nothing) power)*
    power     atom ("!" | "%" | "degrees")* ("^" exponent)?

What stands between the operators, the atoms, is in `volley.rewards.math.expressions.atoms`.

Left out on purpose: sums, products, integrals, limits and derivatives, which are tasks, not answers; tasks that are
made of the operators above are refused by `volley.rewards.math.answers.unfinished`.
"""

from functools import lru_cache

from volley.rewards.math.expressions.atoms import AtomParser, apply_sign
from volley.rewards.math.expressions.formula import (
    LONE,
    MAX_CHARS,
    RELATIONS,
    SEPARATORS,
    SET_OPERATORS,
    Node,
    NotAFormulaError,
    number,
)


@lru_cache(4096)
def parse(text: str) -> Node | None:
    """The tree of a normal form, whole; None if the grammar does not know it or a bound is passed."""
    if not 0 < len(text) <= MAX_CHARS:
        return None
    try:
        reader = _Parser(text)
        tree = reader.list_until()
        return tree if reader.peek() == "" else None
    except (NotAFormulaError, RecursionError, ZeroDivisionError):
        return None


class _Parser(AtomParser):
    def list_until(self, *closing: str) -> Node:
        """Relations between separators; a single one stands for itself."""
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
        """A lone symbol in front of "=" is marked as the name of what follows."""
        start = self.position
        parts, signs = [self._union()], []
        if self.peek() in RELATIONS and LONE.fullmatch(self.text[start : self.position].strip()):
            parts = [Node("lone", (parts[0],))]
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
                # Digits right behind something are no factor: "1 8" is not 8, "x2" nothing that one writes. 3!7! is.
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
