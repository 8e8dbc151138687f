"""Rewards become labels, desirable or not: what KTO learns from, without pairs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from volley.learner.config import SignalConfig
from volley.learner.signals.batch import Batch, Drawn, Evaluator, MicroBatchPart, Signal, SignalTensors
from volley.learner.signals.rows import ArrayFields, Indices, PlannedRows, Rows
from volley.rollout.errors import DataError
from volley.rollout.types import Completion, ScoredGroup, TokenIds


@dataclass(frozen=True, slots=True)
class LabelTensors(SignalTensors):
    """What label losses read."""

    labels_N: Tensor
    """1 for desirable completions, 0 for the others."""
    baseline: float
    """KTO's z, of the whole batch, in nats."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels(ArrayFields, Signal):
    """Whether each completion is desirable."""

    label: ClassVar[str] = "labels"
    from_policy: ClassVar[bool] = True
    how: ClassVar[str] = "labelled by their rewards"
    columns: ClassVar[tuple[str, ...]] = ("completion", "label")

    values: NDArray[np.bool_]
    """[N]"""
    mismatched: Rows | None
    """Prompts with the completions of other prompts, of the whole batch. A shard has its part of them elsewhere."""

    @classmethod
    def make_batch(cls, drawn: Drawn, loss: Any) -> Batch:
        """Metrics: desirable_share."""
        kept = [
            (group.prompt.token_ids, completion, score.reward)
            for group in drawn.groups
            for completion, score in zip(group.completions, group.scores, strict=True)
            if not math.isnan(score.reward)
        ]
        values = np.array([reward >= drawn.config.threshold for _, _, reward in kept], dtype=np.bool_)
        said = [(prompt, completion) for prompt, completion, _ in kept]
        rows, mismatched = (
            Rows.from_completions(said, drawn.version),
            Rows.from_completions(_mismatched(said), drawn.version),
        )
        return Batch(rows, cls(values, mismatched), {"desirable_share": float(values.mean())} if len(values) else {})

    @classmethod
    def reason_against(cls, group: ScoredGroup, config: SignalConfig) -> str:
        return "" if any(not math.isnan(reward) for reward in group.rewards) else "unscorable"

    @classmethod
    def read(cls, row: Mapping[str, Any], text: Callable[[str], str], where: str) -> list[tuple[str, float]]:
        completion = text("completion")
        if not isinstance(row["label"], bool):
            raise DataError(
                f"{where}: the label is {row['label']!r}; it must be true (desirable) or false, without quotes."
            )
        return [(completion, float(row["label"]))]

    @property
    def auxiliary(self) -> Rows | None:
        return self.mismatched

    def take(self, completions: Indices) -> "Labels":
        return Labels(self.values[completions], None)

    def prepare(
        self, evaluator: Evaluator, work: PlannedRows, auxiliary: PlannedRows | None
    ) -> tuple["BaselinedLabels", dict[str, float]]:
        """The baseline z: the mean log-ratio of prompts with other prompts' completions, at least 0; 0 where there are
        none. Metrics: kl_baseline."""
        assert auxiliary is not None, "labels come with mismatched rows"
        log_ratio = evaluator.policy(auxiliary).sum(dtype=np.float64) - evaluator.reference(auxiliary).sum(
            dtype=np.float64
        )
        total, count = evaluator.total(np.array([log_ratio, auxiliary.rows.num_completions])).tolist()
        baseline = max(0.0, total / count) if count else 0.0
        return BaselinedLabels(self.values, baseline), {"kl_baseline": baseline}


@dataclass(frozen=True, slots=True, eq=False)
class BaselinedLabels:
    """Labels with the baseline of their batch."""

    values: NDArray[np.bool_]
    """[N]"""
    baseline: float

    def tensors(self, part: MicroBatchPart) -> LabelTensors:
        return LabelTensors(part.tensor(self.values[part.completions]), self.baseline)


def _mismatched(rows: list[tuple[TokenIds, Completion]]) -> list[tuple[TokenIds, Completion]]:
    """Prompts with the completions of other prompts, every prompt's row and every completion once.

    The rows of each prompt are put next to each other, and completions move on by as many rows as the largest prompt
    has: by one where every prompt has one row, and the i-th of each prompt meets the i-th of the next where all have
    equally many. A prompt with more than half of all rows then meets some of its own completions; those are left out.
    Later segments of an episode begin with a context that contains the prompt, so only first segments are moved.
    """
    by_prompt: dict[bytes, list[tuple[TokenIds, Completion]]] = {}
    for prompt, completion in rows:
        by_prompt.setdefault(prompt.tobytes(), []).append((prompt, completion))
    together = [(key, *row) for key, same in by_prompt.items() for row in same]
    shift = max(map(len, by_prompt.values()), default=0)
    moved = together[shift:] + together[:shift]
    return [
        (prompt, Completion(completion.segments[:1], completion.text, completion.finish_reason))
        for (key, prompt, _), (other, _, completion) in zip(together, moved, strict=True)
        if key != other
    ]
