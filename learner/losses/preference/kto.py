"""KTO: learn from single completions labelled desirable or undesirable, without pairs.

    L = w_D (1 - sigmoid(beta (R - z)))   for desirable y,    w_U (1 - sigmoid(beta (z - R)))   for undesirable y
    R = log pi(y) - log pi_ref(y),   z = max(0, mean over mismatched (x, y') of log pi(y'|x) - log pi_ref(y'|x))

arXiv 2402.01306, equation 8: z estimates KL(pi || pi_ref) from prompts with the completions of other prompts, without
gradient. Here it is computed over the whole batch, so it does not depend on micro-batches and ranks. `Labels` makes the
mismatched rows. If every prompt has one completion, completions move on by one row, as in the paper and in TRL. If a
prompt has several, they move on by a whole group, so that every completion is in the mean once. If all prompts of the
batch are equal there is no mismatched completion, and z is 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from volley.learner.losses.common import Loss, LossSum, MicroBatch, kl_metric, sequence_sums
from volley.learner.losses.guide import Guide
from volley.learner.losses.preference.pair_loss import check_positive
from volley.learner.signals.labels import Labels, LabelTensors


@dataclass(frozen=True)
class Kto(Loss):
    """The options of KTO. The paper recommends that w_D times the number of desirable completions, divided by w_U times
    that of undesirable ones, is between 1 and 4/3."""

    beta: float = 0.1
    """Strength of the regularisation towards the reference."""
    desirable_weight: float = 1.0
    """w_D"""
    undesirable_weight: float = 1.0
    """w_U"""

    signal: ClassVar[type[Labels]] = Labels
    guide: ClassVar[Guide] = Guide(
        "KTO", merit="KTO learns from single responses labelled good or bad, without pairs", lr=5e-7
    )

    @property
    def needs_reference(self) -> bool:
        return True

    def __post_init__(self) -> None:
        check_positive(
            beta=self.beta, desirable_weight=self.desirable_weight, undesirable_weight=self.undesirable_weight
        )

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        return num_sequences

    def loss_sum(self, micro: MicroBatch[LabelTensors]) -> LossSum:
        """Metrics: implicit_reward_desirable and implicit_reward_undesirable (beta R), means of their class;
        label_accuracy, the share whose reward is on the correct side of the baseline, where ties count half;
        `kl_metric`."""
        assert micro.reference_NT is not None, "KTO needs reference log-probs"
        reward_N = self.beta * sequence_sums(micro.logprobs_NT - micro.reference_NT, micro.mask_NT)
        desirable_N = micro.signal.labels_N
        sign_N = 2 * desirable_N - 1
        weight_N = desirable_N * self.desirable_weight + (1 - desirable_N) * self.undesirable_weight
        loss_N = weight_N * torch.sigmoid(-sign_N * (reward_N - self.beta * micro.signal.baseline))
        detached_N, count = reward_N.detach(), reward_N.new_tensor(float(len(reward_N)))
        return LossSum(
            loss_N.sum(),
            {
                "label_accuracy": (
                    (0.5 * (1 + (sign_N * (detached_N - self.beta * micro.signal.baseline)).sign())).sum(),
                    count,
                ),
                "implicit_reward_desirable": ((detached_N * desirable_N).sum(), desirable_N.sum()),
                "implicit_reward_undesirable": ((detached_N * (1 - desirable_N)).sum(), (1 - desirable_N).sum()),
                **kl_metric(micro),
            },
        )
