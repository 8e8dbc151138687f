"""Dr. GRPO: GRPO without its two normalisations, by the group's standard deviation and by the response's length.

    J = 1/(sequences max_tokens) sum_{i,t} min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)
    rho_it = pi(y_it) / mu(y_it),   A_i = r_i - mean(r)

arXiv 2503.20783, section 3.2. The divisor is a constant, the generation budget, so that a token weighs the same in a
short and in a long response. The paper drops the KL term; here it is off by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.guide import Guide
from volley.learner.losses.policy.clipped import ClippedLoss
from volley.learner.signals.advantages import mean_centred
from volley.rollout.errors import ConfigError


@dataclass(frozen=True)
class DrGrpo(ClippedLoss):
    """The options of Dr. GRPO are those of `ClippedLoss` and one more."""

    max_tokens: int = 0
    """The constant length in the divisor. 0 means rollout.max_tokens, and must be replaced by it before the loss is
    used."""

    guide: ClassVar[Guide] = Guide("Dr. GRPO")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 0:
            raise ConfigError(f"loss.max_tokens is {self.max_tokens}; it must be 0 (rollout.max_tokens) or more.")

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return mean_centred(rewards_G)

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        assert self.max_tokens > 0, "loss.max_tokens was not filled in from rollout.max_tokens"
        return num_sequences * self.max_tokens
