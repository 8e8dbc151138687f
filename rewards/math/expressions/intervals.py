"""Sets of real numbers: intervals, finite sets, solved inequalities, and their unions, intersections and differences.

Two sets are equal if they agree on sample points: every boundary that either set names, one number between each two
neighbouring boundaries, and one number beyond each end. So `1 < x \\le 2`, `x \\in (1, 2]` and
`(1, 3) \\setminus (2, 3)` are the same set, and no set has to be simplified.
"""

from fractions import Fraction
from functools import cmp_to_key
from itertools import pairwise
from typing import Any

from volley.rewards.math.expressions.evaluate import constant_value
from volley.rewards.math.expressions.tree import Node, is_minus_infinity
from volley.rewards.math.expressions.value import NoValueError, as_real, compare_reals, midpoint

_COMPARES = frozenset(["<", ">", "<=", ">=", "!="])
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_OPERATIONS = frozenset(["union", "intersection", "difference"])
_LOW, _HIGH = "low", "high"


class NotARealSetError(Exception):
    """The formula is not a set of real numbers, or it is an inequality that is not solved for its symbol."""


def is_set(node: Node) -> bool:
    """Return whether a formula can only be a set of numbers. A pair in brackets is ambiguous, so it returns False."""
    if node.op == "relation":
        return bool(_COMPARES & set(node.name.split()))
    if node.op == "list":
        return all(is_set(part) for part in node.parts)
    return node.op in ("numbers", *_OPERATIONS) or (node.op == "tuple" and node.name in ("(]", "[)"))


def equal_sets(one: Node, other: Node) -> bool:
    """Return whether two formulas are the same set of real numbers, in the same symbol if both name one."""
    if one.op == other.op == "numbers":
        return one.name == other.name
    try:
        first, second = _RealSet(_without_negated_symbols(one)), _RealSet(_without_negated_symbols(other))
        if first.symbols | second.symbols != (first.symbols or second.symbols):
            return False
        samples = _samples([*first.boundaries, *second.boundaries])
        return all(first.contains(sample) == second.contains(sample) for sample in samples)
    except (NotARealSetError, NoValueError):
        return False


class _RealSet:
    """A set with the boundaries and the symbols that it names. Raises NotARealSetError, NoValueError."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.boundaries: list[Any] = []
        self.symbols: set[Node] = set()
        self._values: dict[int, Any] = {}
        self._collect(node)

    def contains(self, sample: Any) -> bool:
        return self._holds(self._node, sample)

    def _collect(self, node: Node) -> None:
        """Collect boundaries and symbols, and refuse what is not a set."""
        if node.op == "tuple" and len(node.parts) == 2:
            low, high = (self._boundary(part) for part in node.parts)
            if (
                _order(low, high) > 0
                or (low is _LOW and node.name[0] == "[")
                or (high is _HIGH and node.name[1] == "]")
            ):
                raise NotARealSetError
        elif node.op == "set":
            for part in node.parts:
                self._boundary(part)
        elif node.op in _OPERATIONS or node.op == "list":
            for part in node.parts:
                self._collect(part)
        elif node.op == "relation" and node.name == "in":
            self.symbols.add(_symbol(node.parts[0]) or node)
            self._collect(node.parts[1])
        elif node.op == "relation":
            symbols = [symbol for part in node.parts if (symbol := _symbol(part))]
            if len(symbols) != 1 or not set(node.name.split()) <= _COMPARES:
                raise NotARealSetError
            self.symbols.update(symbols)
            for part in node.parts:
                if not _symbol(part):
                    self._boundary(part)
        elif node != Node("numbers", name="R"):
            raise NotARealSetError

    def _boundary(self, node: Node) -> Any:
        value = _HIGH if node.op == "infinity" else _LOW if is_minus_infinity(node) else as_real(constant_value(node))
        self._values[id(node)] = value
        if not isinstance(value, str):
            self.boundaries.append(value)
        return value

    def _holds(self, node: Node, sample: Any) -> bool:
        """Return whether a sample is in the set that a node describes."""
        if node.op == "tuple":
            low, high = (_order(self._values[id(part)], sample) for part in node.parts)
            return (low < 0 or (low == 0 and node.name[0] == "[")) and (high > 0 or (high == 0 and node.name[1] == "]"))
        if node.op == "set":
            return any(_order(self._values[id(part)], sample) == 0 for part in node.parts)
        if node.op == "union" or (node.op == "list" and node.name == "or"):
            return any(self._holds(part, sample) for part in node.parts)
        if node.op == "intersection" or node.op == "list":
            return all(self._holds(part, sample) for part in node.parts)
        if node.op == "difference":
            return self._holds(node.parts[0], sample) and not self._holds(node.parts[1], sample)
        if node.op == "relation" and node.name == "in":
            return self._holds(node.parts[1], sample)
        if node.op == "relation":
            values = [sample if _symbol(part) else self._values[id(part)] for part in node.parts]
            signs = node.name.split()
            return all(_holds_for(sign, _order(*values[i : i + 2])) for i, sign in enumerate(signs))
        return True


def _without_negated_symbols(node: Node) -> Node:
    """Rewrite inequalities in `-x` as inequalities in `x`: -x > -1 becomes x < 1."""
    parts = tuple(map(_without_negated_symbols, node.parts))
    if node.op == "relation" and any(part.op == "minus" and _symbol(part.parts[0]) for part in parts):
        signs = " ".join(_FLIPPED.get(sign, sign) for sign in node.name.split())
        return node._replace(parts=tuple(map(_negative, parts)), name=signs)
    return node._replace(parts=parts)


def _negative(node: Node) -> Node:
    return node.parts[0] if node.op == "minus" else Node("minus", (node,))


def _holds_for(sign: str, order: int) -> bool:
    """Return whether a relation sign holds for two values with this order (-1, 0 or 1)."""
    return {"<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0, "!=": order != 0}[sign]


def _symbol(node: Node) -> Node | None:
    """Return the symbol that a node is, None if it is anything else."""
    node = node.parts[0] if node.op == "lone-symbol" else node
    return node if node.op == "symbol" else None


def _order(one: Any, other: Any) -> int:
    """Compare two values or infinite ends: -1, 0 or 1. Values that differ only by rounding are equal."""
    if isinstance(one, str) or isinstance(other, str):
        return 0 if one is other else -1 if one is _LOW or other is _HIGH else 1
    return compare_reals(one, other)


def _samples(boundaries: list[Any]) -> list[Any]:
    """Return every boundary, a number between each two neighbours, and one number beyond each end."""
    distinct: list[Any] = []
    for value in sorted(boundaries, key=cmp_to_key(compare_reals)):
        if not distinct or _order(distinct[-1], value):
            distinct.append(value)
    if not distinct:
        return [Fraction(0)]
    between = [midpoint(low, high) for low, high in pairwise(distinct)]
    return [distinct[0] - 1, *distinct, *between, distinct[-1] + 1]
