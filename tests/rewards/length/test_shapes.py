"""Length rewards against second derivations: another trigonometric form, exact fractions, and marked words."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volley.rewards.length.shapes import band, cosine, quick_cosine, repetition


@given(st.integers(0, 99), st.booleans())
def test_cosine_is_a_squared_half_angle(num_tokens: int, is_correct: bool) -> None:
    start, end = (1.0, 0.5) if is_correct else (-1.0, 0.0)
    squared = math.cos(math.pi * num_tokens / 200) ** 2
    value = cosine("", r"\boxed{5}", "5" if is_correct else "6", num_tokens=num_tokens, max_tokens=100)
    assert value == pytest.approx(start * squared + end * (1 - squared))


def test_cosine_at_its_limit_and_in_the_paper_s_range() -> None:
    assert cosine("", r"\boxed{5}", "5", num_tokens=100, max_tokens=100) == -1.0
    assert cosine("", r"\boxed{5}", "5", num_tokens=0, max_tokens=100, correct_short=2.0) == 2.0
    assert cosine("", r"\boxed{6}", "5", num_tokens=50, max_tokens=100, wrong_short=-10.0) == pytest.approx(-5.0)
    with pytest.raises(ValueError, match="max_tokens"):
        cosine("", "", "5", num_tokens=1, max_tokens=0)


@pytest.mark.parametrize("judge", [cosine, quick_cosine])
def test_cosine_judges_with_the_row_s_tolerance(judge) -> None:
    near, far = r"\boxed{18.05}", r"\boxed{18.15}"
    assert judge("", near, "18", num_tokens=50, max_tokens=100, tolerance=0.1) == pytest.approx(0.75)
    assert judge("", far, "18", num_tokens=50, max_tokens=100, tolerance=0.1) == pytest.approx(-0.5)
    assert judge("", near, "18", num_tokens=50, max_tokens=100) == pytest.approx(-0.5)


def test_cosine_of_what_takes_long_is_left_to_a_child() -> None:
    assert quick_cosine("", r"\boxed{5}", "5", num_tokens=7, max_tokens=9) == cosine(
        "", r"\boxed{5}", "5", num_tokens=7, max_tokens=9
    )
    assert quick_cosine("", r"\boxed{(x+1)^2}", "x^2+2x+1", num_tokens=7, max_tokens=9) is None


@given(st.integers(0, 400), st.integers(0, 100), st.integers(0, 100), st.integers(0, 60))
def test_band_case_by_case(num_tokens: int, low: int, width: int, shoulder: int) -> None:
    high = low + width
    if low <= num_tokens <= high:
        expected = Fraction(1)
    elif low - shoulder < num_tokens < low:
        expected = Fraction(num_tokens - (low - shoulder), shoulder)
    elif high < num_tokens < high + shoulder:
        expected = Fraction(high + shoulder - num_tokens, shoulder)
    else:
        expected = Fraction(0)
    value = band("", "", "", num_tokens=num_tokens, low=low, high=high, shoulder=shoulder)
    assert value == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(("low", "high", "shoulder"), [(5, 4, 1), (-1, 4, 1), (1, 4, -1)])
def test_no_band(low: int, high: int, shoulder: int) -> None:
    with pytest.raises(ValueError, match="do not define a band"):
        band("", "", "", num_tokens=1, low=low, high=high, shoulder=shoulder)


@given(st.lists(st.sampled_from("ab"), max_size=40), st.integers(1, 6))
def test_repetition_marks_words(words: list[str], ngram: int) -> None:
    marked = {
        later + offset
        for later in range(len(words) - ngram + 1)
        for earlier in range(later)
        if words[earlier : earlier + ngram] == words[later : later + ngram]
        for offset in range(ngram)
    }
    expected = -len(marked) / len(words) if words else 0.0
    assert repetition("", " ".join(words), "", ngram=ngram) == pytest.approx(expected)


def test_repetition_needs_a_size() -> None:
    with pytest.raises(ValueError, match="ngram"):
        repetition("", "a", "", ngram=0)
