"""The token sequences that a step learns from, as flat arrays.

A row is one segment of a completion, ready for the model: context, then what was sampled and observed. A completion has
one row or more, next to each other. Nothing here is a Python object per token or per row.

Legend: N completions, R rows (R >= N), K tokens of all rows, M trained tokens of all rows.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volley.rollout.types import Completion, Logprobs, Mask, TokenIds

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]


class ArrayFields:
    """Compares a dataclass with array fields by their contents."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_equal(getattr(self, each.name), getattr(other, each.name)) for each in fields(self))  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, eq=False)
class Rows(ArrayFields):
    """Rows of N completions. Treat the arrays as read-only."""

    token_ids: TokenIds
    """[K], row after row. The first row of a completion begins with its prompt."""
    trained: Mask
    """[K], True for the tokens that the loss sees: sampled ones, and those of a data set's completion."""
    logprobs: Logprobs
    """[K], behaviour log-probs in nats: of the distribution that sampled the token. 0 where it is not trained."""
    row_starts: Indices
    """[R + 1], where each row begins in K, and K."""
    completion_starts: Indices
    """[N + 1], where the rows of each completion begin in R, and R."""
    trained_per_row: Indices
    """[R], trained tokens of each row."""
    staleness: Indices
    """[N], weight versions between sampling the completion's first token and the update."""

    @classmethod
    def from_completions(cls, items: Iterable[tuple[TokenIds, Completion]], version: int) -> "Rows":
        """Rows of (prompt, completion) pairs. version: of the weights that are about to be updated."""
        ids: list[TokenIds] = []
        trained: list[Mask] = []
        logprobs: list[Logprobs] = []
        lengths: list[int] = []
        trained_per_row: list[int] = []
        num_rows: list[int] = []
        staleness: list[int] = []
        longest_prompt = np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.float32)
        for prompt, completion in items:
            if len(prompt) > len(longest_prompt[0]):
                longest_prompt = np.zeros(2 * len(prompt), dtype=np.bool_), np.zeros(2 * len(prompt), dtype=np.float32)
            size = len(prompt)
            ids.append(prompt)
            trained.append(longest_prompt[0][:size])
            logprobs.append(longest_prompt[1][:size])
            for segment in completion.segments:
                ids.append(segment.token_ids)
                trained.append(segment.sampled)
                logprobs.append(segment.logprobs)
                lengths.append(size + len(segment.token_ids))
                trained_per_row.append(sum([span.end - span.start for span in segment.spans]))
                size = 0
            num_rows.append(len(completion.segments))
            staleness.append(version - completion.first_version)
        return cls(
            _concatenated(ids, np.int32),
            _concatenated(trained, np.bool_),
            _concatenated(logprobs, np.float32),
            starts_of(lengths),
            starts_of(num_rows),
            np.array(trained_per_row, dtype=np.int64),
            np.array(staleness, dtype=np.int64),
        )

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """The completions of all parts, in order."""
        return cls(
            _concatenated([part.token_ids for part in parts], np.int32),
            _concatenated([part.trained for part in parts], np.bool_),
            _concatenated([part.logprobs for part in parts], np.float32),
            starts_of(_concatenated([part.lengths for part in parts], np.int64)),
            starts_of(_concatenated([np.diff(part.completion_starts) for part in parts], np.int64)),
            _concatenated([part.trained_per_row for part in parts], np.int64),
            _concatenated([part.staleness for part in parts], np.int64),
        )

    @property
    def num_completions(self) -> int:
        return len(self.completion_starts) - 1

    @property
    def num_rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def num_trained(self) -> int:
        """M."""
        return int(self.trained_per_row.sum())

    @property
    def lengths(self) -> Indices:
        """[R], tokens of each row."""
        return np.diff(self.row_starts)

    @property
    def rows_per_completion(self) -> Indices:
        """[N]."""
        return np.diff(self.completion_starts)

    @property
    def trained_per_completion(self) -> Indices:
        """[N], the lengths that losses and metrics count."""
        return np.diff(starts_of(self.trained_per_row)[self.completion_starts])

    @property
    def token_starts(self) -> Indices:
        """[N + 1], where the tokens of each completion begin in K."""
        return self.row_starts[self.completion_starts]

    def part(self, start: int, end: int) -> "Rows":
        """Completions `start` to `end` (exclusive). The tokens are views."""
        first, last = int(self.completion_starts[start]), int(self.completion_starts[end])
        low, high = int(self.row_starts[first]), int(self.row_starts[last])
        return Rows(
            self.token_ids[low:high],
            self.trained[low:high],
            self.logprobs[low:high],
            self.row_starts[first : last + 1] - low,
            self.completion_starts[start : end + 1] - first,
            self.trained_per_row[first:last],
            self.staleness[start:end],
        )

    def take(self, completions: Indices) -> "Rows":
        """These completions, in this order."""
        starts = self.token_starts
        bounds = list(zip(starts[completions].tolist(), starts[completions + 1].tolist(), strict=True))
        rows = ranges(self.completion_starts, completions)
        return Rows(
            _concatenated([self.token_ids[low:high] for low, high in bounds], np.int32),
            _concatenated([self.trained[low:high] for low, high in bounds], np.bool_),
            _concatenated([self.logprobs[low:high] for low, high in bounds], np.float32),
            starts_of(self.lengths[rows]),
            starts_of(self.rows_per_completion[completions]),
            self.trained_per_row[rows],
            self.staleness[completions],
        )


@dataclass(frozen=True, slots=True, eq=False)
class PlannedRows(ArrayFields):
    """One rank's part of some rows, in the order in which it computes them."""

    rows: Rows
    sizes: tuple[int, ...]
    """Completions of each micro-batch, one after the other. All ranks have equally many micro-batches; in one of size 0
    a rank only takes part in the collectives of ZeRO."""
    reference: Floats | None = None
    """[M], recorded log-probs of the reference for the trained tokens; None where there is no record."""


def starts_of(lengths: "Sequence[int] | Indices") -> Indices:
    """[len + 1], where each of consecutive parts begins, and the total."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def ranges(starts: Indices, picked: Indices) -> Indices:
    """The members of the picked parts, part after part; part i has starts[i] to starts[i + 1]."""
    lengths = np.diff(starts)[picked]
    begins = starts_of(lengths)
    return np.arange(begins[-1]) + np.repeat(starts[picked] - begins[:-1], lengths)


def _concatenated(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts, dtype=dtype, casting="same_kind") if parts else np.zeros(0, dtype=dtype)


def _equal(left: Any, right: Any) -> bool:
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else bool(left == right)


def pairwise_slices(starts: Indices) -> list[slice]:
    """The parts that `starts_of` describes, as slices."""
    return [slice(low, high) for low, high in itertools.pairwise(starts.tolist())]
