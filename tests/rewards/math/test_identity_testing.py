"""Equality by evaluation, tested on formulas that sympy has rewritten."""

import random
from typing import Any

import sympy

from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import parse_answer
from volley.rewards.math.verifier import equivalent

NUM_FORMULAS = 150
X, Y, A = sympy.symbols("x y a")


def random_formula(rng: random.Random, depth: int) -> Any:
    if depth == 0:
        number = sympy.Rational(rng.randrange(1, 9), rng.randrange(1, 9))
        return rng.choice([X, Y, A, number, sympy.pi, sympy.E, sympy.sqrt(rng.choice([2, 3, 5]))])
    one, other = random_formula(rng, depth - 1), random_formula(rng, depth - 1)
    return rng.choice(
        [
            one + other,
            one - other,
            one * other,
            one / (other + 2),
            one ** rng.choice([2, 3, -1]),
            rng.choice([sympy.sin, sympy.cos, sympy.tan, sympy.exp])(one),
            sympy.sqrt(one**2 + 1),
            sympy.log(one**2 + 2),
        ]
    )


def test_rewritten_formulas_are_equal_and_shifted_ones_are_not() -> None:
    rng, num_compared = random.Random(5), 0
    for _ in range(NUM_FORMULAS):
        one = random_formula(rng, rng.choice([1, 2, 2]))
        if one.has(sympy.zoo, sympy.nan, sympy.oo):
            continue
        for rewritten in (sympy.expand(one), sympy.factor(one), sympy.together(one), sympy.expand(one, trig=True)):
            given, shifted = sympy.latex(rewritten), sympy.latex(rewritten + sympy.Rational(1, 97))
            gold = sympy.latex(one)
            if max(len(gold), len(given), len(shifted)) > 250:
                continue
            assert parse_answer(normalize(given)).is_readable, given
            assert equivalent(gold, given), (gold, given)
            assert not equivalent(gold, shifted), (gold, shifted)
            num_compared += 1
    assert num_compared > 3 * NUM_FORMULAS
