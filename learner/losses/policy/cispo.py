"""CISPO: clip the importance weight instead of the gradient, so that every token contributes.

    J = 1/tokens sum_{i,t} sg(min(rho_it, cap)) A_i log pi(y_it)
    rho_it = pi(y_it) / mu(y_it),   A_i = (r_i - mean(r)) / (std(r) + 1e-4)

arXiv 2506.13585 (MiniMax-M1), equations 4 and 5, without the lower bound, as in the paper. Rare but important tokens
("wait", "however") have large ratios, and a clipped surrogate removes the gradient of exactly these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from volley.learner.losses.common import Loss, LossSum, MicroBatch
from volley.learner.losses.guide import Guide
from volley.learner.signals.advantages import Advantages, SampledTensors, group_relative
from volley.learner.signals.kl import MAX_LOG_RATIO
from volley.rollout.errors import ConfigError


@dataclass(frozen=True)
class Cispo(Loss):
    """The options of CISPO."""

    cap: float = 5.0
    """The largest importance weight."""

    signal: ClassVar[type[Advantages]] = Advantages
    guide: ClassVar[Guide] = Guide("CISPO")
    whitens: ClassVar[bool] = False
    min_group_size: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.cap < float("inf"):
            raise ConfigError(f"loss.cap is {self.cap}; it must be above 0 and finite.")

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        return group_relative(rewards_G)

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        return num_tokens

    def loss_sum(self, micro: MicroBatch[SampledTensors]) -> LossSum:
        """Metrics: clip_share, the share of tokens at the cap."""
        log_ratio_NT = (micro.logprobs_NT.detach() - micro.signal.behaviour_NT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio_NT = log_ratio_NT.exp()
        weights_NT = ratio_NT.clamp(max=self.cap) * micro.mask_NT
        loss = -(weights_NT * micro.signal.advantages_NT * micro.logprobs_NT).sum()
        capped = ((ratio_NT > self.cap) * micro.mask_NT).sum()
        return LossSum(loss, {"clip_share": (capped, micro.mask_NT.sum())})
