"""DAPO: GRPO's objective with more room upwards (clip-higher), a mean over tokens, and no KL term.

    J = 1/tokens sum_{i,t} min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)
    rho_it = pi(y_it) / mu(y_it),   A_i = (r_i - mean(r)) / (std(r) + 1e-4)

arXiv 2503.14476, equations 8 and 9; the clipping range is that of section 4.1. Here `tokens` are those of the global
batch, not of one group. Leaves out what is not a matter of the loss: dynamic sampling (`rollout.max_replacements`)
and the soft overlong penalty (a reward).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from learner.advantages import group_relative
from learner.losses.common import LossSum, MicroBatch, check_clip, clipped_policy_loss


@dataclass(frozen=True)
class Dapo:
    """clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]."""

    clip_low: float = 0.2
    clip_high: float = 0.28

    signal: ClassVar[str] = "advantages"
    min_group_size: ClassVar[int] = 2
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return group_relative(rewards_G)

    def normalizer(self, num_tokens: int, num_sequences: int) -> float:
        return num_tokens

    def loss_sum(self, micro: MicroBatch) -> LossSum:
        return clipped_policy_loss(micro, self.clip_low, self.clip_high)
