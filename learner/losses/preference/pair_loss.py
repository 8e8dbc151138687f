"""What losses over pairs share: sums of log-probs and metrics.

Legend: P pairs of a micro-batch; w the chosen (winner), l the rejected (loser) completion. Log-probs of a completion
are sums over its tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from volley.learner.losses.common import Loss, LossSum, MicroBatch, kl_metric, sequence_sums
from volley.learner.signals.pairs import Pairs, PairTensors
from volley.rollout.errors import ConfigError


@dataclass(frozen=True)
class PairLoss(Loss):
    """A mean over pairs."""

    signal: ClassVar[type[Pairs]] = Pairs
    min_group_size: ClassVar[int] = 2
    uses_reference: ClassVar[bool] = True
    """Whether the formula has a reference."""

    @property
    def needs_reference(self) -> bool:
        return self.uses_reference

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        return num_pairs


@dataclass(frozen=True, slots=True)
class PairSums:
    """Log-probs and lengths of both sides of each pair, all [P]."""

    micro: MicroBatch[PairTensors]
    """Where they come from."""
    chosen_P: Tensor
    """Under the policy."""
    rejected_P: Tensor
    reference_chosen_P: Tensor
    """Under the reference; zeros without one."""
    reference_rejected_P: Tensor
    chosen_lengths_P: Tensor
    """In trained tokens."""
    rejected_lengths_P: Tensor

    @classmethod
    def of(cls, micro: MicroBatch[PairTensors]) -> "PairSums":
        logprobs_N = sequence_sums(micro.logprobs_NT, micro.mask_NT)
        lengths_N = micro.mask_NT.sum(dim=1)
        reference_N = torch.zeros_like(lengths_N)
        if micro.reference_NT is not None:
            reference_N = sequence_sums(micro.reference_NT, micro.mask_NT)
        won, lost = micro.signal.pairs_P2.unbind(dim=1)
        return cls(
            micro,
            logprobs_N[won],
            logprobs_N[lost],
            reference_N[won],
            reference_N[lost],
            lengths_N[won],
            lengths_N[lost],
        )

    @property
    def log_ratio_chosen_P(self) -> Tensor:
        """log pi(y_w) - log pi_ref(y_w)."""
        return self.chosen_P - self.reference_chosen_P

    @property
    def log_ratio_rejected_P(self) -> Tensor:
        """log pi(y_l) - log pi_ref(y_l)."""
        return self.rejected_P - self.reference_rejected_P


def pair_result(loss_P: Tensor, chosen_P: Tensor, rejected_P: Tensor, sums: PairSums) -> LossSum:
    """The loss's sum and the family's metrics, means over pairs. chosen_P, rejected_P: the implicit rewards.

    implicit_reward_chosen, implicit_reward_rejected, implicit_margin. preference_accuracy, the share of pairs whose
    chosen side has the larger implicit reward, where ties count half. chosen_logprob and rejected_logprob per token,
    because a falling chosen_logprob is the known failure of DPO (arXiv 2402.13228). And `kl_metric`, over tokens.
    """
    with torch.no_grad():
        margin_P, num_pairs = chosen_P - rejected_P, loss_P.new_tensor(float(len(loss_P)))
        right_P = 0.5 * (1 + margin_P.sign())
        values = {
            "implicit_reward_chosen": chosen_P,
            "implicit_reward_rejected": rejected_P,
            "implicit_margin": margin_P,
            "preference_accuracy": right_P,
            "chosen_logprob": sums.chosen_P / sums.chosen_lengths_P.clamp(min=1),
            "rejected_logprob": sums.rejected_P / sums.rejected_lengths_P.clamp(min=1),
        }
        metrics = {name: (value.sum(), num_pairs) for name, value in values.items()} | kl_metric(sums.micro)
    return LossSum(loss_P.sum(), metrics)


def check_positive(**options: float) -> None:
    """Raise `ConfigError` for an option of the loss that is not above 0 and finite."""
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"loss.{name} is {value}; it must be above 0 and finite.")
