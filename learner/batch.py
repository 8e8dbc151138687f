"""Scored groups become a batch: rows (what was said) and a signal (what the loss reads).

Unscorable completions carry no signal and are left out; the caller has counted them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learner.losses.common import Loss
from rollout.types import ScoredGroup


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to learn from.

    prompt_ids: [P]. completion_ids: [T]. behaviour_logprobs: [T] of the distribution that sampled them (zeros for
    demonstrations). staleness: weight versions between sampling its first token and this batch.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    staleness: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class Advantages:
    """The signal of policy losses: one advantage per row, [N]."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """The signal of supervised losses: every row is to be imitated."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step learns from, over all ranks and micro-batches."""

    rows: tuple[Row, ...]
    signal: Advantages | Demonstrations

    @property
    def num_completion_tokens(self) -> int:
        return sum(len(row.completion_ids) for row in self.rows)

    def with_gradient(self, loss: Loss) -> "Batch":
        """Without the rows that cannot move the weights, at least one row: a policy loss without a reference (so
        without a KL term) is proportional to the advantage, and groups whose rewards are all equal have advantages of
        exactly 0. They count in the loss's normalizer, but need neither forward nor backward pass."""
        if not isinstance(self.signal, Advantages) or loss.needs_reference or not self.rows:
            return self
        kept = [i for i, value in enumerate(self.signal.values) if value != 0.0] or [0]
        return Batch(tuple(self.rows[i] for i in kept), Advantages(tuple(self.signal.values[i] for i in kept)))


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step reports. metrics: name -> value over the rows of the global batch that have a gradient
    (`loss`, `grad_norm`, `lr`, `entropy`, `logprob_mismatch_mean`, ... and the loss's own)."""

    metrics: Mapping[str, float]


def make_batch(groups: Sequence[ScoredGroup], loss: Loss, version: int) -> Batch:
    """The batch of `groups` for `loss`; `version` is the weight version that is about to be updated."""
    rows: list[Row] = []
    advantages: list[float] = []
    for group in groups:
        kept = [i for i, reward in enumerate(group.rewards) if not math.isnan(reward)]
        for i in kept:
            completion = group.completions[i]
            rows.append(
                Row(
                    group.prompt.token_ids,
                    completion.token_ids,
                    completion.logprobs,
                    version - completion.first_version,
                )
            )
        if loss.signal == "advantages":
            advantages += loss.advantages([group.rewards[i] for i in kept])
    signal = Advantages(tuple(advantages)) if loss.signal == "advantages" else Demonstrations()
    return Batch(tuple(rows), signal)
