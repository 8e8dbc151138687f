"""The input and the output of a reward, as plain values that can travel between processes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the verifiers can be used without numpy
    from volley.rollout.types import Completion, Prompt

TIMED_OUT = "timed out after"
"""How the reason begins if a time limit ended the scoring."""
ITEM_ARGUMENTS = ("prompt", "response", "answer", "num_tokens", "truncated")


class Unscorable(Exception):
    """Raised by a reward that cannot judge a row at all, for example because its gold answer is invalid.

    The completion then gives no training signal and is counted under this reason. It is neither correct nor wrong.
    """


@dataclass(frozen=True, slots=True)
class Item:
    """One completion to be scored. Picklable if the row is."""

    prompt: str
    """The prompt as the model read it, with the chat template applied."""
    response: str
    """The text of the completion."""
    answer: str
    """The gold answer; "" if the data has none."""
    num_tokens: int
    """The number of generated tokens in the completion."""
    truncated: bool
    """Whether the completion ended at the token limit."""
    row: Mapping[str, Any]
    """The other columns of the data."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """For group terms: the chat behind the prompt; () if there is none."""
    accuracy: float = math.nan
    """For group terms: the verdict of the run's verifier; NaN if there is none."""

    @classmethod
    def of(cls, prompt: "Prompt", completion: "Completion", accuracy: float = math.nan) -> "Item":
        """The item of a completion. accuracy: see the field."""
        num_tokens = completion.num_sampled
        truncated = completion.truncated
        text, answer = prompt.text, prompt.answer
        return cls(text, completion.text, answer, num_tokens, truncated, prompt.row, prompt.messages, accuracy)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments offered to a reward. They override data columns of the same name."""
        return {**self.row, **{name: getattr(self, name) for name in ITEM_ARGUMENTS}}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one term for one item."""

    value: float
    """NaN if the term failed."""
    error: str = ""
    """Why the term failed; "" if it did not."""
    seconds: float = field(default=0.0, compare=False)
    """The time that the term took."""
