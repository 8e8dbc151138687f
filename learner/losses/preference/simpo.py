"""SimPO: mean log-probs instead of a reference, and a margin by which the chosen completion must win.

    L = -log sigmoid( beta [ log pi(y_w) / |y_w| - log pi(y_l) / |y_l| ] - gamma )

arXiv 2405.14734, equation 6. The length of a response is divided out, so longer ones have no advantage by themselves.
If the chosen responses are mostly the longer ones, the weights that the sigmoid gives to the pairs decide whether
answers stay short. A response that is long because it continues in predictable words already has a high log-prob per
token, so its pair gets little weight. This needs a beta that makes such differences large, and a gamma that is small
relative to it. Measured: shorter answers than DPO with beta 10 and gamma 1, equally long ones with 2 and 1
(benchmarks/RESULTS.md). The authors later recommend a beta of up to 10, and gamma / beta between 0 and 1.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import logsigmoid

from volley.learner.losses.common import LossSum, MicroBatch
from volley.learner.losses.guide import Guide
from volley.learner.losses.preference.pair_loss import PairLoss, PairSums, check_positive, pair_result
from volley.learner.signals.pairs import PairTensors
from volley.rollout.errors import ConfigError


@dataclass(frozen=True)
class SimPo(PairLoss):
    """The options of SimPO."""

    beta: float = 2.0
    """Scale of the mean log-probs."""
    gamma: float = 1.0
    """The margin; 0.5 to 2 in the paper."""

    guide: ClassVar[Guide] = Guide(
        "SimPO",
        merit="SimPO normalizes by length, so longer responses have no advantage; use it for concise responses "
        "(--concise)",
        options="beta: 10.0, gamma: 1.0",
        comment="gamma: target margin; keep it small relative to beta",
        gentler="lower learner.lr, steps or loss.gamma, or take orpo",
    )

    uses_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not 0 <= self.gamma < float("inf"):
            raise ConfigError(f"loss.gamma is {self.gamma}; it must be 0 or more.")

    def loss_sum(self, micro: MicroBatch[PairTensors]) -> LossSum:
        sums = PairSums.of(micro)
        chosen_P = self.beta * sums.chosen_P / sums.chosen_lengths_P.clamp(min=1)
        rejected_P = self.beta * sums.rejected_P / sums.rejected_lengths_P.clamp(min=1)
        return pair_result(-logsigmoid(chosen_P - rejected_P - self.gamma), chosen_P, rejected_P, sums)
