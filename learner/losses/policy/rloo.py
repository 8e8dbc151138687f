"""RLOO: the baseline of a completion is the mean reward of the others in its group.

    J = 1/tokens sum_{i,t} min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)
    rho_it = pi(y_it) / mu(y_it),   A_i = r_i - 1/(G-1) sum_{j != i} r_j

Advantage: the RLOO estimator of arXiv 2402.14740. Departures from the paper, whose gradient is
1/G sum_i A_i grad log pi(y_i): the ratio and its clipping, which make stale samples usable (on fresh samples rho is 1
and the gradients are equal), and the mean over the tokens of the global batch instead of over sequences. The paper puts
its KL penalty into the reward; here it is the loss's, off by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.guide import Guide
from volley.learner.losses.policy.clipped import ClippedLoss
from volley.learner.signals.advantages import leave_one_out


@dataclass(frozen=True)
class Rloo(ClippedLoss):
    """The options of RLOO are those of `ClippedLoss`."""

    guide: ClassVar[Guide] = Guide("RLOO")

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return leave_one_out(rewards_G)
