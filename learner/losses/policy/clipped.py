"""What GRPO and related losses share: the clipped surrogate, its KL term, and guards against stale or mismatched
samples.

    - sum_t w_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A) + beta sum_t KL_t

guard "none": w = 1 and rho_t = pi(y_t) / mu(y_t), against the log-probs of the rollout (PPO's ratio, arXiv 1707.06347,
equation 7, with the behaviour policy as the old one). So the clipping range also limits the effect of stale samples.
The other guards separate correction and clipping: rho_t = pi / sg(pi), whose value is 1 because there is one update per
batch, and with r_t = sg(pi / mu)

    tis        w_t = min(r_t, guard_high)                              truncated importance sampling (2 by default)
    icepop     w_t = r_t where guard_low <= r_t <= guard_high, else 0  Ring-1T, arXiv 2510.18855 (0.5 and 5)
    geometric  w_t = 1 where guard_low <= exp(mean_t log r_t) <= guard_high, else 0 for the whole sequence (0.99, 1.01)

Not included: several epochs over the same samples, which would need a third set of log-probs; a KL term multiplied by
the ratio, which corrects its gradient for the policy that sampled (arXiv 2512.02556).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from volley.learner.losses.common import Loss, LossSum, MicroBatch, kl_metric, sequence_sums
from volley.learner.signals.advantages import Advantages, SampledTensors
from volley.learner.signals.batch import Signal
from volley.learner.signals.kl import KL_ESTIMATORS, MAX_LOG_RATIO, kl_estimate
from volley.rollout.errors import ConfigError

GUARDS = {"none": (0.0, 0.0), "tis": (0.0, 2.0), "icepop": (0.5, 5.0), "geometric": (0.99, 1.01)}
"""Each guard's own guard_low and guard_high."""


@dataclass(frozen=True)
class ClippedLoss(Loss):
    """The options of clipped losses."""

    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    beta: float = 0.0
    """Weight of the KL to the reference policy; 0 loads none."""
    kl: str = "k3"
    """The estimator of the KL term: "k1", "k2" or "k3"."""
    guard: str = "none"
    """"none", "tis", "icepop" or "geometric"."""
    guard_low: float = 0.0
    """The lower bound of the guard; 0 for its default."""
    guard_high: float = 0.0
    """The upper bound of the guard; 0 for its default."""

    signal: ClassVar[type[Signal]] = Advantages
    whitens: ClassVar[bool] = False
    min_group_size: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)
        if not 0 <= self.beta < float("inf"):
            raise ConfigError(f"loss.beta is {self.beta}; it must be 0 (no reference policy) or more.")
        if self.kl not in KL_ESTIMATORS:
            raise ConfigError(f"loss.kl is '{self.kl}'; it must be one of {', '.join(KL_ESTIMATORS)}.")
        if self.guard not in GUARDS:
            raise ConfigError(f"loss.guard is '{self.guard}'; it must be one of {', '.join(GUARDS)}.")
        low, high = self._guard_range
        if self.guard != "none" and not 0 <= low < high:
            raise ConfigError(
                f"loss.guard_low is {low} and loss.guard_high is {high}; they must satisfy 0 <= low < high."
            )

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        return num_tokens

    def loss_sum(self, micro: MicroBatch[SampledTensors]) -> LossSum:
        """Metrics: clip_share, the share of tokens whose clipped branch is active (they give no gradient); with a guard
        guard_share, the share of tokens that it truncates or masks; with a reference kl, always the k3 estimate."""
        mask_NT, num_tokens = micro.mask_NT, micro.mask_NT.sum()
        log_ratio_NT = (micro.logprobs_NT - micro.signal.behaviour_NT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        weights_NT, guarded_NT = self._guard(log_ratio_NT.detach(), mask_NT)
        if self.guard != "none":
            log_ratio_NT = micro.logprobs_NT - micro.logprobs_NT.detach()
        loss, clipped_NT = self._surrogate(log_ratio_NT, weights_NT, micro)
        metrics = {"clip_share": ((clipped_NT * mask_NT).sum(), num_tokens), **kl_metric(micro)}
        if self.guard != "none":
            metrics["guard_share"] = ((guarded_NT * mask_NT).sum(), num_tokens)
        assert self.beta == 0 or micro.reference_NT is not None, "a KL term needs reference log-probs"
        if self.beta and micro.reference_NT is not None:
            kl_NT = kl_estimate(self.kl, micro.logprobs_NT, micro.reference_NT)
            loss = loss + self.beta * self._kl_sum(kl_NT, mask_NT)
        return LossSum(loss, metrics)

    @property
    def _guard_range(self) -> tuple[float, float]:
        low, high = GUARDS[self.guard]
        return self.guard_low or low, self.guard_high or high

    def _surrogate(
        self, log_ratio_NT: Tensor, weights_NT: Tensor, micro: MicroBatch[SampledTensors]
    ) -> tuple[Tensor, Tensor]:
        """The sum to be minimised, and where clipping is active. The log-ratio has been clamped to +-20 against
        overflow; beyond that a token gives no gradient."""
        ratio_NT, advantages_NT = log_ratio_NT.exp(), micro.signal.advantages_NT
        free_NT = ratio_NT * advantages_NT
        clipped_NT = ratio_NT.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages_NT
        return -(torch.minimum(free_NT, clipped_NT) * weights_NT * micro.mask_NT).sum(), clipped_NT < free_NT

    def _kl_sum(self, kl_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """The KL term, summed over what the normalizer counts."""
        return (kl_NT * mask_NT).sum()

    def _guard(self, log_ratio_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of each token, and which tokens the guard changed."""
        low, high = self._guard_range
        if self.guard == "none":
            return torch.ones_like(mask_NT), torch.zeros_like(mask_NT)
        if self.guard == "geometric":
            lengths_N = mask_NT.sum(dim=1).clamp(min=1)
            ratio_NT = (sequence_sums(log_ratio_NT, mask_NT) / lengths_N).exp()[:, None].expand_as(mask_NT)
        else:
            ratio_NT = log_ratio_NT.exp()
        outside_NT = (ratio_NT > high) | (ratio_NT < low)
        if self.guard == "tis":
            return ratio_NT.clamp(max=high), outside_NT
        kept_NT = (~outside_NT).to(mask_NT.dtype)
        return kept_NT if self.guard == "geometric" else ratio_NT * kept_NT, outside_NT


def check_clip(clip_low: float, clip_high: float) -> None:
    """Raise `ConfigError` for an impossible clipping range."""
    if not 0 < clip_low <= 1:
        raise ConfigError(f"loss.clip_low is {clip_low}; it must be above 0 and at most 1.")
    if not 0 < clip_high < float("inf"):
        raise ConfigError(f"loss.clip_high is {clip_high}; it must be above 0 and finite.")
