"""Decides whether two expressions are the same number or the same function, by evaluating both.

Two expressions are equal if their values agree at random rational points (J. T. Schwartz, "Fast probabilistic
algorithms for verification of polynomial identities", 1980). Rational values are compared exactly, others to 80 digits.
Points at which an expression is not real are skipped. At least `MIN_AGREEING` points must agree and none may differ.
Nothing is simplified symbolically, so no step can take long.

The roles of the two expressions differ only for decimals. A gold answer written as a decimal may be rounded, so it also
equals a more precise number that rounds to it. A decimal in a response is taken as exact.
"""

import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from volley.rewards.math.expressions.evaluate import evaluate
from volley.rewards.math.expressions.tree import Node, symbols
from volley.rewards.math.expressions.value import NoValueError, as_real, compare_reals, equal_values

NUM_POINTS = 36
MAX_AGREEING = 4
"""Points that agree, after which two expressions are equal and no further point is tried."""
MIN_AGREEING = 3
"""Points that must agree at least, where others are undefined."""
# The fewest decimal places with which a gold answer counts as rounded, by the kind of the more precise number.
IRRATIONAL_PLACES = 2
REPEATING_PLACES = 3
DECIMAL_PLACES = 5

_PRIMES = (37, 41, 43, 47, 53, 59, 61)


def is_defined(node: Node) -> bool:
    """Return whether an expression has a value, small enough to be computed, at one point at least."""
    names = sorted(symbols(node))
    points = (*_random_points(names), *_integer_points(names)) if names else ({},)
    return any(_is_defined_at(node, point) for point in points)


def _is_defined_at(node: Node, point: dict[str, Fraction]) -> bool:
    try:
        evaluate(node, point)
    except NoValueError:
        return False
    return True


def equal_expressions(gold: Node, given: Node, tolerance: Fraction) -> bool:
    """Return whether two expressions are the same number or the same function. Constants count as functions.

    A formula in x may therefore equal a number. `volley.rewards.math.answers.unfinished` refuses it as an answer.
    """
    if gold == given:
        return is_defined(gold)
    names = symbols(gold) | symbols(given)
    if names:
        return _equal_functions(gold, given, sorted(names))
    try:
        one, other = evaluate(gold), evaluate(given)
        if equal_values(one, other):
            return True
        if tolerance:
            return compare_reals(abs(as_real(one[0]) - as_real(other[0])), tolerance) <= 0
        return _rounds_to(gold, as_real(one[0]), given, as_real(other[0]))
    except NoValueError:
        return False


def _rounds_to(gold: Node, truth: Fraction, given: Node, value: Fraction) -> bool:
    """Return whether the gold answer is a decimal that the other, more precise number rounds to."""
    places, given_places = _places(gold), _places(given)
    if not isinstance(value, Fraction):
        is_rounded = places >= IRRATIONAL_PLACES
    else:
        is_longer = places >= DECIMAL_PLACES and given_places > places
        is_rounded = is_longer or (places >= REPEATING_PLACES and _is_repeating(value))
    return is_rounded and compare_reals(abs(value - truth) * 2, Fraction(1, 10**places)) <= 0


def rounds_to(exact: Node, decimal: Node) -> bool:
    """Return whether a number rounds to a decimal: sqrt(2) to 1.41, 1/3 to 0.33."""
    places = _places(decimal)
    if not places or symbols(exact) or places <= _places(exact):
        return False
    try:
        difference = as_real(evaluate(exact)[0]) - as_real(evaluate(decimal)[0])
        return compare_reals(abs(difference) * 2, Fraction(1, 10**places)) <= 0
    except NoValueError:
        return False


def _places(node: Node) -> int:
    """Return the number of decimal places that a number is written with; 0 if it is not a decimal."""
    if node.op == "minus":
        return _places(node.parts[0])
    return int(node.name or 0) if node.op == "number" else 0


def _is_repeating(value: Fraction) -> bool:
    """Return whether the decimal expansion of a fraction never ends."""
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator > 1


def _equal_functions(gold: Node, given: Node, names: list[str]) -> bool:
    """Compare two functions at rational points, then at integers, then at points with complex values."""
    is_real = not (_is_complex(gold) or _is_complex(given))
    for points, real_only in ((_random_points, is_real), (_integer_points, is_real), (_random_points, False)):
        num_agreeing = 0
        for point in points(names):
            try:
                one, other = evaluate(gold, point, real_only), evaluate(given, point, real_only)
                is_same = equal_values(one, other)
            except NoValueError:
                continue
            if not is_same:
                return False
            num_agreeing += 1
            if num_agreeing == MAX_AGREEING:
                return True
        if num_agreeing >= MIN_AGREEING:
            return True
    return False


def _is_complex(node: Node) -> bool:
    return (node.op == "constant" and node.name == "i") or any(map(_is_complex, node.parts))


def _random_points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    return (dict(zip(names, values, strict=True)) for values in _rational_values(len(names)))


def _integer_points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    return (dict(zip(names, values, strict=True)) for values in _integer_values(len(names)))


@lru_cache(64)
def _rational_values(number: int) -> list[list[Fraction]]:
    """Return points, each with different values for different symbols.

    Signs go in turn: all positive, all negative, alternating from plus, alternating from minus. Sizes go in turn, too:
    four points below 3, four below 1, four below 12.
    """
    points = []
    for index in range(NUM_POINTS):
        rng, largest = random.Random(index), (3, 1, 12)[index // 4 % 3]
        primes = rng.sample(_PRIMES, len(_PRIMES))
        signs = [(1, 1), (-1, -1), (1, -1), (-1, 1)][index % 4]
        point = []
        for symbol_index in range(number):
            denominator = primes[symbol_index % len(primes)]
            point.append(signs[symbol_index % 2] * Fraction(rng.randrange(1, largest * denominator), denominator))
        points.append(point)
    return points


@lru_cache(64)
def _integer_values(number: int) -> list[list[Fraction]]:
    """Return points for expressions that are defined at integers only, such as (-1)^n."""
    rng = random.Random(0)
    return [[Fraction(rng.randrange(1, 9) + index) for _ in range(number)] for index in range(NUM_POINTS)]


def constant_ratio(one: Node, other: Node) -> Fraction | None:
    """Return the constant `one / other`; None if the ratio is 0 or not constant."""
    names = sorted(symbols(one) | symbols(other))
    ratios: list[tuple[Any, Any]] = []
    for point in _random_points(names):
        try:
            ratio = evaluate(Node("quotient", (one, other)), point, True)
            is_same = not ratios or equal_values(ratios[0], ratio)
        except NoValueError:
            continue
        if not ratio[0] or not is_same:
            return None
        ratios.append(ratio)
    return ratios[0][0] if len(ratios) >= MIN_AGREEING else None
