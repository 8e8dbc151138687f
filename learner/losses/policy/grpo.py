"""GRPO: the clipped objective with advantages relative to the group.

    J = 1/tokens sum_{i,t} [ min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i) - beta KL_it ]
    rho_it = pi(y_it) / mu(y_it),   A_i = (r_i - mean(r)) / (std(r) + 1e-4)

Objective: arXiv 2402.03300, equation 3; KL: equation 4; advantage: section 4.1.2. Departures from the paper: the mean
runs over all tokens of the global batch where equation 3 first takes the mean of each sequence (which favours long
wrong answers), and mu is the distribution that the rollout engine sampled from. Not included: process supervision,
several epochs over the same samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.guide import Guide
from volley.learner.losses.policy.clipped import ClippedLoss
from volley.learner.signals.advantages import group_relative


@dataclass(frozen=True)
class Grpo(ClippedLoss):
    """The options of GRPO are those of `ClippedLoss`."""

    guide: ClassVar[Guide] = Guide("GRPO", options="clip_low: 0.2, clip_high: 0.28")

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return group_relative(rewards_G)
