"""Spellings of numbers, and the normalized form of an answer."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import is_number, parse_answer
from volley.rewards.math.verifier import equivalent


@given(st.fractions(max_denominator=10**9), st.fractions(max_denominator=10**9))
def test_rationals_are_compared_exactly(a: Fraction, b: Fraction) -> None:
    as_latex = f"\\frac{{{b.numerator}}}{{{b.denominator}}}"
    assert equivalent(str(a), as_latex) == (a == b)
    assert equivalent(as_latex, str(a)) == (a == b)
    assert equivalent(as_latex, str(b))


@given(
    st.integers(), st.sampled_from(["{}", "{:,}", "${:,}", "{}.0", "{:,} dollars", "\\text{{{}}}", "**{}**", "{}/1"])
)
def test_spellings_of_an_integer_are_equal(number: int, spelling: str) -> None:
    text = spelling.format(number)
    assert equivalent(str(number), text)
    assert not equivalent(str(number + 1), text)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        (" $ \\left( 1{,}000 \\right)$. ", "( 1,000 )"),
        (r"**\dfrac{1}{2}**", r"\frac{1}{2}"),
        (r"5\text{ cm}", "5 cm"),
        (r"2\cdot3\times4 \div 5", "2*3*4 / 5"),
        (r"50\% or 5 percent", "50% or 5 %"),
        ("x**2", "x^2"),
        ("a" * 300, ""),
    ],
)
def test_normalize(text: str, normalized: str) -> None:
    assert normalize(text) == normalized


@pytest.mark.parametrize(
    "text", ["1/0", "2^{9999}", "1 000", "1,2345", "12,34", "0x10", "1_000", "--", "", "²", "1e9999"]
)
def test_texts_that_are_not_exact_numbers(text: str) -> None:
    assert not is_number(normalize(text)) or not parse_answer(normalize(text)).is_readable
