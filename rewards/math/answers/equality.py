"""Decides whether two parsed answers are the same.

Choices, times of day, numerals with a base, and words are compared directly, quantities by number and unit.
"""

from fractions import Fraction
from math import gcd

from volley.rewards.math.answers.answer import DEGREE, Answer
from volley.rewards.math.answers.unfinished import is_unfinished
from volley.rewards.math.answers.units import compatible_units, is_known_unit
from volley.rewards.math.expressions import compare
from volley.rewards.math.expressions.limits import StepLimitError, step_limit
from volley.rewards.math.expressions.tree import Node, number, symbols


def equal_answers(gold: Answer, given: Answer, tolerance: Fraction = Fraction(0)) -> bool:
    """Return whether a given answer equals the gold answer.

    False if the comparison takes more steps than any real answer needs. Raises TimeLimitError within `time_limit`.
    """
    try:
        with step_limit():
            return _equal_answers(gold, given, tolerance)
    except StepLimitError:
        return False


def _equal_answers(gold: Answer, given: Answer, tolerance: Fraction) -> bool:
    if gold.choice and given.choice:
        return gold.choice == given.choice and (not (gold.words and given.words) or _equal_choice_contents(gold, given))
    if gold.clock and given.clock and (gold.clock[1] or given.clock[1] or not _is_ratio(gold)):
        return _equal_times(gold.clock, given.clock)
    if gold.base or given.base:
        return _equal_numerals(gold, given)
    if (gold.words.strip() or given.words.strip()) and (gold.words == given.words or not (gold.tree and given.tree)):
        return gold.words == given.words
    if gold.tree is None or given.tree is None or not compatible_units(gold.unit, given.unit):
        return False
    return _equal_quantities(gold, given, tolerance)


def quick_equal_answers(gold: Answer, given: Answer, tolerance: Fraction = Fraction(0)) -> bool | None:
    """Return `equal_answers` if that takes microseconds; None if formulas must be evaluated.

    Identical formulas give True without a check that the gold formula has a value. The caller must check that.
    """
    one, other = gold.tree, given.tree
    if one is None or other is None:
        return equal_answers(gold, given, tolerance)
    if gold == given and gold.is_formula:
        return True
    is_words = gold.words and given.words and not (gold.choice or given.choice)
    if is_words and (gold.words == given.words or (_is_letters(one) and _is_letters(other))):
        return equal_answers(gold, given, tolerance)
    plain = compare.is_rational(one), compare.is_rational(other)
    is_lettered = gold.choice and given.choice and not (gold.words and given.words)
    if all(plain) or is_lettered:
        return equal_answers(gold, given, tolerance)
    if gold.choice and given.choice:
        return None
    if any(plain) and "relation" not in (one.op, other.op):
        numbers, formula = (one, other) if plain[0] else (other, one)
        if numbers.op not in ("list", "set", "tuple") and formula.op not in ("list", "set") and symbols(formula):
            return False if plain[0] else None
    return None


def _is_letters(node: Node) -> bool:
    """Return whether a formula is a product of letters, so that it may be a word."""
    return node.op in ("symbol", "constant") or (node.op == "product" and all(map(_is_letters, node.parts)))


def _equal_choice_contents(gold: Answer, given: Answer) -> bool:
    """Compare what two choices with the same letter say."""
    if gold.tree and given.tree:
        return compare.equal(gold.tree, given.tree)
    return gold.words == given.words


def _is_ratio(gold: Answer) -> bool:
    """Return whether a time such as 5:12 may also be a ratio: ratios are given in lowest terms."""
    parts = gold.tree.parts if gold.tree and gold.tree.op == "ratio" else ()
    return len(parts) == 2 and gcd(*(int(part.number) for part in parts)) == 1


def _equal_times(gold: tuple[int, str], given: tuple[int, str]) -> bool:
    """Compare two times of day (see `Answer.clock`). An unknown half of the day may be either."""
    if gold[1] and given[1]:
        return gold[0] == given[0]
    if "24" in (gold[1], given[1]):
        return gold[0] == given[0]
    return gold[0] % 720 == given[0] % 720


def _equal_numerals(gold: Answer, given: Answer) -> bool:
    """Compare digits and base. One of the two answers may leave out its base, like a unit.

    The same value in another base is wrong, because the conversion is part of the task.
    """
    if gold.base and given.base:
        return (gold.digits, gold.base) == (given.digits, given.base)
    numeral, other = (gold, given) if gold.base else (given, gold)
    return other.tree is not None and other.tree.op == "number" and str(other.tree.number) == numeral.digits


def _equal_quantities(gold: Answer, given: Answer, tolerance: Fraction) -> bool:
    """Compare two formulas with compatible units. An unfinished calculation is not equal to its result."""
    assert gold.tree is not None
    assert given.tree is not None
    is_equal = _equal_with_percent_and_degrees(gold, given, tolerance)
    return is_equal and (given.tree.op == "number" or not is_unfinished(gold.tree, given.tree))


def _equal_with_percent_and_degrees(gold: Answer, given: Answer, tolerance: Fraction) -> bool:
    """Compare two formulas, also as a percentage against a plain number and as degrees against radians."""
    one, other = gold.tree, given.tree
    assert one is not None
    assert other is not None
    percentage, plain = (gold, given) if gold.is_percent else (given, gold)
    if gold.is_percent != given.is_percent and is_known_unit(plain.unit):
        return False
    if compare.equal(one, other, tolerance):
        return True
    if gold.is_percent != given.is_percent:
        # 50 % equals both 50 (without the sign) and 0.5 (its value).
        if plain.unit or percentage.tree is None:
            return False
        value = Node("quotient", (percentage.tree, number(100)))
        return compare.equal(value, other, tolerance) if percentage is gold else compare.equal(one, value, tolerance)
    if (gold.unit == DEGREE) != (given.unit == DEGREE) and not (gold.unit and given.unit):
        # An angle in degrees also equals its value in radians.
        one, other = (Node("degrees", (each.tree,)) if each.unit else each.tree for each in (gold, given) if each.tree)
        return compare.equal(one, other, tolerance)
    return False
