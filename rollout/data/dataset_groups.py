"""The groups of a data set: its own completions as scored groups, instead of sampled ones.

A demonstration is a scored group of one completion with reward 1, a labelled completion one with reward 1 or 0, a
preference pair one of two completions with rewards 1 and 0. The loop, the batch and the learner therefore treat them
like sampled groups. Order and resume are those of the prompts: a function of the seed and one number.
"""

from typing import Any

import numpy as np

from volley.rollout.data.chat import completion_text
from volley.rollout.data.prompts import PromptSet
from volley.rollout.errors import DataError, ModelError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, TokenIds, as_token_ids

COLUMNS_OF = {
    "demonstrations": ("completion",),
    "pairs": ("chosen", "rejected"),
    "labels": ("completion", "label"),
}
"""What a data set must have beside prompts to serve a loss with such a signal."""


class DatasetGroups:
    """Rows with completions as groups, in the order of `prompts`. signal: what is in the rows, see `COLUMNS_OF`.

    max_length: tokens of prompt + completion + end token at most. on_long: "drop" (counted in num_dropped_long,
    together with over-long prompts) or "refuse". Raises `DataError` for a completion that is empty, no text, or
    over-long and refused, for a pair with equal sides and for a label that is not true or false; `ModelError` for a
    tokenizer without an end token, which could not be taught to stop.
    """

    def __init__(self, prompts: PromptSet, tokenizer: Any, signal: str, max_length: int, on_long: str) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("model: its tokenizer has no end token (eos_token), which completions must end with.")
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._signal = signal
        too_long = set()
        for prompt in prompts.in_order():
            num_tokens = len(prompt.token_ids) + max(len(ids) for ids, _, _ in self._completions(prompt))
            if num_tokens <= max_length:
                continue
            if on_long == "refuse":
                raise DataError(
                    f"{prompts.where(prompt.index)}: prompt and completion have {num_tokens} tokens, but the model "
                    f"takes {max_length}; shorten them, or set data.on_long: drop."
                )
            too_long.add(prompt.index)
        self._prompts = prompts.without(too_long) if too_long else prompts

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def num_dropped_long(self) -> int:
        return self._prompts.num_dropped_long

    @property
    def fingerprint(self) -> str:
        return self._prompts.fingerprint

    def prompt_at(self, ordinal: int) -> Prompt:
        """The prompt at a place of the seeded order."""
        return self._prompts.prompt_at(ordinal)

    def group_at(self, ordinal: int, version: int) -> ScoredGroup:
        """The group at a place of the seeded order; `version`: the weights it counts as sampled from."""
        return self.group_of(self.prompt_at(ordinal), version)

    def group_of(self, prompt: Prompt, version: int) -> ScoredGroup:
        """What the data set has for `prompt`, which is one of its own."""
        found = self._completions(prompt)
        completions = (
            Completion.single(ids, np.zeros(len(ids)), text, "data", version, version) for ids, text, _ in found
        )
        return ScoredGroup(prompt, tuple(completions), tuple(Score(reward, {}) for _, _, reward in found))

    def _completions(self, prompt: Prompt) -> list[tuple[TokenIds, str, float]]:
        """Tokens, text and reward of each completion of the row."""
        row, where = prompt.row, self._prompts.where(prompt.index)
        if self._signal == "pairs":
            chosen, rejected = (completion_text(row[name], f"{where}: {name}") for name in ("chosen", "rejected"))
            if chosen == rejected:
                raise DataError(
                    f"{where}: chosen and rejected are the same text, so neither is to be preferred; remove the row "
                    "(volley audit counts them)."
                )
            return [(self._ids(chosen), chosen, 1.0), (self._ids(rejected), rejected, 0.0)]
        text, reward = completion_text(row["completion"], where), 1.0
        if self._signal == "labels":
            if not isinstance(row["label"], bool):
                raise DataError(
                    f"{where}: the label is {row['label']!r}; it must be true (desirable) or false, without quotes."
                )
            reward = float(row["label"])
        return [(self._ids(text), text, reward)]

    def _ids(self, text: str) -> TokenIds:
        ids = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        end = self._tokenizer.eos_token_id
        return as_token_ids(ids if ids[-1:] == [end] else [*ids, end])
