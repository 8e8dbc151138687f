"""What all losses share: the tensors they read, the sums they return, and formulas that several of them use.

A loss is a frozen dataclass whose fields are its options in a recipe. It returns sums over its micro-batch. The learner
divides once by `normalizer`, a number of the *global* batch, so that padding, micro-batches and ranks do not change the
result.

Legend: N completions of a micro-batch, T trained tokens of the longest one (shorter ones are padded on the right).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from volley.learner.losses.guide import Guide
from volley.learner.signals.batch import Signal, SignalTensors
from volley.learner.signals.kl import kl_estimate

T_co = TypeVar("T_co", bound=SignalTensors, covariant=True)


@dataclass(frozen=True, slots=True)
class MicroBatch(Generic[T_co]):
    """The tensors of one forward pass, all float32 on one device. Padded places hold finite numbers."""

    logprobs_NT: Tensor
    """Of the policy, at the sampling temperature, with gradient, in nats."""
    mask_NT: Tensor
    """1 for trained tokens, 0 for padding."""
    reference_NT: Tensor | None
    """Log-probs of the frozen reference policy; None for losses that have none."""
    signal: T_co
    """What the loss's own signal gives."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """What a loss makes of one micro-batch."""

    loss: Tensor
    """A scalar sum, to be divided by the loss's normalizer."""
    metrics: dict[str, tuple[Tensor, Tensor]]
    """Name -> (sum, count), scalars, detached. The learner adds both over micro-batches and ranks and divides at the
    end."""


class Loss(ABC):
    """One method's objective. A subclass is a frozen dataclass whose fields are its options in a recipe."""

    signal: ClassVar[type[Signal]]
    """What it learns from."""
    guide: ClassVar[Guide]
    """Documentation and advice."""
    min_group_size: ClassVar[int] = 1
    """The smallest group the method makes sense with (2 for group-relative advantages)."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the policy with a frozen reference policy."""
        return False

    @property
    def critic_lr(self) -> float:
        """Peak learning rate of its value head; 0 for losses without one."""
        return 0.0

    @abstractmethod
    def normalizer(self, num_tokens: int, num_sequences: int, num_pairs: int = 0) -> float:
        """What the global sum is divided by, from the global counts of trained tokens, completions and pairs."""

    @abstractmethod
    def loss_sum(self, micro: MicroBatch[Any]) -> LossSum:
        """The sum over the micro-batch and its metrics."""


def kl_metric(micro: MicroBatch[SignalTensors]) -> dict[str, tuple[Tensor, Tensor]]:
    """How far the policy is from its reference: {"kl": (sum, tokens)} by k3, whatever estimator the loss itself uses;
    {} without a reference. It estimates KL(pi || pi_ref) if the policy sampled the completions. On completions of a
    data set it measures the distance on these tokens."""
    if micro.reference_NT is None:
        return {}
    k3_NT = kl_estimate("k3", micro.logprobs_NT.detach(), micro.reference_NT)
    return {"kl": ((k3_NT * micro.mask_NT).sum(), micro.mask_NT.sum())}


def sequence_sums(values_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Sums over the trained tokens of each completion, [N]."""
    return (values_NT * mask_NT).sum(dim=1)
