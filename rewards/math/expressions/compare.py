"""Decides whether two formulas are the same answer.

Answers have shapes: a named value (`x = 5`), a chain of equal values, an equation, an inequality, a set, a list, a
tuple, a matrix, a ratio. This module matches the shapes of two answers and compares their parts. `identity_testing`
compares the expressions in them, `intervals` the sets of real numbers.
"""

from fractions import Fraction

from volley.rewards.math.expressions.identity_testing import constant_ratio, equal_expressions, is_defined, rounds_to
from volley.rewards.math.expressions.intervals import equal_sets, is_set
from volley.rewards.math.expressions.matrices import combine_matrices
from volley.rewards.math.expressions.plus_minus import plus_minus_values
from volley.rewards.math.expressions.tree import Node, is_minus_infinity, minus, number, symbols, times

MAX_VALUES = 40
"""Members of a list or set. Longer ones are not compared."""
_PI = Node("constant", name="pi")

_LISTED = ("list", "set", "tuple", "matrix")
_RATIONAL = frozenset(["number", "sum", "product", "quotient", "minus", "ratio", "row", *_LISTED])
_SHAPES = frozenset(["relation", "union", "intersection", "difference", "numbers", "infinity", *_LISTED])


def equal(gold: Node, given: Node, tolerance: Fraction = Fraction(0)) -> bool:
    """Return whether two answers are the same. Numbers may differ by `tolerance`."""
    if gold == given:
        return has_value(gold)
    (gold_name, one), (given_name, other) = _split_name(gold), _split_name(given)
    if gold_name and given_name:
        if (gold_name, one) == (other, given_name) and one.op == "symbol":
            return True
        return _matching_names(gold_name, given_name) and _equal_chains(one, other, tolerance)
    for name, value, equation in ((gold_name, one, other), (given_name, other, one)):
        if name and _is_equation(equation):
            # The equation of a line may be written in any form, but an unsolved equation is not its solution.
            sides = _difference_of_sides(equation)
            return bool(symbols(value)) and _equivalent_equations(minus(name, value), sides)
    return _equal_chains(one, other, tolerance)


def has_value(node: Node) -> bool:
    """Return whether a formula is defined and small enough to be computed, with all of its parts."""
    if node.op in ("sum", "product", "minus"):
        node = combine_matrices(node)
    if node.op in _SHAPES or node.op in ("row", "lone-symbol", "ratio") or is_minus_infinity(node):
        return all(has_value(part) for part in node.parts)
    values = plus_minus_values(node)
    if len(values) > 1:
        return all(has_value(value) for value in values)
    return is_defined(node)


def is_rational(node: Node) -> bool:
    """Return whether a formula contains only numbers and the four operations. Comparing it takes microseconds."""
    return node.op in _RATIONAL and all(is_rational(part) for part in node.parts)


def _split_name(node: Node) -> tuple[Node | None, Node]:
    """Split an answer into the name that it is given (None if it has none) and its value.

    The name of `x = 5`, `5 = x`, `x \\in {5}`, `x = 5, 6` and `x = 5, x = 6` is `x`.
    """
    if node.op == "relation" and node.name == "=" and node.parts[1].op == "symbol" and not symbols(node.parts[0]):
        return node.parts[1], node.parts[0]
    if node.op == "relation" and node.parts[0].op == "lone-symbol" and node.parts[0].parts[0] != _PI:
        (first, *others), (name, *values) = node.name.split(), node.parts
        if first in ("=", "in", "~") and set(others) <= {"=", "~"}:
            value = Node("relation", tuple(values), name=" ".join(others)) if others else values[0]
            return name.parts[0], value
    if node.op == "list":
        pairs = [_split_name(part) for part in node.parts]
        names = [name for name, _ in pairs if name]
        alone = [value for name, value in pairs if not name]
        is_headed = len(names) == 1 and pairs[0][0] and not any(value.op == "relation" for value in alone)
        if is_headed or (len(names) == len(pairs) and len(set(names)) == 1):
            return names[0], Node("list", tuple(value for _, value in pairs), name=node.name)
    return None, node


def _matching_names(one: Node, other: Node) -> bool:
    """Return whether two names may name the same value: equal ones, or `y` and `f(x)`."""
    functions = [each for each in (one, other) if each.op == "product" and each.parts[0].op == "symbol"]
    return one == other or (len(functions) == 1 and Node("symbol", name="y") in (one, other))


def _is_equation(node: Node) -> bool:
    return node.op == "relation" and set(node.name.split()) <= {"=", "~"}


def _equal_chains(gold: Node, given: Node, tolerance: Fraction) -> bool:
    """Compare two answers. If one is a chain of equal values, all of its values must be equal to the other."""
    gold, given = combine_matrices(gold), combine_matrices(given)
    if _is_equation(gold) and _is_equation(given):
        if len(gold.parts) == len(given.parts) == 2 and symbols(gold):
            return _equivalent_equations(_difference_of_sides(gold), _difference_of_sides(given))
        return _equal_in_order(gold.parts, given.parts, tolerance)
    if _is_equation(given):
        return all(_equal_by_shape(gold, part, tolerance) for part in _without_roundings(given))
    if _is_equation(gold):
        return all(_equal_by_shape(part, given, tolerance) for part in gold.parts)
    return _equal_by_shape(gold, given, tolerance)


def _without_roundings(chain: Node) -> tuple[Node, ...]:
    """Return the parts of a chain without its roundings, such as the decimal in sqrt(2) ~ 1.41."""
    kept = [chain.parts[0]]
    for sign, part in zip(chain.name.split(), chain.parts[1:], strict=True):
        if sign == "=" or not rounds_to(kept[-1], part):
            kept.append(part)
    return tuple(kept)


def _equal_by_shape(gold: Node, given: Node, tolerance: Fraction) -> bool:
    """Compare two answers without names and chains."""
    if gold == given:
        return has_value(gold)
    if is_set(gold) or is_set(given):
        if equal_sets(gold, given) or _equivalent_inequalities(gold, given):
            return True
        if not gold.op == given.op == "list" or (gold.name == "or") != (given.name == "or"):
            return False
    gold, given = _expand_plus_minus(gold), _expand_plus_minus(given)
    kinds = {gold.op, given.op}
    if kinds == {"tuple"}:
        return gold.name == given.name and _equal_in_order(gold.parts, given.parts, tolerance)
    if kinds == {"tuple", "list"}:
        # The coordinates of a point may be listed without brackets, and with names.
        brackets = gold.name if gold.op == "tuple" else given.name
        return brackets == "()" and _equal_in_order(_coordinates(gold), _coordinates(given), tolerance)
    if kinds <= {"list", "set"}:
        is_multiset = kinds == {"list"}
        return _equal_members(gold.parts, given.parts, is_multiset, tolerance)
    if kinds & {"list", "set"}:
        if gold.op in ("list", "set"):
            return len(gold.parts) == 1 and _equal_chains(gold.parts[0], given, tolerance)
        return len(given.parts) == 1 and _equal_chains(gold, given.parts[0], tolerance)
    if kinds == {"matrix"}:
        rows = [tuple(part.parts for part in each.parts) for each in (gold, given)]
        is_same_size = [len(row) for row in rows[0]] == [len(row) for row in rows[1]]
        return is_same_size and all(_equal_in_order(a, b, tolerance) for a, b in zip(*rows, strict=True))
    if kinds == {"ratio"} and len(gold.parts) == len(given.parts):
        first, second = gold.parts[0], given.parts[0]
        pairs = zip(gold.parts[1:], given.parts[1:], strict=True)
        return all(equal_expressions(times(one, second), times(other, first), tolerance) for one, other in pairs)
    if kinds & _SHAPES:
        return False
    return equal_expressions(gold, given, tolerance)


def _coordinates(node: Node) -> tuple[Node, ...]:
    """Return the values of a point. If all have different names (y = 2, x = 1), they are sorted by name."""
    pairs = [_split_name(part) for part in node.parts]
    values = {name.name: value for name, value in pairs if name and name.op == "symbol"}
    return tuple(values[name] for name in sorted(values)) if len(values) == len(pairs) else node.parts


def _equal_in_order(gold: tuple[Node, ...], given: tuple[Node, ...], tolerance: Fraction) -> bool:
    pairs = zip(gold, given, strict=False)
    return len(gold) == len(given) and all(equal(one, other, tolerance) for one, other in pairs)


def _equal_members(gold: tuple[Node, ...], given: tuple[Node, ...], is_multiset: bool, tolerance: Fraction) -> bool:
    """Return whether each member has an equal in the other. In lists (multisets), repeated members count."""
    if max(len(gold), len(given)) > MAX_VALUES or (is_multiset and len(gold) != len(given)):
        return False
    left = list(given)
    for one in gold:
        index = next((i for i, other in enumerate(left) if equal(one, other, tolerance)), None)
        if index is not None:
            del left[index]
        elif is_multiset or not any(equal(one, other, tolerance) for other in given):
            return False
    return all(any(equal(one, other, tolerance) for one in gold) for other in left)


def _expand_plus_minus(node: Node) -> Node:
    """Replace a plus-minus formula by the list of its two values, also in the members of a list or set."""
    if node.op in ("list", "set"):
        values = tuple(value for part in node.parts for value in plus_minus_values(part))
        return node._replace(parts=values)
    values = plus_minus_values(node)
    return Node("list", values, name=",") if len(values) > 1 else node


def _difference_of_sides(equation: Node) -> Node:
    """Return the left side minus the right side; 0 for a chain of three or more parts."""
    left, right = equation.parts if len(equation.parts) == 2 else (number(0), number(0))
    return minus(left, right)


def _equivalent_equations(one: Node, other: Node) -> bool:
    """Return whether two equations, given as differences of their sides, are multiples of each other."""
    return constant_ratio(one, other) is not None


def _equivalent_inequalities(gold: Node, given: Node) -> bool:
    """Return whether two inequalities with several symbols are the same up to a factor."""
    if not gold.op == given.op == "relation" or len(gold.parts) != 2 or len(given.parts) != 2:
        return False
    flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    if gold.name not in flipped or given.name not in flipped or not len(symbols(gold)) > 1:
        return False
    ratio = constant_ratio(_difference_of_sides(gold), _difference_of_sides(given))
    return ratio is not None and given.name == (gold.name if ratio > 0 else flipped[gold.name])
