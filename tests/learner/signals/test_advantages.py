"""Advantages against `statistics` and plain loops, and what holds for any rewards."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volley.learner.signals.advantages import group_relative, leave_one_out, mean_centred

ALL = [group_relative, mean_centred, leave_one_out]
REWARDS = st.lists(st.floats(-10, 10).map(lambda reward: round(reward, 3)), min_size=2, max_size=12)


@given(REWARDS)
def test_group_relative_is_the_formula(rewards):
    if max(rewards) == min(rewards):
        return
    mean, std = statistics.mean(rewards), statistics.stdev(rewards)
    expected = [(reward - mean) / (std + 1e-4) for reward in rewards]
    assert group_relative(rewards) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_group_relative_by_hand():
    # mean 1/4, sample variance (9/16 + 3/16) / 3 = 1/4, std 1/2
    assert group_relative([1.0, 0.0, 0.0, 0.0]) == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3, rel=1e-12)


@given(REWARDS)
def test_mean_centred_is_the_formula(rewards):
    mean = statistics.mean(rewards)
    assert mean_centred(rewards) == pytest.approx([reward - mean for reward in rewards], abs=1e-12)


@given(REWARDS)
def test_leave_one_out_is_the_formula(rewards):
    expected = []
    for i, reward in enumerate(rewards):
        others = rewards[:i] + rewards[i + 1 :]
        expected.append(reward - sum(others) / len(others))
    assert leave_one_out(rewards) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("advantages", ALL)
@pytest.mark.parametrize(
    "rewards",
    [
        [],
        [0.7],
        [0.0] * 8,
        [0.1 + 0.2, 0.3, 0.3],
        [1e6 / 3] * 7,
        [0.1 * 3 - 0.3, 0.0],
        [1.1 * 1.1, 1.21, 1.21],
    ],
)
def test_rewards_equal_up_to_float_noise_give_exactly_zero(advantages, rewards):
    assert advantages(rewards) == [0.0] * len(rewards)


@pytest.mark.parametrize("advantages", ALL)
@given(rewards=REWARDS, shift=st.floats(-5, 5))
def test_any_rewards(advantages, rewards, shift):
    values = advantages(rewards)
    assert len(values) == len(rewards)
    assert all(map(math.isfinite, values))
    assert math.fsum(values) == pytest.approx(0, abs=1e-6)
    ranked = sorted(zip(rewards, values, strict=True))
    assert [value for _, value in ranked] == sorted(values), "a higher reward must not give a lower advantage"
    shifted = advantages([reward + shift for reward in rewards])
    assert shifted == pytest.approx(values, rel=1e-6, abs=1e-6)
    assert advantages(rewards[::-1]) == pytest.approx(values[::-1], abs=1e-12)


@pytest.mark.parametrize("advantages", ALL)
def test_small_differences_still_count(advantages):
    low, high = advantages([0.0, 1e-3])
    assert low < 0 < high
