"""SimPO: mean log-probs instead of a reference, and a margin that the chosen must win by.

    L = -log sigmoid( beta [ log pi(y_w) / |y_w| - log pi(y_l) / |y_l| ] - gamma )

arXiv 2405.14734, equation 6. Because a response's length is divided out, longer ones have no advantage as such, and the
field takes it for concise answers; on pairs whose chosen side is mostly the longer one, ours were no shorter than DPO's
(benchmarks/RESULTS.md).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import logsigmoid

from learner.losses.common import LossSum, MicroBatch
from learner.losses.preference import PairLoss, PairSums, check_positive, pair_result
from rollout.errors import ConfigError


@dataclass(frozen=True)
class SimPo(PairLoss):
    """beta: scale of the mean log-probs. gamma: the margin, 0.5 to 2 in the paper."""

    beta: float = 2.0
    gamma: float = 1.0

    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not 0 <= self.gamma < float("inf"):
            raise ConfigError(f"loss.gamma is {self.gamma}; it must be 0 or more.")

    def loss_sum(self, micro: MicroBatch) -> LossSum:
        sums = PairSums.of(micro)
        chosen_P = self.beta * sums.chosen_P / sums.chosen_lengths_P.clamp(min=1)
        rejected_P = self.beta * sums.rejected_P / sums.rejected_lengths_P.clamp(min=1)
        return pair_result(-logsigmoid(chosen_P - rejected_P - self.gamma), chosen_P, rejected_P, sums)
