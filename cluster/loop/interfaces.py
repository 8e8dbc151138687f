"""The parts of the training loop, as the loop sees them. `cluster/run` builds the real ones, tests build small ones."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from volley.learner.signals.batch import Batch, Update
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of one evaluation."""

    metrics: dict[str, float]
    greedy: tuple[ScoredGroup, ...]
    """One group of one greedy response per prompt; empty where a data set is measured instead."""


@dataclass(frozen=True, slots=True)
class Step:
    """One finished optimizer step."""

    number: int
    """From 1."""
    trained: int
    """The weight version that the update started from."""
    served: int
    """The weight version that the engines serve after this step's push."""
    groups: Sequence[ScoredGroup]
    update: Update


class MetricSource(Protocol):
    """Anything that adds columns to a step's row."""

    def metrics(self) -> Mapping[str, float]:
        """Column -> value. The recorder calls this once per step; counters that restart cover the time since then."""
        ...


class GroupScorer(Protocol):
    """Scores completions one by one as they end, and then the whole group (`rewards.scoring.scorer.Scorer`)."""

    @property
    def compares(self) -> bool:
        """True if rewards mean something only among the completions of one group."""
        ...

    async def score(self, prompt: Prompt, completion: Completion) -> Score: ...
    async def score_group(
        self, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> tuple[Score, ...]: ...
    def metrics(self) -> dict[str, float]: ...


class PromptRollout(Protocol):
    """Turns a training prompt into a scored group (`rollout.TrainingRollout`)."""

    async def __call__(self, prompt: Prompt) -> ScoredGroup: ...


class SignalCheck(Protocol):
    """Says why a group teaches nothing, "" if it does teach (`signal_check.LossSignalCheck`)."""

    def __call__(self, group: ScoredGroup) -> str: ...


class Source(MetricSource, Protocol):
    """Where scored groups come from: `buffer.GroupBuffer` (rollouts) or `dataset_source.DatasetSource`."""

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin; background work runs as children of `tasks`."""

    async def take(self, num_groups: int) -> list[ScoredGroup]:
        """The next groups, in order."""
        ...

    def replaced(self) -> Mapping[str, int]:
        """Groups that were replaced on the way to those of the last `take`, by reason."""
        ...

    async def release(self, num_groups: int) -> None:
        """Allow that many new groups: their predecessors were trained on, and the weights were pushed."""

    def stop(self) -> None:
        """Cancel background work."""

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Call it before `start`."""


class Learner(Protocol):
    """The learner as the loop sees it: an object in this process or ranks on a cluster."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    async def update(self, batch: Batch) -> Update: ...
    async def refresh_reference(self) -> None: ...


class Publisher(Protocol):
    """Pushes the learner's weights to every engine."""

    @property
    def version(self) -> int:
        """The weight version that the engines serve."""
        ...

    async def publish(self, groups: Sequence[ScoredGroup]) -> None:
        """Push as `version` + 1. `groups` are the newest samples, for measuring that learner and engines agree."""


class Evaluator(Protocol):
    """Measures the current policy on held-out data."""

    async def evaluate(self) -> Evaluation: ...


class Checkpointer(Protocol):
    """Writes checkpoints."""

    async def save(self, step: int) -> None: ...


class Recorder(Protocol):
    """Keeps the run's record (`run.recorder.RunRecorder`)."""

    def phase(self, name: str) -> AbstractAsyncContextManager[None]:
        """Time a part of a step. Raises `TimeoutError` with the name of the part if it exceeds the deadline."""
        ...

    def deadline(self, name: str) -> AbstractAsyncContextManager[None]:
        """Like `phase`, for work that has no column in the step's row."""
        ...

    async def step(self, done: Step) -> None:
        """Record a step. Its row is on disk when this returns."""

    async def distinguishability(self, num_steps: int) -> float:
        """How well the policy distinguished chosen from rejected in the round of `num_steps` that just ended."""
        ...

    async def evaluation(self, step: int, result: Evaluation) -> None: ...
