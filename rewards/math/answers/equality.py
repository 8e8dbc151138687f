"""Whether two answers are the same: choices, times, numerals and words by themselves, quantities by number and unit."""

from fractions import Fraction
from math import gcd

from volley.rewards.math.answers.answer import DEGREE, Answer
from volley.rewards.math.answers.unfinished import is_unfinished
from volley.rewards.math.answers.units import compatible_units, is_known_unit
from volley.rewards.math.expressions import compare
from volley.rewards.math.expressions.limits import StepLimitError, step_limit
from volley.rewards.math.expressions.tree import Node, number, symbols


def equal_answers(gold: Answer, given: Answer, tolerance: Fraction = Fraction(0)) -> bool:
    """Whether two answers are the same; the gold one is the first. What takes more work than any real answer is not.
    Raises TimeLimitError within `time_limit`."""
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
    """`same` where it takes microseconds, None where formulas must be evaluated. True for equal formulas supposes
    that the gold one has a value."""
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
    return node.op in ("symbol", "constant") or (node.op == "product" and all(map(_is_letters, node.parts)))


def _equal_choice_contents(gold: Answer, given: Answer) -> bool:
    if gold.tree and given.tree:
        return compare.equal(gold.tree, given.tree)
    return gold.words == given.words


def _is_ratio(gold: Answer) -> bool:
    """Whether something like 5:12 may be a ratio: it is in lowest terms."""
    parts = gold.tree.parts if gold.tree and gold.tree.op == "ratio" else ()
    return len(parts) == 2 and gcd(*(int(part.number) for part in parts)) == 1


def _equal_times(gold: tuple[int, str], given: tuple[int, str]) -> bool:
    if gold[1] and given[1]:
        return gold[0] == given[0]
    is_full = (gold[1] and given[1]) or "24" in (gold[1], given[1])
    return gold[0] == given[0] if is_full else gold[0] % 720 == given[0] % 720


def _equal_numerals(gold: Answer, given: Answer) -> bool:
    """The same digits in the same base, which may be left unsaid as a unit may; to give the value in another base is
    what the task asked for, so it is not the answer."""
    if gold.base and given.base:
        return (gold.digits, gold.base) == (given.digits, given.base)
    numeral, other = (gold, given) if gold.base else (given, gold)
    return other.tree is not None and other.tree.op == "number" and str(other.tree.number) == numeral.digits


def _equal_quantities(gold: Answer, given: Answer, tolerance: Fraction) -> bool:
    assert gold.tree is not None
    assert given.tree is not None
    is_equal = _equal_numbers_and_units(gold, given, tolerance)
    return is_equal and (given.tree.op == "number" or not is_unfinished(gold.tree, given.tree))


def _equal_numbers_and_units(gold: Answer, given: Answer, tolerance: Fraction) -> bool:
    one, other = gold.tree, given.tree
    assert one is not None
    assert other is not None
    share, plain = (gold, given) if gold.is_percent else (given, gold)
    if gold.is_percent != given.is_percent and is_known_unit(plain.unit):
        return False
    if compare.equal(one, other, tolerance):
        return True
    if gold.is_percent != given.is_percent:
        # 50 % is both 50, where the sign was left out, and its value 0.5.
        if plain.unit or share.tree is None:
            return False
        value = Node("quotient", (share.tree, number(100)))
        return compare.equal(value, other, tolerance) if share is gold else compare.equal(one, value, tolerance)
    if (gold.unit == DEGREE) != (given.unit == DEGREE) and not (gold.unit and given.unit):
        # An angle in radians, if the other is no plain number.
        one, other = (Node("degrees", (each.tree,)) if each.unit else each.tree for each in (gold, given) if each.tree)
        return compare.equal(one, other, tolerance)
    return False
