"""Detects answers that are an unfinished calculation: 47+38 equals 85, but it does not answer "What is 47+38?".

If the gold answer is plain numbers, the response must be finished. Finished are:

- plain numbers: decimals, fractions a/b, mixed numbers, percentages, a * 10^n
- one step from plain numbers that is a usual form of an answer: a power (2^{10}), root, factorial (10!), binomial or
  function (\\log_2 8) of plain numbers
- a quotient of two of these
- a chain that ends in a finished result (47+38 = 85)
- a matrix with a number in front of it

Unfinished are:

- sums, differences and products
- a step inside another step ((2^3)^2), or a fraction in a fraction
- formulas with symbols (x/x for 1)
- sums and products of matrices

Two kinds of responses are never refused:

- a response to a gold answer that is irrational or symbolic (\\sqrt{12}, x+1), a power, or an unfinished calculation
- an irrational formula whose rounding is the gold decimal (5\\sqrt{2} for 7.07)

Known limit: if the task is one such step ("What is 6!?"), a copy of the task counts as a usual form of the answer.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction

from volley.rewards.math.expressions.evaluate import evaluate
from volley.rewards.math.expressions.plus_minus import plus_minus_values
from volley.rewards.math.expressions.tree import Node, number, symbols
from volley.rewards.math.expressions.value import NoValueError, equal_values

_STEPS = frozenset(["power", "root", "factorial", "binomial", "function"])
_SIGNS = frozenset(["minus", "plus-minus", "minus-plus"])
_UNBOUNDED = frozenset(["infinity", "numbers"])
_CONTAINERS = frozenset(["list", "set", "tuple", "matrix", "row", "union", "intersection", "difference", "ratio"])


def is_unfinished(gold: Node, given: Node) -> bool:
    """Return whether the gold answer is plain numbers and the given answer, which equals it, only calculates them."""
    if given.op == "number" or given == gold or not all(map(_is_number, _values(gold))):
        return False
    unfinished = [value for value in _values(given) if not _is_finished(value)]
    return bool(unfinished) and any(_is_exact(value, _values(gold)) for value in unfinished)


def _values(node: Node) -> Iterator[Node]:
    """Yield the values in an answer, without the symbols that name them.

    Of a chain of equal values, only those that are finished, if any is.
    """
    if node.op == "relation":
        parts = tuple(part for part in node.parts if _without_sign(part).op not in ("lone-symbol", "symbol"))
        if set(node.name.split()) <= {"=", "~"} and not any(map(symbols, parts)):
            parts = tuple(filter(_is_finished, parts)) or parts
    elif node.op in _CONTAINERS or (node.op == "product" and _is_scaled(node)):
        parts = node.parts
    else:
        yield from plus_minus_values(node)
        return
    for part in parts:
        yield from _values(part)


def _is_scaled(product: Node) -> bool:
    """Return whether a product is a matrix with one number in front of it."""
    scalar, matrix = product.parts
    return matrix.op == "matrix" and _is_number(scalar)


def _without_sign(node: Node) -> Node:
    while node.op in _SIGNS:
        node = node.parts[0]
    return node


def _is_number(node: Node) -> bool:
    """Return whether a gold answer is a plain number: a decimal, a fraction or a * 10^n. Infinity and R count, too."""
    node = _without_sign(node)
    if node.op == "quotient":
        return all(_without_sign(part).op == "number" for part in node.parts)
    return node.op == "number" or node.op in _UNBOUNDED or _is_scientific(node)


def _is_scientific(node: Node) -> bool:
    """Return whether a formula is a number in scientific notation, a * 10^n."""
    if node.op != "product":
        return False
    power = node.parts[1]
    is_ten = power.op == "power" and power.parts[0] == number(10) and _without_sign(power.parts[1]).op == "number"
    return is_ten and _without_sign(node.parts[0]).op == "number"


def _is_finished(node: Node) -> bool:
    """Return whether a value is a plain number, one step from plain numbers, or a quotient of two of these."""
    node = _without_sign(node)
    if node.op != "quotient":
        return _is_step(node)
    above, below = node.parts
    return (_is_step(above) and _is_step(below)) or (below == number(100) and _is_finished(above))  # a percentage


def _is_step(node: Node) -> bool:
    """Return whether a value is a plain number or one step from plain numbers."""
    node = _without_sign(node)
    return _is_atom(node) or (node.op in _STEPS and all(map(_is_plain, node.parts)))


def _is_plain(node: Node) -> bool:
    """Return whether an operand of a step is a plain number or a fraction."""
    node = _without_sign(node)
    return _is_atom(node) or (node.op == "quotient" and all(map(_is_atom, node.parts)))


def _is_atom(node: Node) -> bool:
    node = _without_sign(node)
    if node.op == "degrees":
        return _is_number(node.parts[0])
    return node.op in ("number", "constant") or node.op in _UNBOUNDED or _is_scientific(node)


def _is_exact(unfinished: Node, wanted: Iterable[Node]) -> bool:
    """Return whether the exact value of an unfinished calculation is a plain number, not only its rounding."""
    if symbols(unfinished):
        return True
    try:
        result = evaluate(unfinished)
        if isinstance(result[0], Fraction):
            return True
        return any(equal_values(result, evaluate(value)) for value in wanted if value.op not in _UNBOUNDED)
    except NoValueError:
        return True
