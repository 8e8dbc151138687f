"""The offline source: groups that stand in a data set instead of being sampled.

A demonstration is a scored group of one completion with reward 1, a labelled completion one with reward 1 or 0, a
preference pair one of two completions with rewards 1 and 0. So the loop, the batch and the learner cannot tell where a
group came from. Order and resume are those of the prompts: a function of the seed and one number.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from volley.rollout.data.chat import completion_text
from volley.rollout.data.prompts import PromptSet
from volley.rollout.errors import DataError, ModelError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup

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

    def _completions(self, prompt: Prompt) -> list[tuple[tuple[int, ...], str, float]]:
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

    def _ids(self, text: str) -> tuple[int, ...]:
        ids = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        end = self._tokenizer.eos_token_id
        return tuple(ids) if ids[-1:] == [end] else (*ids, end)


class DatasetSource:
    """Hands out a data set's groups in order, with the methods of `buffer.GroupBuffer`. version: the current weight
    version, which groups are stamped with, so that none is ever stale."""

    def __init__(self, groups: DatasetGroups, version: Callable[[], int]) -> None:
        self._groups = groups
        self._version = version
        self._next_ordinal = 0

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Nothing has to run in the background."""

    async def take(self, num_groups: int) -> list[ScoredGroup]:
        """The next groups of the order."""
        first = self._next_ordinal
        self._next_ordinal += num_groups
        version = self._version()
        return [self._groups.group_at(ordinal, version) for ordinal in range(first, self._next_ordinal)]

    def replaced(self) -> dict[str, int]:
        """Nothing ever is."""
        return {}

    async def release(self, num_groups: int) -> None:
        """There are no slots."""

    def stop(self) -> None:
        """Nothing is under way."""

    def accounting(self) -> dict[str, int]:
        """issued, trained, queued, in_flight, in groups. Over-long rows are no part of the order, so never issued."""
        return {"issued": self._next_ordinal, "trained": self._next_ordinal, "queued": 0, "in_flight": 0}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the frontier of the order."""
        return {"next_ordinal": self._next_ordinal}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._next_ordinal = state["next_ordinal"]
