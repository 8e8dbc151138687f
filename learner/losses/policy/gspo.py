"""GSPO: ratio and clipping per sequence instead of per token.

    J = 1/sequences sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)
    s_i = (pi(y_i) / mu(y_i))^(1/|y_i|) = exp(mean_t log rho_it),   A_i = (r_i - mean(r)) / (std(r) + 1e-4)

arXiv 2507.18071, equations 5 and 7; the clipping range, two orders of magnitude smaller than for tokens, is that of
section 5.1. With a guard s_i is 1, and a sequence's weight is the mean of its tokens' weights. Not included:
GSPO-token.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from volley.learner.losses.common import MicroBatch, sequence_sums
from volley.learner.losses.guide import Guide
from volley.learner.losses.policy.grpo import Grpo
from volley.learner.signals.advantages import SampledTensors


@dataclass(frozen=True)
class Gspo(Grpo):
    """The options of GSPO are those of `ClippedLoss`. Its KL term is a mean over the sequence's tokens."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    guide: ClassVar[Guide] = Guide("GSPO")

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        return num_sequences

    def _surrogate(
        self, log_ratio_NT: Tensor, weights_NT: Tensor, micro: MicroBatch[SampledTensors]
    ) -> tuple[Tensor, Tensor]:
        lengths_N = micro.mask_NT.sum(dim=1).clamp(min=1)
        ratio_N = (sequence_sums(log_ratio_NT, micro.mask_NT) / lengths_N).exp()
        weights_N = sequence_sums(weights_NT, micro.mask_NT) / lengths_N
        advantages_N = micro.signal.advantages_NT.squeeze(1)
        free_N = ratio_N * advantages_N
        clipped_N = ratio_N.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages_N
        is_clipped_NT = (clipped_N < free_N)[:, None].expand_as(micro.mask_NT)
        return -(torch.minimum(free_N, clipped_N) * weights_N).sum(), is_clipped_NT

    def _kl_sum(self, kl_NT: Tensor, mask_NT: Tensor) -> Tensor:
        return (sequence_sums(kl_NT, mask_NT) / mask_NT.sum(dim=1).clamp(min=1)).sum()
