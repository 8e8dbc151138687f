"""Is an answer worked out, or the task copied out? 47+38 means the same as 85, but is no answer to "What is 47+38?".

Where the gold answer is plain numbers, the response must give plain numbers, too, or what is one step from them and is
a usual way to leave an answer: a/b, a mixed number, a percentage, a * 10^n; a power (2^{10}), root, factorial (10!),
binomial or function (\\log_2 8) of plain numbers; a quotient of two of these. A sum, difference or product, and a step
inside another ((2^3)^2, a fraction in a fraction), is a calculation left undone, and so is a formula with symbols
(x/x for 1). A chain that ends in its result (47+38 = 85) is worked out; a sum or product of matrices is not, a number
in front of a matrix is a usual form.

Left alone is a response to any other gold answer: irrational or symbolic (\\sqrt{12}, x+1), a power, or a calculation
that the answer key itself leaves undone; and an irrational formula that the gold decimal is a rounding of (5\\sqrt{2}
for 7.07). A task that is one such step ("What is 6!?") can still be copied out: then its copy is also a usual answer.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction

from volley.rewards.math.expressions.evaluate import evaluate
from volley.rewards.math.expressions.plus_minus import plus_minus_values
from volley.rewards.math.expressions.tree import Node, number, symbols
from volley.rewards.math.expressions.value import NoValueError, equal_values

_STEPS = frozenset(["power", "root", "factorial", "binomial", "function"])
_SIGNS = frozenset(["minus", "plus-minus", "minus-plus"])
_ENDS = frozenset(["infinity", "numbers"])
_HOLDERS = frozenset(["list", "set", "tuple", "matrix", "row", "union", "intersection", "difference", "ratio"])


def is_unfinished(gold: Node, given: Node) -> bool:
    """Whether the gold answer is plain numbers, and the given one, which means the same, a way to calculate them."""
    if given.op == "number" or given == gold or not all(map(_is_number, _values(gold))):
        return False
    undone = [value for value in _values(given) if not _is_done(value)]
    return bool(undone) and any(_is_exact(value, _values(gold)) for value in undone)


def _values(node: Node) -> Iterator[Node]:
    """The values that an answer is made of, without the symbols that name them. Of a chain of equal ones those that
    are worked out, if any is."""
    if node.op == "relation":
        parts = tuple(part for part in node.parts if _without_sign(part).op not in ("lone-symbol", "symbol"))
        if set(node.name.split()) <= {"=", "~"} and not any(map(symbols, parts)):
            parts = tuple(filter(_is_done, parts)) or parts
    elif node.op in _HOLDERS or (node.op == "product" and _is_scaled(node)):
        parts = node.parts
    else:
        yield from plus_minus_values(node)
        return
    for part in parts:
        yield from _values(part)


def _is_scaled(product: Node) -> bool:
    """A matrix with one number in front of it."""
    scalar, matrix = product.parts
    return matrix.op == "matrix" and _is_number(scalar)


def _without_sign(node: Node) -> Node:
    while node.op in _SIGNS:
        node = node.parts[0]
    return node


def _is_number(node: Node) -> bool:
    """A plain number, as a gold answer is: rational and written as a decimal, a fraction or a * 10^n; or no end."""
    node = _without_sign(node)
    if node.op == "quotient":
        return all(_without_sign(part).op == "number" for part in node.parts)
    return node.op == "number" or node.op in _ENDS or _is_scientific(node)


def _is_scientific(node: Node) -> bool:
    if node.op != "product":
        return False
    power = node.parts[1]
    is_ten = power.op == "power" and power.parts[0] == number(10) and _without_sign(power.parts[1]).op == "number"
    return is_ten and _without_sign(node.parts[0]).op == "number"


def _is_done(node: Node) -> bool:
    """Whether a value is a plain number, or one step from plain numbers, or a quotient of two of these."""
    node = _without_sign(node)
    if node.op != "quotient":
        return _is_step(node)
    above, below = node.parts
    return (_is_step(above) and _is_step(below)) or (below == number(100) and _is_done(above))  # a percentage


def _is_step(node: Node) -> bool:
    node = _without_sign(node)
    return _is_atom(node) or (node.op in _STEPS and all(map(_is_plain, node.parts)))


def _is_plain(node: Node) -> bool:
    node = _without_sign(node)
    return _is_atom(node) or (node.op == "quotient" and all(map(_is_atom, node.parts)))


def _is_atom(node: Node) -> bool:
    node = _without_sign(node)
    if node.op == "degrees":
        return _is_number(node.parts[0])
    return node.op in ("number", "constant") or node.op in _ENDS or _is_scientific(node)


def _is_exact(undone: Node, wanted: Iterable[Node]) -> bool:
    """Whether what is left undone has a plain number as its value, not one that only rounds to it."""
    if symbols(undone):
        return True
    try:
        result = evaluate(undone)
        if isinstance(result[0], Fraction):
            return True
        return any(equal_values(result, evaluate(value)) for value in wanted if value.op not in _ENDS)
    except NoValueError:
        return True
