"""The offline source: groups that stand in a data set instead of being sampled. Here demonstrations, for SFT.

A demonstration is a scored group of one completion with reward 1, so the loop, the batch and the learner cannot tell
where it came from. Order and resume are those of the prompts: a function of the seed and one number.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from rollout.chat import completion_text
from rollout.errors import DataError, ModelError
from rollout.prompts import PromptSet
from rollout.types import Completion, Prompt, Score, ScoredGroup


class Demonstrations:
    """Rows with a `completion` column as groups, in the order of `prompts`.

    max_length: tokens of prompt + completion + end token at most. on_long: "drop" (counted in num_dropped_long,
    together with over-long prompts) or "refuse". Raises `DataError` for a completion that is empty, no text, or
    over-long and refused; `ModelError` for a tokenizer without an end token, which could not be taught to stop.
    """

    def __init__(self, prompts: PromptSet, tokenizer: Any, max_length: int, on_long: str) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("model: its tokenizer has no end token (eos_token), which demonstrations must end with.")
        self._prompts = prompts
        self._tokenizer = tokenizer
        too_long = set()
        for prompt in prompts.in_order():
            num_tokens = len(prompt.token_ids) + len(self._completion_ids(prompt))
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

    def group_at(self, ordinal: int, version: int) -> ScoredGroup:
        """The group at a place of the seeded order; `version`: the weights it counts as sampled from."""
        prompt = self._prompts.prompt_at(ordinal)
        ids = self._completion_ids(prompt)
        text = completion_text(prompt.row["completion"], self._prompts.where(prompt.index))
        completion = Completion(ids, (0.0,) * len(ids), text, "stop", version, version)
        return ScoredGroup(prompt, (completion,), (Score(1.0, {}),))

    def _completion_ids(self, prompt: Prompt) -> tuple[int, ...]:
        text = completion_text(prompt.row["completion"], self._prompts.where(prompt.index))
        ids = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        end = self._tokenizer.eos_token_id
        return tuple(ids) if ids[-1:] == [end] else (*ids, end)


class DatasetSource:
    """Hands out demonstrations in order, with the methods of `buffer.GroupBuffer`. version: the current weight version,
    which groups are stamped with, so that no demonstration is ever stale."""

    def __init__(self, demonstrations: Demonstrations, version: Callable[[], int]) -> None:
        self._demonstrations = demonstrations
        self._version = version
        self._next_ordinal = 0

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Nothing has to run in the background."""

    async def take(self, num_groups: int) -> list[ScoredGroup]:
        """The next groups of the order."""
        first = self._next_ordinal
        self._next_ordinal += num_groups
        version = self._version()
        return [self._demonstrations.group_at(ordinal, version) for ordinal in range(first, self._next_ordinal)]

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
