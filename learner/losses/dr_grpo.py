"""Dr. GRPO: GRPO without its two normalisations, by the group's spread and by the response's length.

    J = 1/(sequences max_tokens) sum_{i,t} min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)
    rho_it = pi(y_it) / mu(y_it),   A_i = r_i - mean(r)

arXiv 2503.20783, section 3.2. The divisor is a constant, the generation budget, so that a token weighs the same in a
short and in a long response. Leaves out: a KL term, which the paper drops too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from learner.advantages import mean_centred
from learner.losses.common import LossSum, MicroBatch, check_clip, clipped_policy_loss
from rollout.errors import ConfigError


@dataclass(frozen=True)
class DrGrpo:
    """clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]. max_tokens: the constant length of
    the divisor; 0 stands for rollout.max_tokens and must be replaced by it before the loss is used."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    max_tokens: int = 0

    signal: ClassVar[str] = "advantages"
    min_group_size: ClassVar[int] = 2
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)
        if self.max_tokens < 0:
            raise ConfigError(f"loss.max_tokens is {self.max_tokens}; it must be 0 (rollout.max_tokens) or more.")

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return mean_centred(rewards_G)

    def normalizer(self, num_tokens: int, num_sequences: int) -> float:
        assert self.max_tokens > 0, "loss.max_tokens was not filled in from rollout.max_tokens"
        return num_sequences * self.max_tokens

    def loss_sum(self, micro: MicroBatch) -> LossSum:
        return clipped_policy_loss(micro, self.clip_low, self.clip_high)
