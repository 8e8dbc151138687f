"""The stages of the flow, one frozen dataclass each: Prompt -> Group -> ScoredGroup.

A stage returns a new type; no field is None until later. Legend of the shapes: G completions of a prompt,
T tokens of a completion.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of the data set, ready for the engine.

    ordinal: position in the seeded order over all epochs (epoch * rows + place); unique in a run, the ticket number
    of accounting and the root of the sampling seed. index: row number in the data set.
    text: what the tokens spell (chat template applied). token_ids: [P]. answer: the gold answer, "" where the data
    has none. row: every other column, handed to the reward. messages: the chat that became `text`, () where the data
    has text; not kept on disk.
    """

    ordinal: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    answer: str
    row: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One response, sampled or from a data set.

    token_ids: [T], with the end token if the model gave one. logprobs: [T], natural log-probs of the distribution
    that was sampled from (behaviour policy mu; temperature and top-p applied). text: decoded, without special tokens
    and without the stop string. finish_reason: "stop", "length" (truncated at max_tokens), or "data" for what nobody
    sampled, because it stands in a data set.
    first_version, last_version: weight versions under which the first and the last token were sampled.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    first_version: int
    last_version: int

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def is_sampled(self) -> bool:
        return self.finish_reason != "data"


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What an engine says of the weights that it loaded. version: theirs. digest: of its model's parameters as they lie
    in memory, of all ranks: equal for engines of one kind, but not what the learner could compute."""

    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class Score:
    """What the rewards say of one completion.

    reward: the weighted sum; NaN when unscorable. terms: each reward's raw value by name (NaN where it failed).
    unscorable: "" or the reason (a reward raised, hung, or gave no number): such a completion carries no signal.
    accuracy: 1.0 or 0.0 by the run's verifier, NaN where no verifier is among the rewards.
    extracted: the answer that the verifier read in the response, "" where it found none (which is not a wrong answer
    in the breakdown, though both are worth 0), None where it does not tell.
    """

    reward: float
    terms: Mapping[str, float]
    unscorable: str = ""
    accuracy: float = math.nan
    extracted: str | None = ""

    @property
    def is_answerless(self) -> bool:
        """Judged, and wrong for want of an answer."""
        return self.extracted == "" and self.accuracy == 0.0


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """One prompt, its G completions, and their G scores: what every method of the field learns from."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """[G], NaN where unscorable."""
        return tuple(score.reward for score in self.scores)

    @property
    def first_version(self) -> int:
        """The oldest weights that any token of the group was sampled from."""
        return min(completion.first_version for completion in self.completions)

    @property
    def has_signal(self) -> bool:
        """At least two scorable completions whose rewards differ: what group-relative methods can learn from."""
        scorable = [reward for reward in self.rewards if not math.isnan(reward)]
        return len(scorable) > 1 and max(scorable) != min(scorable)
