"""Rewards of a group become one advantage per completion: what policy-gradient losses without a critic learn from.

The formulas work on plain Python floats, [G] -> [G]. Rewards that are equal up to float noise (weighted sums of the
same terms may differ in their last bits) give exactly 0.0 in each of them, and so does a group of one: neither says
which completion was better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from volley.learner.config import SignalConfig
from volley.learner.signals.batch import Batch, Drawn, MicroBatchPart, ReadySignal, SignalTensors, scored
from volley.learner.signals.kl import kl_estimate
from volley.learner.signals.rows import ArrayFields, Indices
from volley.rollout.types import ScoredGroup

_FLOAT_NOISE = 1e-9
_STD_EPSILON = 1e-4
_BATCH_EPSILON = 1e-8


class AdvantageLoss(Protocol):
    """A loss that reads advantages."""

    @property
    def whitens(self) -> bool:
        """Whether advantages are divided by their spread over the whole batch."""
        ...

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        """One group's rewards to its advantages, [G] -> [G]."""
        ...


@dataclass(frozen=True, slots=True)
class SampledTensors(SignalTensors):
    """What losses over the policy's own samples read."""

    behaviour_NT: Tensor
    """Log-probs of the distribution that sampled, in nats."""
    advantages_NT: Tensor
    """[N, T], or [N, 1] where all tokens of a completion have the same."""

    def metrics(self, logprobs_NT: Tensor, mask_NT: Tensor, fresh_N: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """kl_behaviour: k3 estimate of KL(behaviour || policy). logprob_mismatch: |difference| of log-probs, on fresh
        samples only, where it is numerical noise."""
        kl_NT = kl_estimate("k3", self.behaviour_NT, logprobs_NT) * mask_NT
        metrics = {"kl_behaviour": (kl_NT.sum(), mask_NT.sum())}
        fresh_NT = mask_NT * fresh_N[:, None]
        if fresh_NT.any():
            gap_NT = (logprobs_NT - self.behaviour_NT).abs() * fresh_NT
            metrics["logprob_mismatch_mean"] = (gap_NT.sum(), fresh_NT.sum())
            metrics["logprob_mismatch_max"] = (gap_NT.amax(), fresh_NT.new_ones(()))
        return metrics


@dataclass(frozen=True, slots=True, eq=False)
class Advantages(ArrayFields, ReadySignal):
    """One advantage per completion."""

    label: ClassVar[str] = "advantages"
    from_policy: ClassVar[bool] = True

    values: NDArray[np.float64]
    """[N]"""

    @classmethod
    def make_batch(cls, drawn: Drawn, loss: AdvantageLoss) -> Batch:
        rows, _ = scored(drawn.groups, drawn.version)
        values: list[float] = []
        for group in drawn.groups:
            values += loss.advantages([reward for reward in group.rewards if not math.isnan(reward)])
        return Batch(rows, cls(np.array(scaled_by_spread(values) if loss.whitens else values, dtype=np.float64)))

    @classmethod
    def reason_against(cls, group: ScoredGroup, config: SignalConfig) -> str:
        if group.has_signal:
            return ""
        return "tied" if sum(not math.isnan(reward) for reward in group.rewards) > 1 else "unscorable"

    def take(self, completions: Indices) -> "Advantages":
        return Advantages(self.values[completions])

    def idle(self) -> NDArray[np.bool_]:
        """A policy loss is proportional to the advantage, and groups whose rewards are all equal have exactly 0."""
        return self.values == 0.0

    def tensors(self, part: MicroBatchPart) -> SampledTensors:
        return SampledTensors(part.behaviour_NT, part.tensor(self.values[part.completions])[:, None])


def group_relative(rewards_G: Sequence[float]) -> list[float]:
    """(r_i - mean) / (std + 1e-4): GRPO, arXiv 2402.03300, section 4.1.2 (outcome supervision).

    std is the sample standard deviation (divisor G - 1), as in the implementations that people compare with; the
    paper does not say which one it means. The 1e-4 is not in the paper; it limits how much a tiny spread is amplified.
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
    """a / (std + 1e-8) over a whole batch of centred advantages: REINFORCE++, arXiv 2501.03262. std is the sample
    standard deviation around 0, the mean of centred groups. Exact zeros stay zeros."""
    if len(advantages) < 2:
        return list(advantages)
    std = math.sqrt(math.fsum(advantage**2 for advantage in advantages) / (len(advantages) - 1))
    return [advantage / (std + _BATCH_EPSILON) for advantage in advantages]


def _all_equal(rewards: Sequence[float]) -> bool:
    if len(rewards) < 2:
        return True
    low, high = min(rewards), max(rewards)
    return high - low <= _FLOAT_NOISE * max(1.0, abs(low), abs(high))
