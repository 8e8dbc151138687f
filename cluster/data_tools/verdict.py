"""A row of the file that `volley verify` checks, and the verdict of one verifier on it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volley.rewards.config import RewardConfig
from volley.rewards.item import TIMED_OUT
from volley.rollout.types import Score

OUTCOMES = ("right", "partly right", "wrong", "no answer", "unscorable", "time-out")
_LABEL = re.compile(r"^reward '[^']*':? ")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the file."""

    where: str
    """The file and line, for messages."""
    prompt: str
    response: str | None
    """None if it is not text."""
    answer: str
    label: bool | None
    """None if it is neither true nor false, or if there is no label."""
    is_labelled: bool
    """Whether the row has a label column."""
    num_tokens: int
    truncated: bool
    values: Mapping[str, Any]
    """All other columns; verifiers may use them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one verifier for one row."""

    outcome: str
    """One of `OUTCOMES`."""
    value: float = math.nan
    """The reward."""
    given: str = ""
    """The answer that the verifier extracted from the response, or ""."""
    reason: str = ""
    """Why the row is unscorable."""
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return self.outcome == "right"

    @property
    def is_scored(self) -> bool:
        return self.outcome not in ("unscorable", "time-out")


def make_verdict(term: RewardConfig, score: Score, seconds: float) -> Verdict:
    """Convert a score. The outcome "no answer" exists only for verifiers that report the answer that they extract."""
    value = score.terms[term.label]
    given = score.extracted or ""
    if score.unscorable:
        is_late = score.unscorable.startswith(f"reward '{term.label}': {TIMED_OUT}")
        reason = _LABEL.sub("", score.unscorable)
        return Verdict("time-out" if is_late else "unscorable", math.nan, given, reason, seconds)
    if value == 1.0:
        outcome = "right"
    elif value > 0.0:
        outcome = "partly right"
    else:
        outcome = "no answer" if score.is_answerless else "wrong"
    return Verdict(outcome, value, given, "", seconds)
