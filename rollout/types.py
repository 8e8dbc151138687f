"""The stages of the data flow, one frozen dataclass each: Prompt -> Group -> ScoredGroup.

A stage returns a new type; no field is None until later. Token ids, log-probs and masks are numpy arrays everywhere: in
memory, on the wire and on disk. Treat them as read-only.

Legend of the shapes: G completions of a prompt, P tokens of a prompt, L tokens of a segment, S tokens that the policy
sampled in a completion.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]
Logprobs = NDArray[np.float32]
Mask = NDArray[np.bool_]


def as_token_ids(ids: "Sequence[int] | NDArray[Any]") -> TokenIds:
    """Token ids as an int32 array."""
    return _as_array(ids, np.int32)


def as_logprobs(values: "Sequence[float] | NDArray[Any]") -> Logprobs:
    """Log-probs as a float32 array."""
    return _as_array(values, np.float32)


def _as_array(values: Any, dtype: Any) -> Any:
    # For sequences `fromiter` takes half the time of `asarray`.
    if isinstance(values, np.ndarray):
        return values.astype(dtype, copy=False)
    return np.fromiter(values, dtype, len(values))


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One row of the data set, ready for the engine."""

    ordinal: int
    """Position in the seeded order over all epochs (epoch * rows + place); unique in a run, the ticket number of the
    accounting and the root of the sampling seed."""
    index: int
    """Row number in the data set."""
    text: str
    """The text of the tokens, with the chat template applied."""
    token_ids: TokenIds
    """[P]"""
    answer: str
    """The gold answer, "" where the data has none."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Every other column, passed to the rewards."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """The chat that was rendered into `text`, () where the data has text. Not kept on disk."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prompt):
            return NotImplemented
        return (self.ordinal, self.index, self.text, self.answer, self.row, self.messages) == (
            other.ordinal,
            other.index,
            other.text,
            other.answer,
            other.row,
            other.messages,
        ) and np.array_equal(self.token_ids, other.token_ids)

    def __hash__(self) -> int:
        return hash((self.ordinal, self.index))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample the completions of a prompt."""

    num_samples: int = 1
    """Completions per prompt (G)."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 512
    """Upper limit of sampled tokens per completion."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are not part of its text."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of sampled tokens: places `start` to `end` (exclusive) of a segment, and the weight versions under which
    its first and its last token were sampled."""

    start: int
    end: int
    first_version: int
    last_version: int


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A contiguous stretch of tokens that the model saw: what the policy sampled, and what it observed between.

    The first segment of a completion follows the prompt's tokens. A later one starts from a new context (a
    rewritten history), whose tokens it contains as not sampled.
    """

    token_ids: TokenIds
    """[L]"""
    logprobs: Logprobs
    """[L], natural log-probs under the distribution that sampled (behaviour policy mu, temperature and top-p applied);
    0 where the token was not sampled."""
    sampled: Mask
    """[L], True for tokens that the policy sampled, or that a data set's completion shows it: the loss mask."""
    spans: tuple[Span, ...]
    """The sampled runs, in order."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return (
            self.spans == other.spans
            and np.array_equal(self.token_ids, other.token_ids)
            and np.array_equal(self.logprobs, other.logprobs)
            and np.array_equal(self.sampled, other.sampled)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Completion:
    """What happened after the prompt: one response, or an episode of several turns; sampled or from a data set."""

    segments: tuple[Segment, ...]
    """At least one. A single turn is one segment, all sampled."""
    text: str
    """The response, decoded, without special tokens and without the stop string."""
    finish_reason: str
    """ "stop", "length" (truncated at max_tokens), or "data" for a completion of a data set, which no one sampled."""

    @classmethod
    def single(
        cls,
        token_ids: "Sequence[int] | NDArray[Any]",
        logprobs: "Sequence[float] | NDArray[Any]",
        text: str,
        finish_reason: str,
        first_version: int,
        last_version: int,
    ) -> "Completion":
        """A completion of one turn. token_ids: [S], with the end token if the model gave one; logprobs: [S]."""
        ids = as_token_ids(token_ids)
        span = Span(0, len(ids), first_version, last_version)
        segment = Segment(ids, as_logprobs(logprobs), np.ones(len(ids), dtype=np.bool_), (span,))
        return cls((segment,), text, finish_reason)

    @property
    def token_ids(self) -> TokenIds:
        """All tokens of all segments."""
        return self._joined("token_ids")

    @property
    def logprobs(self) -> Logprobs:
        """The log-probs of `token_ids`."""
        return self._joined("logprobs")

    @property
    def sampled(self) -> Mask:
        """Which of `token_ids` were sampled."""
        return self._joined("sampled")

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of all segments."""
        if len(self.segments) == 1:
            return self.segments[0].spans
        return tuple(span for segment in self.segments for span in segment.spans)

    @property
    def num_sampled(self) -> int:
        """S: tokens that the policy sampled; the completion's length in every metric, reward and normaliser."""
        return sum([span.end - span.start for span in self.spans])

    @property
    def first_version(self) -> int:
        """The oldest weight version that sampled any of its tokens."""
        return min([span.first_version for span in self.spans])

    @property
    def last_version(self) -> int:
        """The newest weight version that sampled any of its tokens."""
        return max([span.last_version for span in self.spans])

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def is_sampled(self) -> bool:
        return self.finish_reason != "data"

    def _joined(self, name: str) -> Any:
        parts = [getattr(segment, name) for segment in self.segments]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What an engine reports about the weights that it loaded."""

    version: int
    digest: str
    """A hash of the model's parameters as they lie in memory, over all ranks: equal for engines of one kind. The
    learner cannot compute it."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the rewards say about one completion."""

    reward: float
    """The weighted sum; NaN when the completion is unscorable."""
    terms: Mapping[str, float]
    """Each reward's raw value by name, NaN where it failed."""
    unscorable: str = ""
    """"" or the reason (a reward raised, timed out, or returned no number). Unscorable completions carry no signal."""
    accuracy: float = math.nan
    """1.0 or 0.0 by the run's verifier, NaN where no verifier is among the rewards."""
    extracted: str | None = ""
    """The answer that the verifier found in the response; "" where it found none (which differs from a wrong answer in
    the breakdown, though both are worth 0); None where the verifier does not report one."""

    @property
    def is_answerless(self) -> bool:
        """Judged wrong because the response gives no answer."""
        return self.extracted == "" and self.accuracy == 0.0


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """One prompt, its G completions, and their G scores: what every method learns from."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """[G], NaN where unscorable."""
        return tuple(score.reward for score in self.scores)

    @property
    def first_version(self) -> int:
        """The oldest weights that sampled any token of the group."""
        return min(completion.first_version for completion in self.completions)

    @property
    def has_signal(self) -> bool:
        """At least two scorable completions whose rewards differ, which is what group-relative methods learn from."""
        scorable = [reward for reward in self.rewards if not math.isnan(reward)]
        return len(scorable) > 1 and max(scorable) != min(scorable)
