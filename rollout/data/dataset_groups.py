"""The groups of a data set: its own completions as scored groups, instead of sampled ones.

A demonstration is a scored group of one completion with reward 1, a labelled completion one with reward 1 or 0, a
preference pair one of two completions with rewards 1 and 0. The loop, the batch and the learner therefore treat them
like sampled groups. Order and resume are those of the prompts: a function of the seed and one number.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from volley.rollout.data.chat import completion_text
from volley.rollout.data.prompts import PromptSet
from volley.rollout.errors import DataError, ModelError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, TokenIds, as_token_ids

ReadCompletions = Callable[[Mapping[str, Any], Callable[[str], str], str], list[tuple[str, float]]]
"""Reads the completions of a row and their rewards. Arguments: the row; a function that reads a column as text; the
row's place, for errors. Raises `DataError` for a row that it cannot read."""


class DatasetGroups:
    """The rows of a data set as scored groups, in the order of `prompts`."""

    def __init__(
        self, prompts: PromptSet, tokenizer: Any, read: ReadCompletions, max_length: int, on_long: str
    ) -> None:
        """read: finds completions and rewards in a row. max_length: limit of prompt + completion + end token, in
        tokens. on_long: "drop" (counted in num_dropped_long, together with over-long prompts) or "refuse".

        Raises `DataError` for a row that `read` refuses or that is over-long and refused, and `ModelError` for a
        tokenizer without an end token, because the model could not learn to stop.
        """
        if tokenizer.eos_token_id is None:
            raise ModelError("model: its tokenizer has no end token (eos_token), which completions must end with.")
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._read = read
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
        """The group of a prompt of this data set."""
        found = self._completions(prompt)
        completions = (
            Completion.single(ids, np.zeros(len(ids)), text, "data", version, version) for ids, text, _ in found
        )
        return ScoredGroup(prompt, tuple(completions), tuple(Score(reward, {}) for _, _, reward in found))

    def _completions(self, prompt: Prompt) -> list[tuple[TokenIds, str, float]]:
        """Tokens, text and reward of each completion of the row."""
        row, where = prompt.row, self._prompts.where(prompt.index)

        def text_of(column: str) -> str:
            return completion_text(row[column], where if column == "completion" else f"{where}: {column}")

        return [(self._ids(text), text, reward) for text, reward in self._read(row, text_of, where)]

    def _ids(self, text: str) -> TokenIds:
        ids = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        end = self._tokenizer.eos_token_id
        return as_token_ids(ids if ids[-1:] == [end] else [*ids, end])
