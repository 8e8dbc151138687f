"""The soft overlong penalty against equation 13 of the paper, case by case."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volley.rewards.length.overlong import reward


def equation_13(length: int, longest: int, cache: int) -> Fraction:
    if length <= longest - cache:
        return Fraction(0)
    if length <= longest:
        return Fraction(longest - cache - length, cache)
    return Fraction(-1)


@given(st.integers(0, 5000), st.integers(1, 4000), st.data())
def test_matches_the_equation(num_tokens: int, max_tokens: int, data: st.DataObject) -> None:
    cache = data.draw(st.integers(1, max_tokens))
    value = reward("", "", "", num_tokens=num_tokens, max_tokens=max_tokens, cache_tokens=cache)
    assert value == pytest.approx(float(equation_13(num_tokens, max_tokens, cache)), abs=1e-12)


def test_the_paper_s_numbers() -> None:
    values = [reward("", "", "", num_tokens=n, max_tokens=20_480) for n in (16_384, 18_432, 20_480, 30_000)]
    assert values == [0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize(("max_tokens", "cache_tokens"), [(0, 0), (-5, 0), (10, 11), (10, -1)])
def test_impossible_limits_are_refused(max_tokens: int, cache_tokens: int) -> None:
    with pytest.raises(ValueError, match="cache_tokens"):
        reward("", "", "", num_tokens=3, max_tokens=max_tokens, cache_tokens=cache_tokens)
