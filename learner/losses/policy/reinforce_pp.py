"""REINFORCE++ with baseline: rewards centred in the group, scaled by their standard deviation over the whole batch.

    J = 1/tokens sum_{i,t} min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)
    rho_it = pi(y_it) / mu(y_it),   A_i = (r_i - mean(r)) / (std over the batch of (r - mean(r)) + 1e-8)

arXiv 2501.03262, the variant with a group baseline. Unlike GRPO's division by the group's standard deviation, it does
not amplify a group in which nearly all rewards agree. The batch's mean is not subtracted again, because centred groups
have a mean of 0. The paper's KL term is the estimator k2; here it is `kl: k2` with `beta`, off by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.guide import Guide
from volley.learner.losses.policy.clipped import ClippedLoss
from volley.learner.signals.advantages import mean_centred


@dataclass(frozen=True)
class ReinforcePP(ClippedLoss):
    """The options of REINFORCE++ are those of `ClippedLoss`."""

    kl: str = "k2"

    guide: ClassVar[Guide] = Guide("REINFORCE++")
    whitens: ClassVar[bool] = True

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return mean_centred(rewards_G)
