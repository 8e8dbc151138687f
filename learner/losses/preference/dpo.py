"""DPO: make the chosen completion more likely than the rejected one, both relative to a reference.

    L = -log sigmoid(h),   h = beta [ log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l) ]

arXiv 2305.18290, equation 7. With label_smoothing e the labels are assumed wrong with probability e (conservative
DPO, in a note by the same authors): L = -(1 - e) log sigmoid(h) - e log sigmoid(-h). SPIN's logistic loss (arXiv
2401.01335, equation 4.7) is the same function, with demonstrations as chosen and the last round's own samples as
rejected.
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
class Dpo(PairLoss):
    """The options of DPO."""

    beta: float = 0.1
    """Strength of the regularisation towards the reference."""
    label_smoothing: float = 0.0
    """The assumed share of wrong labels, below 0.5."""

    guide: ClassVar[Guide] = Guide(
        "DPO",
        merit="DPO increases the probability of the chosen response over the rejected one relative to a reference "
        "model; it is the default for {small_pairs} pairs or more",
        options="beta: 0.1",
        comment="beta: strength of the KL regularization towards the reference",
        lr=5e-7,
        gentler="lower learner.lr or steps, raise loss.beta, or take ipo or orpo",
    )

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"loss.label_smoothing is {self.label_smoothing}; it must be at least 0 and below 0.5.")

    def loss_sum(self, micro: MicroBatch[PairTensors]) -> LossSum:
        sums = PairSums.of(micro)
        chosen_P, rejected_P = self.beta * sums.log_ratio_chosen_P, self.beta * sums.log_ratio_rejected_P
        h_P = chosen_P - rejected_P
        loss_P = -(1 - self.label_smoothing) * logsigmoid(h_P) - self.label_smoothing * logsigmoid(-h_P)
        return pair_result(loss_P, chosen_P, rejected_P, sums)
