"""RLOO: the baseline of a completion is the mean reward of the others in its group.

    J = 1/tokens sum_{i,t} min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)
    rho_it = pi(y_it) / mu(y_it),   A_i = r_i - 1/(G-1) sum_{j != i} r_j

Advantage: the RLOO estimator of arXiv 2402.14740. Departures from the paper, whose gradient is
1/G sum_i A_i grad log pi(y_i): the ratio and its clipping, which make stale samples usable (on fresh samples rho is 1
and the gradients agree), and the mean over the tokens of the global batch instead of over sequences. Leaves out: the
KL penalty that the paper puts into the reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from learner.advantages import leave_one_out
from learner.losses.common import LossSum, MicroBatch, check_clip, clipped_policy_loss


@dataclass(frozen=True)
class Rloo:
    """clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]."""

    clip_low: float = 0.2
    clip_high: float = 0.2

    signal: ClassVar[str] = "advantages"
    min_group_size: ClassVar[int] = 2
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return leave_one_out(rewards_G)

    def normalizer(self, num_tokens: int, num_sequences: int) -> float:
        return num_tokens

    def loss_sum(self, micro: MicroBatch) -> LossSum:
        return clipped_policy_loss(micro, self.clip_low, self.clip_high)
