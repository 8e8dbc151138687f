"""Scored groups become a batch: rows (the tokens) and a signal (what the loss reads about them).

A signal is a type. `Signal` lists what each one owns: how groups become rows, why a group teaches nothing, what the
ranks prepare before the update, and which tensors its losses read. Unscorable completions are left out of every batch;
the caller has counted them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volley.learner.config import SignalConfig
from volley.learner.signals.rows import Indices, PlannedRows, Rows
from volley.rollout.types import ScoredGroup

S = TypeVar("S", bound="Signal")


@dataclass(frozen=True, slots=True)
class Drawn:
    """The groups of one step, and how they were drawn."""

    groups: Sequence[ScoredGroup]
    version: int
    """The weight version that is about to be updated."""
    config: SignalConfig
    replaced: Mapping[str, int]
    """How many groups were drawn and replaced, by `Signal.reason_against`, so that yields cover all groups drawn."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the normalizers of losses divide by, over the whole batch."""

    tokens: int
    """Trained tokens."""
    completions: int
    pairs: int = 0
    """Pairs of completions, where the signal has them."""


@dataclass(frozen=True, slots=True)
class SignalTensors:
    """What losses read of a micro-batch besides log-probs and mask. Each signal has its own type."""

    def metrics(self, logprobs_NT: Tensor, mask_NT: Tensor, fresh_N: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Metrics of every update by this signal: name -> (sum, count). logprobs_NT: of the policy, detached. fresh_N:
        1 for completions that were sampled under the weights of the update."""
        return {}


@dataclass(frozen=True, slots=True)
class MicroBatchPart:
    """One micro-batch as a signal sees it: its place in the shard, and what the forward pass gave."""

    completions: slice
    """Its completions among those of the shard."""
    tokens: slice
    """Its trained tokens among those of the shard."""
    behaviour_NT: Tensor
    """[N, T]"""
    values_M: Tensor
    """[M], values with gradient; empty without a value head."""
    scatter: Callable[[Tensor], Tensor]
    """[M] to [N, T], zeros at padding."""

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """Float32 on the device of the micro-batch."""
        return torch.tensor(values, dtype=torch.float32, device=self.behaviour_NT.device)


class Evaluator(Protocol):
    """What a rank can compute for a signal before the update. All ranks make the same calls in the same order."""

    def policy(self, planned: PlannedRows) -> NDArray[np.float32]:
        """[M], log-probs of the rank's trained tokens under the policy."""
        ...

    def reference(self, planned: PlannedRows) -> NDArray[np.float32]:
        """[M], the same under the reference."""
        ...

    def values(self, planned: PlannedRows) -> NDArray[np.float32]:
        """[M], values of the states before these tokens."""
        ...

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over all ranks, element by element."""
        ...


class Prepared(Protocol):
    """A shard's signal, ready for the losses."""

    def tensors(self, part: MicroBatchPart) -> SignalTensors:
        """What the losses read of one micro-batch."""
        ...


class Signal(ABC):
    """What a family of losses learns from. An instance holds the values of N completions."""

    label: ClassVar[str]
    """Its plural, for texts: "pairs"."""
    from_policy: ClassVar[bool]
    """Whether scored samples of the policy can give it."""
    how: ClassVar[str] = ""
    """How rewards of samples become it, where data could give it, too: "labelled by their rewards"."""
    columns: ClassVar[tuple[str, ...]] = ()
    """The columns of a data set that can give it, besides the prompt; () where only the policy's samples can."""
    compares: ClassVar[bool] = False
    """Whether completions of one group are compared in pairs, so that a data set's can meet the policy's."""

    @classmethod
    @abstractmethod
    def make_batch(cls, drawn: Drawn, loss: Any) -> "Batch":
        """The batch of some groups. loss: one whose signal this is."""

    @classmethod
    @abstractmethod
    def reason_against(cls, group: ScoredGroup, config: SignalConfig) -> str:
        """Why nothing that `make_batch` makes of this group moves the weights: "tied", "unscorable" or "same" (see
        `volley.learner.signals.pairs.GroupPairs`); "" where something does."""

    @classmethod
    def read(cls, row: Mapping[str, Any], text: Callable[[str], str], where: str) -> list[tuple[str, float]]:
        """Completions and rewards in a row of a data set. text: reads a column's text. where: names the row in errors.
        Raises `DataError` for a row without information. Called only for signals that name `columns`."""
        raise AssertionError(f"{cls.__name__} names no columns, so it cannot be read from data")

    @abstractmethod
    def take(self: S, completions: Indices) -> S:
        """The signal of these completions, in this order."""

    @property
    def num_pairs(self) -> int:
        return 0

    @property
    def auxiliary(self) -> Rows | None:
        """More rows that `prepare` needs to evaluate, which are not learned from."""
        return None

    def unit_of(self, num_completions: int) -> Indices:
        """[N], equal numbers for neighbours that must be in one micro-batch."""
        return np.arange(num_completions)

    def idle(self) -> NDArray[np.bool_] | None:
        """[N], which completions have no gradient unless a reference pulls on them; None for none."""
        return None

    @abstractmethod
    def prepare(
        self, evaluator: Evaluator, work: PlannedRows, auxiliary: PlannedRows | None
    ) -> tuple[Prepared, dict[str, float]]:
        """What must be computed over the whole batch before the update, and metrics of it. work: this rank's rows,
        whose signal this is."""


class ReadySignal(Signal):
    """A signal that needs no preparation on the ranks."""

    @abstractmethod
    def tensors(self, part: MicroBatchPart) -> SignalTensors:
        """See `Prepared.tensors`."""

    def prepare(
        self, evaluator: Evaluator, work: PlannedRows, auxiliary: PlannedRows | None
    ) -> tuple[Prepared, dict[str, float]]:
        return self, {}


class SignalUser(Protocol):
    """A loss, as far as batches are concerned."""

    @property
    def signal(self) -> type[Signal]: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step learns from, over all ranks and micro-batches."""

    rows: Rows
    signal: Signal
    metrics: Mapping[str, float] = field(default_factory=dict)
    """About how it was made: `pair_yield`, `desirable_share`, ..."""

    @property
    def counts(self) -> Counts:
        return Counts(self.rows.num_trained, self.rows.num_completions, self.signal.num_pairs)

    def without_idle(self) -> "Batch":
        """Without the completions that cannot move the weights where no reference pulls, but at least one completion.
        They count in the loss's normalizer, but need neither forward nor backward pass."""
        idle = self.signal.idle()
        if idle is None or not len(idle) or not idle.any():
            return self
        kept = np.flatnonzero(~idle) if not idle.all() else np.zeros(1, dtype=np.int64)
        return Batch(self.rows.take(kept), self.signal.take(kept), self.metrics)


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank needs of a batch."""

    work: PlannedRows
    signal: Signal
    """Of the completions in `work`, in their order."""
    auxiliary: PlannedRows | None
    """This rank's part of the signal's auxiliary rows."""
    counts: Counts
    """Of the whole batch."""
    metrics: Mapping[str, float]
    """Of the whole batch."""
    padding_share: float
    """Of all tokens that the ranks compute for the batch, how many are padding."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step reports."""

    metrics: Mapping[str, float]
    """Name -> value over the completions of the global batch that have a gradient (`loss`, `grad_norm`, `lr`,
    `entropy`, `logprob_mismatch_mean`, ... and the loss's own)."""


def make_batch(
    groups: Sequence[ScoredGroup],
    loss: SignalUser,
    version: int,
    config: SignalConfig | None = None,
    replaced: Mapping[str, int] | None = None,
) -> Batch:
    """The batch of `groups` for `loss`; the other arguments are those of `Drawn`."""
    return loss.signal.make_batch(Drawn(groups, version, config or SignalConfig(), replaced or {}), loss)


def scored(groups: Sequence[ScoredGroup], version: int) -> tuple[Rows, NDArray[np.float64]]:
    """Rows of all scorable completions, and their rewards [N]."""
    kept = [
        (group.prompt.token_ids, completion, score.reward)
        for group in groups
        for completion, score in zip(group.completions, group.scores, strict=True)
        if not math.isnan(score.reward)
    ]
    rows = Rows.from_completions([(prompt, completion) for prompt, completion, _ in kept], version)
    return rows, np.array([reward for _, _, reward in kept], dtype=np.float64)
