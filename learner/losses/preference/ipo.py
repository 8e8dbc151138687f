"""IPO: move the difference of the log-ratios to a fixed margin instead of letting it grow without limit.

    L = (D - 1/(2 tau))^2,   D = log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l)

arXiv 2310.12036, equation 17. Libraries define D differently, so `reduction` is an option. "sum" is the paper:
log-probs of whole responses, and the target margin between them is 1/(2 tau) nats. "mean" divides each log-ratio by its
length, as TRL does. Then the same number applies per token, which is 5 nats per token with tau 0.1. No policy near its
reference reaches that, so the margin is not bounded in practice. Use a tau that is larger by about the length.
"""

from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.common import LossSum, MicroBatch
from volley.learner.losses.guide import Guide
from volley.learner.losses.preference.pair_loss import PairLoss, PairSums, check_positive, pair_result
from volley.learner.signals.pairs import PairTensors
from volley.rollout.errors import ConfigError

REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True)
class Ipo(PairLoss):
    """The options of IPO."""

    tau: float = 0.1
    """Strength of the regularisation towards the reference."""
    reduction: str = "sum"
    """"sum" or "mean" over the tokens of a response."""

    guide: ClassVar[Guide] = Guide(
        "IPO",
        merit="IPO optimizes towards a fixed margin, so it overfits less than DPO on fewer than {small_pairs} pairs",
        options="tau: 0.1, reduction: sum",
        comment="the target margin is 1 / (2 tau) nats",
        lr=5e-7,
        epochs=3,
        gentler="lower learner.lr or steps, raise loss.tau, or take orpo",
    )

    def __post_init__(self) -> None:
        check_positive(tau=self.tau)
        if self.reduction not in REDUCTIONS:
            raise ConfigError(f"loss.reduction is '{self.reduction}'; it must be one of {', '.join(REDUCTIONS)}.")

    def loss_sum(self, micro: MicroBatch[PairTensors]) -> LossSum:
        sums = PairSums.of(micro)
        chosen_P, rejected_P = sums.log_ratio_chosen_P, sums.log_ratio_rejected_P
        if self.reduction == "mean":
            chosen_P = chosen_P / sums.chosen_lengths_P.clamp(min=1)
            rejected_P = rejected_P / sums.rejected_lengths_P.clamp(min=1)
        loss_P = (chosen_P - rejected_P - 1 / (2 * self.tau)).square()
        return pair_result(loss_P, self.tau * chosen_P, self.tau * rejected_P, sums)
