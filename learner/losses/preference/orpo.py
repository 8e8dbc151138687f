"""ORPO: imitate the chosen completion and raise its odds above those of the rejected one, without a reference.

    L = -1/|y_w| log pi(y_w) - odds_weight log sigmoid( log odds(y_w) - log odds(y_l) )
    odds(y) = p / (1 - p),   p = exp( 1/|y| log pi(y) )

arXiv 2403.07691, equations 3, 4, 6 and 7; odds_weight is its lambda. The first term is a mean over the tokens of
each chosen response, then over pairs. log p is limited to -1e-6, because the odds are infinite at p = 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from volley.learner.losses.common import LossSum, MicroBatch
from volley.learner.losses.guide import Guide
from volley.learner.losses.preference.pair_loss import PairLoss, PairSums, check_positive, pair_result
from volley.learner.signals.pairs import PairTensors

LARGEST_MEAN_LOGPROB = -1e-6


@dataclass(frozen=True)
class Orpo(PairLoss):
    """The options of ORPO."""

    odds_weight: float = 0.1
    """Weight of the odds-ratio term, the paper's lambda."""

    guide: ClassVar[Guide] = Guide(
        "ORPO",
        merit="ORPO combines SFT on the chosen response with a preference term and needs no reference model; use it "
        "when memory is limited (--low-memory)",
        options="odds_weight: 0.1",
        comment="weight of the preference term relative to SFT",
        lr=8e-6,
        gentler="lower learner.lr, steps or loss.odds_weight",
    )

    uses_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(odds_weight=self.odds_weight)

    def loss_sum(self, micro: MicroBatch[PairTensors]) -> LossSum:
        sums = PairSums.of(micro)
        chosen_P = sums.chosen_P / sums.chosen_lengths_P.clamp(min=1)
        rejected_P = sums.rejected_P / sums.rejected_lengths_P.clamp(min=1)
        log_odds_ratio_P = _log_odds(chosen_P) - _log_odds(rejected_P)
        loss_P = -chosen_P - self.odds_weight * logsigmoid(log_odds_ratio_P)
        return pair_result(loss_P, self.odds_weight * chosen_P, self.odds_weight * rejected_P, sums)


def _log_odds(logprob_P: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p."""
    bounded_P = logprob_P.clamp(max=LARGEST_MEAN_LOGPROB)
    return bounded_P - torch.log(-torch.expm1(bounded_P))
