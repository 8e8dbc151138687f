"""What a reward sees, and how it says that there is nothing to say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volley.rollout.types import Completion, Prompt

TIMED_OUT = "timed out after"
"""How the reason begins where a time limit ended the scoring."""
ITEM_ARGUMENTS = ("prompt", "response", "answer", "num_tokens", "truncated")


class Unscorable(Exception):
    """Raised by a reward that cannot judge a row at all, for instance because its gold answer means nothing. The
    completion then carries no signal and is counted with this reason; it is neither right nor wrong."""


@dataclass(frozen=True, slots=True)
class Item:
    """One completion to be scored, as plain values that can travel to another process.

    prompt: as the model read it (chat template applied). answer: the gold answer, "" where the data has none.
    num_tokens: of the completion. truncated: it ended at the token limit. row: the other columns of the data.
    For terms that see whole groups, messages: the chat behind the prompt, () where there is none; accuracy: what the
    run's verifier said, NaN where it could not or there is none.
    """

    prompt: str
    response: str
    answer: str
    num_tokens: int
    truncated: bool
    row: Mapping[str, Any]
    messages: tuple[Mapping[str, Any], ...] = ()
    accuracy: float = math.nan

    @classmethod
    def of(cls, prompt: Prompt, completion: Completion, accuracy: float = math.nan) -> "Item":
        num_tokens = len(completion.token_ids)
        truncated = completion.truncated
        text, answer = prompt.text, prompt.answer
        return cls(text, completion.text, answer, num_tokens, truncated, prompt.row, prompt.messages, accuracy)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments offered to a reward; ours win over data columns of the same name."""
        return {**self.row, **{name: getattr(self, name) for name in ITEM_ARGUMENTS}}
