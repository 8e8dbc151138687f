"""What all losses share: the tensors they read, the sums they return, the few formulas that several use.

A loss is a frozen dataclass whose fields are its options in a recipe. It returns sums over its micro-batch; the
learner divides once by `normalizer`, a number of the *global* batch, so that neither padding nor micro-batches nor
ranks can be seen in the result.

Legend: N sequences of a micro-batch, T completion tokens of the longest one (shorter ones are padded on the right).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
KL_ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True, slots=True)
class Critic:
    """What losses with a critic read of each token. values_NT: with gradient. advantages_NT, returns_NT: of the values
    before the update, without. Padded places hold zeros."""

    values_NT: Tensor
    advantages_NT: Tensor
    returns_NT: Tensor


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The tensors of one forward pass, all float32 on one device.

    logprobs_NT: of the policy, at the sampling temperature, with gradient. behaviour_NT: of the distribution that
    sampled. reference_NT: of the frozen reference policy, None for losses that have none. mask_NT: 1 for completion
    tokens, 0 for padding. advantages_N: zeros for losses that read none. pairs_P2 (int64): places in N of the chosen
    and the rejected completion of each of P pairs, none for losses that read none. labels_N: 1 for desirable
    completions, 0 for the others. baseline: KTO's z, of the whole batch. critic: None for losses that
    have none. Padded places hold finite numbers.
    """

    logprobs_NT: Tensor
    behaviour_NT: Tensor
    reference_NT: Tensor | None
    mask_NT: Tensor
    advantages_N: Tensor
    pairs_P2: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))
    labels_N: Tensor = field(default_factory=lambda: torch.zeros(0))
    baseline: float = 0.0
    critic: Critic | None = None


@dataclass(frozen=True, slots=True)
class LossSum:
    """loss: scalar sum, to be divided by the loss's normalizer. metrics: name -> (sum, count) scalars, detached; the
    learner adds both over micro-batches and ranks and divides at the end."""

    loss: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]


class Loss(Protocol):
    """One method's objective. signal: "advantages", "rewards" (which takes a critic), "pairs", "labels" or
    "demonstrations", what `batch.make_batch` must provide. whitens: whether advantages are divided by their spread over
    the whole batch."""

    signal: ClassVar[str]
    whitens: ClassVar[bool]

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

    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        """What the global sum is divided by, from the global counts of completion tokens, sequences and pairs."""
        ...

    def loss_sum(self, micro: MicroBatch) -> LossSum:
        """The sum over the micro-batch and its metrics."""
        ...


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


def kl_metric(micro: MicroBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """How far the policy is from its reference: {"kl": (sum, tokens)} by k3, whatever the loss itself adds; {} without
    a reference. An estimate of KL(pi || pi_ref) where the policy sampled the completions; on a data set's, the
    distance on what stands there."""
    if micro.reference_NT is None:
        return {}
    k3_NT = kl_estimate("k3", micro.logprobs_NT.detach(), micro.reference_NT)
    return {"kl": ((k3_NT * micro.mask_NT).sum(), micro.mask_NT.sum())}


def sequence_sums(values_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Sums over the completion tokens of each sequence, [N]."""
    return (values_NT * mask_NT).sum(dim=1)
