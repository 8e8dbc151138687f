"""Rewards to advantages: plain Python floats, no tensors. Of one group, [G] -> [G]; with a critic, of one completion's
tokens (`gae`).

Rewards that are equal up to float noise (weighted sums of the same terms may differ in their last bits) give exactly
0.0 in every function of groups here, and so does a group of one: neither says which completion was better.
"""

import math
from collections.abc import Sequence

_FLOAT_NOISE = 1e-9
_STD_EPSILON = 1e-4
_BATCH_EPSILON = 1e-8


def group_relative(rewards_G: Sequence[float]) -> list[float]:
    """(r_i - mean) / (std + 1e-4): GRPO, arXiv 2402.03300, section 4.1.2 (outcome supervision).

    std is the sample standard deviation (divisor G - 1), as in the implementations that people compare with; the
    paper does not say which one it means. The 1e-4 is not in the paper; it bounds what a tiny spread is blown up to.
    """
    if _all_equal(rewards_G):
        return [0.0] * len(rewards_G)
    centred = mean_centred(rewards_G)
    std = math.sqrt(math.fsum(difference**2 for difference in centred) / (len(centred) - 1))
    return [difference / (std + _STD_EPSILON) for difference in centred]


def mean_centred(rewards_G: Sequence[float]) -> list[float]:
    """r_i - mean: Dr. GRPO, arXiv 2503.20783, section 3.2."""
    if _all_equal(rewards_G):
        return [0.0] * len(rewards_G)
    mean = math.fsum(rewards_G) / len(rewards_G)
    return [reward - mean for reward in rewards_G]


def leave_one_out(rewards_G: Sequence[float]) -> list[float]:
    """r_i - mean of the other G - 1 rewards: the RLOO estimator of arXiv 2402.14740 (after Kool et al., 2019)."""
    if _all_equal(rewards_G):
        return [0.0] * len(rewards_G)
    total = math.fsum(rewards_G)
    return [reward - (total - reward) / (len(rewards_G) - 1) for reward in rewards_G]


def scaled_by_spread(advantages: Sequence[float]) -> list[float]:
    """a / (std + 1e-8) over a whole batch of centred advantages: REINFORCE++, arXiv 2501.03262. std as above, around 0,
    the mean of centred groups; exact zeros stay zeros."""
    if len(advantages) < 2:
        return list(advantages)
    std = math.sqrt(math.fsum(advantage**2 for advantage in advantages) / (len(advantages) - 1))
    return [advantage / (std + _BATCH_EPSILON) for advantage in advantages]


def gae(reward: float, values_T: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Generalized advantage estimation of one completion's tokens, [T] -> [T]: arXiv 1506.02438, equation 16,

        A_t = sum_{l >= 0} (gamma lam)^l delta_{t+l},   delta_t = r_t + gamma V_{t+1} - V_t

    with r_t = 0 but for the last token's, `reward`, and a value of 0 after it. values_T: of the states that the tokens
    were chosen in. Computed from the end as A_t = delta_t + gamma lam A_{t+1}.
    """
    advantages, following, value_after = [0.0] * len(values_T), 0.0, 0.0
    for t in range(len(values_T) - 1, -1, -1):
        delta = (reward if t == len(values_T) - 1 else 0.0) + gamma * value_after - values_T[t]
        advantages[t] = following = delta + gamma * lam * following
        value_after = values_T[t]
    return advantages


def whitened(advantages: Sequence[Sequence[float]]) -> list[list[float]]:
    """(a - mean) / (std + 1e-8) over the tokens of a whole batch, [N][T]; std is the sample standard deviation. Fewer
    than two tokens stay as they are."""
    flat = [value for row in advantages for value in row]
    if len(flat) < 2:
        return [list(row) for row in advantages]
    mean = math.fsum(flat) / len(flat)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in flat) / (len(flat) - 1))
    return [[(value - mean) / (std + _BATCH_EPSILON) for value in row] for row in advantages]


def _all_equal(rewards: Sequence[float]) -> bool:
    if len(rewards) < 2:
        return True
    low, high = min(rewards), max(rewards)
    return high - low <= _FLOAT_NOISE * max(1.0, abs(low), abs(high))
