"""Rewards and a critic's values become an advantage and a return per token.

    reward [N] + values before the update [N, T]  ->  advantages, returns [N, T]

The values are computed once, before the optimizer step, over the whole batch, because whitening needs all of them. Each
rank computes those of its shard; only sums travel between ranks.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from volley.learner.config import SignalConfig
from volley.learner.signals.advantages import SampledTensors
from volley.learner.signals.batch import Batch, Drawn, Evaluator, MicroBatchPart, Signal, scored
from volley.learner.signals.rows import ArrayFields, Indices, PlannedRows
from volley.rollout.types import ScoredGroup

Doubles = NDArray[np.float64]
_BATCH_EPSILON = 1e-8


class CriticLoss(Protocol):
    """A loss that reads returns."""

    @property
    def gamma(self) -> float:
        """Discount per token."""
        ...

    @property
    def lam(self) -> float:
        """The lambda of `gae`."""
        ...

    @property
    def whiten(self) -> bool:
        """Whether advantages get mean 0 and spread 1 over the tokens of the batch."""
        ...


@dataclass(frozen=True, slots=True)
class CriticTensors(SampledTensors):
    """What losses with a critic read. Padded places hold zeros."""

    values_NT: Tensor
    """Of the state before each token, with gradient."""
    returns_NT: Tensor
    """What these values should have been."""


@dataclass(frozen=True, slots=True, eq=False)
class Returns(ArrayFields, Signal):
    """One reward per completion, and how a critic turns it into advantages and returns."""

    label: ClassVar[str] = "rewards"
    from_policy: ClassVar[bool] = True

    rewards: Doubles
    """[N]"""
    gamma: float
    lam: float
    whiten: bool

    @classmethod
    def make_batch(cls, drawn: Drawn, loss: CriticLoss) -> Batch:
        rows, rewards = scored(drawn.groups, drawn.version)
        return Batch(rows, cls(rewards, loss.gamma, loss.lam, loss.whiten))

    @classmethod
    def reason_against(cls, group: ScoredGroup, config: SignalConfig) -> str:
        return "" if any(not math.isnan(reward) for reward in group.rewards) else "unscorable"

    def take(self, completions: Indices) -> "Returns":
        return Returns(self.rewards[completions], self.gamma, self.lam, self.whiten)

    def prepare(
        self, evaluator: Evaluator, work: PlannedRows, auxiliary: PlannedRows | None
    ) -> tuple["Targets", dict[str, float]]:
        """Metrics, over the tokens of the batch: value_mean, return_mean, and explained_variance, 1 - Var(R - V) /
        Var(R). It is 1 where values predict the returns, 0 where a constant would do as well, and below 0 where a
        constant would do better; nan where all returns are equal. With lam below 1 returns contain values, which
        flatters it."""
        values_M = evaluator.values(work).astype(np.float64)
        lengths_N = work.rows.trained_per_completion
        is_token_NT = np.arange(max(lengths_N, default=0)) < lengths_N[:, None]
        values_NT = np.zeros(is_token_NT.shape)
        values_NT[is_token_NT] = values_M
        advantages_M = gae(self.rewards, values_NT, lengths_N, self.gamma, self.lam)[is_token_NT]
        returns_M = advantages_M + values_M
        found = Moments.of(np.stack([advantages_M, values_M, returns_M, returns_M - values_M]), evaluator)
        targets = Targets(whitened(advantages_M, found) if self.whiten else advantages_M, returns_M)
        _, value_mean, return_mean, _ = found.means.tolist()
        _, _, spread, error = found.squares.tolist()
        explained = 1 - error / spread if spread > 0 else math.nan
        return targets, {"value_mean": value_mean, "return_mean": return_mean, "explained_variance": explained}


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Advantages and returns of a shard's trained tokens."""

    advantages: Doubles
    """[M]"""
    returns: Doubles
    """[M]"""

    def tensors(self, part: MicroBatchPart) -> CriticTensors:
        return CriticTensors(
            part.behaviour_NT,
            part.scatter(part.tensor(self.advantages[part.tokens])),
            part.scatter(part.values_M),
            part.scatter(part.tensor(self.returns[part.tokens])),
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """Of several values per token, over the tokens of all ranks. K: how many values."""

    count: int
    means: Doubles
    """[K]"""
    squares: Doubles
    """[K], sums of squared differences from the mean."""

    @classmethod
    def of(cls, values_KM: Doubles, evaluator: Evaluator) -> "Moments":
        """values_KM: of this rank's tokens. In two passes, which loses no digits where the mean is large."""
        sums = evaluator.total(np.append(values_KM.sum(axis=1), values_KM.shape[1]))
        means = sums[:-1] / max(1.0, sums[-1])
        squares = evaluator.total(((values_KM - means[:, None]) ** 2).sum(axis=1))
        return cls(int(sums[-1]), means, squares)


def gae(rewards_N: Doubles, values_NT: Doubles, lengths_N: Indices, gamma: float, lam: float) -> Doubles:
    """Generalized advantage estimation, [N, T]: arXiv 1506.02438, equation 16,

        A_t = sum_{l >= 0} (gamma lam)^l delta_{t+l},   delta_t = r_t + gamma V_{t+1} - V_t

    where r_t is 0 except at a completion's last token, which gets its reward, and the value after it is 0. values_NT:
    of the states in which the tokens were chosen, zeros after each completion's length. Computed from the end as
    A_t = delta_t + gamma lam A_{t+1}.
    """
    advantages_NT = np.zeros_like(values_NT)
    following_N, value_after_N = np.zeros(len(rewards_N)), np.zeros(len(rewards_N))
    for t in range(values_NT.shape[1] - 1, -1, -1):
        reward_N = np.where(lengths_N == t + 1, rewards_N, 0.0)
        delta_N = reward_N + gamma * value_after_N - values_NT[:, t]
        following_N = np.where(t < lengths_N, delta_N + gamma * lam * following_N, 0.0)
        advantages_NT[:, t], value_after_N = following_N, values_NT[:, t]
    return advantages_NT


def whitened(advantages_M: Doubles, moments: Moments) -> Doubles:
    """(a - mean) / (std + 1e-8) over the tokens of the whole batch; std is the sample standard deviation. moments: the
    first values are those of the advantages. Fewer than two tokens stay as they are."""
    if moments.count < 2:
        return advantages_M
    std = math.sqrt(moments.squares[0] / (moments.count - 1))
    whitened_M: Doubles = (advantages_M - moments.means[0]) / (std + _BATCH_EPSILON)
    return whitened_M
