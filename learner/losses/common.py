"""What all losses share: the tensors they read, the sums they return, the few formulas that several use.

A loss is a frozen dataclass whose fields are its options in a recipe. It returns sums over its micro-batch; the
learner divides once by `normalizer`, a number of the *global* batch, so that neither padding nor micro-batches nor
ranks can be seen in the result.

Legend: N sequences of a micro-batch, T completion tokens of the longest one (shorter ones are padded on the right).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rollout.errors import ConfigError

MAX_LOG_RATIO = 20.0
KL_ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The tensors of one forward pass, all float32 on one device.

    logprobs_NT: of the policy, at the sampling temperature, with gradient. behaviour_NT: of the distribution that
    sampled. reference_NT: of the frozen reference policy, None for losses that have none. mask_NT: 1 for completion
    tokens, 0 for padding. advantages_N: zeros for losses that read none. Padded places hold finite numbers.
    """

    logprobs_NT: Tensor
    behaviour_NT: Tensor
    reference_NT: Tensor | None
    mask_NT: Tensor
    advantages_N: Tensor


@dataclass(frozen=True, slots=True)
class LossSum:
    """loss: scalar sum, to be divided by the loss's normalizer. metrics: name -> (sum, count) scalars, detached; the
    learner adds both over micro-batches and ranks and divides at the end."""

    loss: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]


class Loss(Protocol):
    """One method's objective. signal: "advantages" or "demonstrations", what `batch.make_batch` must provide."""

    signal: ClassVar[str]

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen reference policy must be loaded."""
        ...

    @property
    def min_group_size(self) -> int:
        """The smallest group the method makes sense with (2 for group-relative advantages)."""
        ...

    def advantages(self, rewards_G: Sequence[float]) -> list[float]:
        """One group's rewards to its advantages, [G] -> [G]; empty for losses that read none."""
        ...

    def normalizer(self, num_tokens: int, num_sequences: int) -> float:
        """What the global sum is divided by, from the global counts of completion tokens and sequences."""
        ...

    def loss_sum(self, micro: MicroBatch) -> LossSum:
        """The sum over the micro-batch and its metrics."""
        ...


def clipped_policy_loss(
    micro: MicroBatch, clip_low: float, clip_high: float, beta: float = 0.0, kl: str = "k3"
) -> LossSum:
    """The clipped surrogate that the policy losses share, summed over the micro-batch:

        - sum_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A) + beta sum_t KL_t,   rho_t = pi(y_t) / mu(y_t)

    rho is taken against the log-probs of the rollout, so the importance correction of stale samples is in it. Its
    logarithm is clamped to +-20 against overflow; beyond that a token gives no gradient.
    Metrics: clip_share, the share of tokens whose clipped branch is active (they give no gradient); kl, with a
    reference, always the k3 estimate.
    """
    mask_NT, advantages_N1 = micro.mask_NT, micro.advantages_N[:, None]
    log_ratio_NT = (micro.logprobs_NT - micro.behaviour_NT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_NT = log_ratio_NT.exp()
    free_NT = ratio_NT * advantages_N1
    clipped_NT = ratio_NT.clamp(1 - clip_low, 1 + clip_high) * advantages_N1
    loss = -(torch.minimum(free_NT, clipped_NT) * mask_NT).sum()

    num_tokens = mask_NT.sum()
    metrics = {"clip_share": (((clipped_NT < free_NT) * mask_NT).sum(), num_tokens)}
    assert beta == 0 or micro.reference_NT is not None, "a KL term needs reference log-probs"
    if micro.reference_NT is not None:
        if beta:
            loss = loss + beta * (kl_estimate(kl, micro.logprobs_NT, micro.reference_NT) * mask_NT).sum()
        k3_NT = kl_estimate("k3", micro.logprobs_NT.detach(), micro.reference_NT)
        metrics["kl"] = ((k3_NT * mask_NT).sum(), num_tokens)
    return LossSum(loss, metrics)


def kl_estimate(kind: str, logprobs_NT: Tensor, reference_NT: Tensor) -> Tensor:
    """Per-token estimates of KL(pi || pi_ref) from samples of pi, [N, T], with d = log pi_ref - log pi.

    k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (Schulman, "Approximating KL divergence", 2020; k3 is equation 4 of
    arXiv 2402.03300). As a loss they differ: on policy the expected gradient of k2 is that of KL(pi || pi_ref), of k3
    that of KL(pi_ref || pi), and of k1 it is zero. d is clamped from above at 20 against overflow.
    """
    d_NT = (reference_NT - logprobs_NT).clamp(max=MAX_LOG_RATIO)
    if kind == "k1":
        return -d_NT
    if kind == "k2":
        return d_NT.square() / 2
    assert kind == "k3", kind
    return d_NT.expm1() - d_NT


def check_clip(clip_low: float, clip_high: float) -> None:
    """Raise `ConfigError` unless the clipping range makes sense."""
    if not 0 < clip_low <= 1:
        raise ConfigError(f"loss.clip_low is {clip_low}; it must be above 0 and at most 1.")
    if not 0 < clip_high < float("inf"):
        raise ConfigError(f"loss.clip_high is {clip_high}; it must be above 0 and finite.")
