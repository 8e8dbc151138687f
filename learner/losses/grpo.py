"""GRPO: the clipped objective with advantages relative to the group.

    J = 1/tokens sum_{i,t} [ min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i) - beta KL_it ]
    rho_it = pi(y_it) / mu(y_it),   A_i = (r_i - mean(r)) / (std(r) + 1e-4)

Objective: arXiv 2402.03300, equation 3; KL: equation 4; advantage: section 4.1.2. Departures from the paper: the mean
runs over all tokens of the global batch where equation 3 first takes the mean of each sequence (which favours long
wrong answers), and mu is what the rollout engine sampled from. Leaves out: process supervision, several epochs over
the same samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from learner.advantages import group_relative
from learner.losses.common import KL_ESTIMATORS, LossSum, MicroBatch, check_clip, clipped_policy_loss
from rollout.errors import ConfigError


@dataclass(frozen=True)
class Grpo:
    """clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]. beta: weight of the KL to the
    reference policy; 0 loads none. kl: its estimator, "k1", "k2" or "k3"."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    kl: str = "k3"

    signal: ClassVar[str] = "advantages"
    min_group_size: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)
        if not 0 <= self.beta < float("inf"):
            raise ConfigError(f"loss.beta is {self.beta}; it must be 0 (no reference policy) or more.")
        if self.kl not in KL_ESTIMATORS:
            raise ConfigError(f"loss.kl is '{self.kl}'; it must be one of {', '.join(KL_ESTIMATORS)}.")

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return group_relative(rewards_G)

    def normalizer(self, num_tokens: int, num_sequences: int) -> float:
        return num_tokens

    def loss_sum(self, micro: MicroBatch) -> LossSum:
        return clipped_policy_loss(micro, self.clip_low, self.clip_high, self.beta, self.kl)
