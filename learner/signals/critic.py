"""What PPO learns from: values of the tokens before the update, and from them advantages and returns.

    Rewards [N] + old values [N][T]  ->  Targets: advantages, returns [N][T]

The values are computed once, before the optimizer step, over the whole batch: whitening needs all of them.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from volley.learner.compute.packing import Collated
from volley.learner.losses.common import Critic
from volley.learner.losses.policy.ppo import Ppo
from volley.learner.signals.advantages import gae, whitened
from volley.learner.signals.batch import Batch, Rewards, Targets


def with_targets(batch: Batch, loss: Ppo, values: Sequence[Sequence[float]]) -> Batch:
    """`batch` with advantages and returns for its rewards. values: [T] of each row, under the policy before the update.

    Facts: value_mean and return_mean over the tokens, and explained_variance, 1 - Var(R - V) / Var(R): 1 where values
    foresee the returns, 0 where a constant would do as well, below 0 where it would do better; nan where all returns
    are equal. With lam below 1 returns contain values, which flatters it.
    """
    assert isinstance(batch.signal, Rewards)
    found = [gae(reward, row, loss.gamma, loss.lam) for reward, row in zip(batch.signal.values, values, strict=True)]
    returns = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(found, values, strict=True)]
    advantages = whitened(found) if loss.whiten else found
    old, new = _flat(values), _flat(returns)
    spread = _variance(new)
    facts = {
        "value_mean": math.fsum(old) / max(1, len(old)),
        "return_mean": math.fsum(new) / max(1, len(new)),
        "explained_variance": 1 - _variance([r - v for r, v in zip(new, old, strict=True)]) / spread
        if spread > 0
        else math.nan,
    }
    signal = Targets(tuple(map(tuple, advantages)), tuple(map(tuple, returns)))
    return dataclasses.replace(batch, signal=signal, facts={**batch.facts, **facts})


def critic_of(signal: Targets, indices: Sequence[int], data: Collated, values_M: Tensor) -> Critic:
    """The tensors of the micro-batch `data`, whose rows are `indices`, with the values that have a gradient."""

    def padded(rows: Sequence[Sequence[float]]) -> Tensor:
        return data.scatter(torch.tensor(_flat(rows[i] for i in indices), device=values_M.device))

    return Critic(data.scatter(values_M), padded(signal.advantages), padded(signal.returns))


def _flat(rows: Iterable[Sequence[float]]) -> list[float]:
    return [value for row in rows for value in row]


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / max(1, len(values))
    return math.fsum((value - mean) ** 2 for value in values) / max(1, len(values))
