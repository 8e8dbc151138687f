"""PPO with a critic: the clipped surrogate with an advantage per token, and the regression of the values behind it.

    L = 1/tokens sum_{i,t} [ - min(rho_it A_it, clip(rho_it, 1 - clip_low, 1 + clip_high) A_it)
                             + value_weight (V(s_it) - R_it)^2 ]
    rho_it = pi(y_it) / mu(y_it),   A_it: `gae` of the old values,   R_it = A_it + V_old(s_it)

Surrogate: arXiv 1707.06347, equation 7; with the squared error: equation 9. Advantages: arXiv 1506.02438, equation 16.
A state s_it is the prompt and the tokens before y_it. The reward of a completion is given at its last token, truncated
or not, and the value after it is 0. V is a linear layer (`ValueHead`) on the last hidden state, which the policy's
output head reads too. So the trunk is shared, and the regression also trains it, in proportion to value_weight.

Not included: several epochs over the same samples, and with them the clipped value loss (with one update per batch V is
V_old, so it never clips); the entropy bonus of equation 9; the KL penalty inside the reward of InstructGPT (arXiv
2203.02155), for which `beta` adds one to the loss; a critic with a separate trunk, or initialised from a reward model.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from volley.learner.losses.common import LossSum, MicroBatch
from volley.learner.losses.guide import Guide
from volley.learner.losses.policy.clipped import ClippedLoss
from volley.learner.signals.batch import Signal
from volley.learner.signals.returns import CriticTensors, Returns
from volley.rollout.errors import ConfigError


@dataclass(frozen=True)
class Ppo(ClippedLoss):
    """The options of PPO are those of `ClippedLoss` and these."""

    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """Lambda of the estimator: 1 compares the reward with the value alone, less relies on the values in between."""
    value_weight: float = 0.1
    """Weight of the regression of the values."""
    value_lr: float = 1e-4
    """Peak learning rate of the value head, in the schedule of learner.lr."""
    whiten: bool = True
    """Whether advantages get mean 0 and standard deviation 1 over the tokens of the batch."""

    signal: ClassVar[type[Signal]] = Returns
    guide: ClassVar[Guide] = Guide("PPO")
    min_group_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"loss.{name} is {getattr(self, name)}; it must be between 0 and 1.")
        for name in ("value_weight", "value_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"loss.{name} is {getattr(self, name)}; it must be above 0 and finite.")

    @property
    def critic_lr(self) -> float:
        return self.value_lr

    def loss_sum(self, micro: MicroBatch[Any]) -> LossSum:
        """Metrics: those of `ClippedLoss`, and value_loss, the mean of (V - R)^2."""
        policy = super().loss_sum(micro)
        critic: CriticTensors = micro.signal
        errors_NT = (critic.values_NT - critic.returns_NT) * micro.mask_NT
        value_loss = errors_NT.square().sum()
        metrics = policy.metrics | {"value_loss": (value_loss.detach(), micro.mask_NT.sum())}
        return LossSum(policy.loss + self.value_weight * value_loss, metrics)
