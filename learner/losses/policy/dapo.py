"""DAPO: GRPO's objective with a higher upper clipping bound (clip-higher), a mean over tokens, and no KL term.

    J = 1/tokens sum_{i,t} min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)
    rho_it = pi(y_it) / mu(y_it),   A_i = (r_i - mean(r)) / (std(r) + 1e-4)

arXiv 2503.14476, equations 8 and 9; the clipping range is that of section 4.1. Here `tokens` are those of the global
batch, not of one group. Not included, because they are not part of the loss: dynamic sampling
(`rollout.max_replacements`) and the soft overlong penalty (a reward).
"""

from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.guide import Guide
from volley.learner.losses.policy.grpo import Grpo


@dataclass(frozen=True)
class Dapo(Grpo):
    """The options of DAPO are those of `ClippedLoss`."""

    clip_high: float = 0.28

    guide: ClassVar[Guide] = Guide("DAPO")
