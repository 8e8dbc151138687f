"""Properties of every built-in reward. A new entry of the registry is tested without writing a test."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Unscorable
from volley.rewards.rubric.registry import BUILT_IN
from volley.rewards.rubric.rubric import Rubric
from volley.rewards.rubric.signature import bind

OPTIONS: dict[str, dict[str, Any]] = {
    "length": {"max_tokens": 100, "cache_tokens": 20},
    "length_cosine": {"max_tokens": 100},
}
TEXT = st.one_of(
    st.text(max_size=300),
    st.builds("<think>{}</think>{}".format, st.text(max_size=50), st.text(max_size=50)),
    st.builds("The answer is {}".format, st.text(max_size=30)),
    st.builds("\\boxed{{{}}}".format, st.text(alphabet="0123456789+-/.,x ", max_size=12)),
)
ANSWER = st.one_of(st.integers().map(str), st.text(max_size=30), st.just(r"\sqrt{2}"))
ITEM = st.builds(
    Item, TEXT, TEXT, ANSWER, st.integers(0, 200), st.booleans(), st.dictionaries(st.text(max_size=5), st.none())
)
LARGE = [
    "(" * 200_000,
    "<answer>" * 50_000,
    "\\boxed{" * 30_000,
    "answer is " * 20_000,
    "\n" * 10**6,
    "1" * 10**6,
    "\\boxed{1}" + " " * 16_000 + "\\boxed{2}",
]


def rubric_of(name: str) -> Rubric:
    rubric = Rubric([RewardConfig(name, options=OPTIONS.get(name, {}))])
    rubric.load()
    return rubric


@pytest.fixture(params=BUILT_IN, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@settings(max_examples=200, deadline=2000)
@given(item=ITEM)
def test_pure_bounded_and_never_raises(name: str, item: Item) -> None:
    function = bind(BUILT_IN[name].reward, OPTIONS.get(name, {}))
    try:
        value = function(item)
    except Unscorable:
        return
    assert type(value) is float
    assert -1.0 <= value <= 1.0
    assert function(item) == value


@settings(max_examples=200, deadline=2000)
@given(item=ITEM)
def test_the_quick_variant_gives_the_same_value(name: str, item: Item) -> None:
    rubric = rubric_of(name)
    (quick,) = rubric.compute_quick(item)
    if quick is None:
        assert not BUILT_IN[name].always_quick
        return
    full = rubric.compute(0, item)
    assert (quick.error, math.isnan(quick.value)) == (full.error, math.isnan(full.value))
    assert math.isnan(full.value) or quick.value == full.value


@pytest.mark.parametrize("text", LARGE, ids=lambda text: text[:8])
def test_large_texts_are_quick(name: str, text: str) -> None:
    rubric = rubric_of(name)
    for item in (Item(text, text, "18", 7, False, {}), Item("", "18", text, 7, False, {})):
        (outcome,) = rubric.compute_quick(item)
        assert outcome is not None
