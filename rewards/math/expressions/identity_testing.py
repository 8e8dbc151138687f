"""Whether two expressions are the same number or the same function, by their values.

Two expressions are equal if they have the same value at random rational points (J. T. Schwartz, "Fast probabilistic
algorithms for verification of polynomial identities", 1980), exact where the values are rational and to 80 digits where
they are not. Points where one of them leaves the real numbers say nothing; three others must agree and none may differ.
There is no simplification, so there is nothing that could take long.

Which expression is the true one matters for decimals only: a gold answer written with decimals may be rounded, so it
also equals what rounds to it; a response's decimal is exact.
"""

import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from volley.rewards.math.expressions.evaluate import evaluate
from volley.rewards.math.expressions.formula import Node, symbols
from volley.rewards.math.expressions.value import NoValueError, as_real, compare_reals, equal_values

NUM_POINTS = 36
MAX_AGREEING = 4
MIN_AGREEING = 3
# A rounded gold answer shows this many decimals at least: for an irrational number, a fraction, a longer decimal.
IRRATIONAL_PLACES = 2
RATIONAL_PLACES = 3
DECIMAL_PLACES = 5

_PRIMES = (37, 41, 43, 47, 53, 59, 61)


def is_defined(node: Node) -> bool:
    """Whether an expression has a value that is small enough to be computed, at some point at least."""
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
    """Whether two expressions are the same number or the same function, of which a constant is one. That a formula in x
    is no answer to a plain number, because it is the task, is for `volley.rewards.math.answers.unfinished` to say."""
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
    """Whether the gold answer is a decimal that the other, more precise one rounds to."""
    places, given_places = _places(gold), _places(given)
    if not isinstance(value, Fraction):
        is_rounded = places >= IRRATIONAL_PLACES
    else:
        is_longer = places >= DECIMAL_PLACES and given_places > places
        is_rounded = is_longer or (places >= RATIONAL_PLACES and _is_repeating(value))
    return is_rounded and compare_reals(abs(value - truth) * 2, Fraction(1, 10**places)) <= 0


def rounds_to(exact: Node, decimal: Node) -> bool:
    """Whether a number is a decimal, or its rounding: 1.41 of sqrt(2), 0.33 of 1/3."""
    places = _places(decimal)
    if not places or symbols(exact) or places <= _places(exact):
        return False
    try:
        difference = as_real(evaluate(exact)[0]) - as_real(evaluate(decimal)[0])
        return compare_reals(abs(difference) * 2, Fraction(1, 10**places)) <= 0
    except NoValueError:
        return False


def _places(node: Node) -> int:
    """The decimals that a number is written with; 0 for what is no decimal."""
    if node.op == "minus":
        return _places(node.parts[0])
    return int(node.name or 0) if node.op == "number" else 0


def _is_repeating(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator > 1


def _equal_functions(gold: Node, given: Node, names: list[str]) -> bool:
    is_real = not (_is_complex(gold) or _is_complex(given))
    for points, stays_real in ((_random_points, is_real), (_integer_points, is_real), (_random_points, False)):
        num_agreeing = 0
        for point in points(names):
            try:
                one, other = evaluate(gold, point, stays_real), evaluate(given, point, stays_real)
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
    """Different values for different symbols: all positive, all negative, and alternating in both ways, in turn; four
    less than 3, four less than 1, four less than 12, and so on."""
    points = []
    for index in range(NUM_POINTS):
        chance, largest = random.Random(index), (3, 1, 12)[index // 4 % 3]
        primes = chance.sample(_PRIMES, len(_PRIMES))
        signs = [(1, 1), (-1, -1), (1, -1), (-1, 1)][index % 4]
        point = []
        for place in range(number):
            denominator = primes[place % len(primes)]
            point.append(signs[place % 2] * Fraction(chance.randrange(1, largest * denominator), denominator))
        points.append(point)
    return points


@lru_cache(64)
def _integer_values(number: int) -> list[list[Fraction]]:
    """For what is defined at whole numbers only, such as (-1)^n."""
    chance = random.Random(0)
    return [[Fraction(chance.randrange(1, 9) + index) for _ in range(number)] for index in range(NUM_POINTS)]


def constant_ratio(one: Node, other: Node) -> Fraction | None:
    """The number that `one` is always `other` times; None if there is none."""
    names = sorted(symbols(one) | symbols(other))
    found: list[tuple[Any, Any]] = []
    for point in _random_points(names):
        try:
            ratio = evaluate(Node("quotient", (one, other)), point, True)
            is_same = not found or equal_values(found[0], ratio)
        except NoValueError:
            continue
        if not ratio[0] or not is_same:
            return None
        found.append(ratio)
    return found[0][0] if len(found) >= MIN_AGREEING else None
