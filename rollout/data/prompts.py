"""Prompts ready for the engine, in an order that is a pure function of (seed, epoch, index).

Chat messages (and text, with `as_chat`) are rendered with the model's chat template and tokenised without adding
special tokens, because the template contains them. Other text is unchanged and tokenised with the tokenizer's defaults.
All prompts are tokenised at the start, to find the over-long ones, and again one by one when they are requested. Only
the rows and a number per row stay in memory.
"""

import copy
import dataclasses
import hashlib
import json
from array import array
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from volley.rollout.config import DataConfig
from volley.rollout.data.chat import check_messages, render_chat
from volley.rollout.data.rows import Rows
from volley.rollout.errors import DataError
from volley.rollout.types import Prompt, as_token_ids

BATCH_SIZE = 1024


class PromptSet:
    """The prompts of a data set."""

    num_dropped_long: int
    """Rows left out because they are too long."""
    fingerprint: str
    """SHA-256 of everything that determines `prompt_at` except seed and tokenizer: the rows, how they are rendered, and
    which were left out."""

    def __init__(self, rows: Rows, tokenizer: Any, data: DataConfig, seed: int) -> None:
        """tokenizer: of `transformers`.

        Raises `DataError` for a prompt that is neither text nor a chat, for an answer without `data.answer_after`, for
        a prompt of more than `data.max_prompt_tokens` tokens (0: no limit) if `data.on_long` is "refuse", and if no
        prompt is left. Raises `ModelError` for a chat without a chat template.
        """
        self._rows = rows
        self._tokenizer = tokenizer
        self._data = data
        self._seed = seed
        self._kept = array("q", range(len(rows)))
        self._keep(self._short_enough())

    def __len__(self) -> int:
        return len(self._kept)

    def where(self, index: int) -> str:
        """The location of row `index`, for error messages."""
        return self._rows.where(index)

    def prompt_at(self, ordinal: int) -> Prompt:
        """The prompt at position `ordinal % len` in the order of epoch `ordinal // len`."""
        epoch, place = divmod(ordinal, len(self))
        index = self._kept[epoch_order(self._seed, epoch, len(self))[place]]
        return dataclasses.replace(self._render([index])[0], ordinal=ordinal)

    def in_order(self) -> Iterator[Prompt]:
        """Every prompt once, in the order of the rows, with ordinals 0, 1, ...; for evaluation."""
        indices = iter(self._kept)
        ordinal = 0
        while batch := list(islice(indices, BATCH_SIZE)):
            for prompt in self._render(batch):
                yield dataclasses.replace(prompt, ordinal=ordinal)
                ordinal += 1

    def without(self, indices: Collection[int]) -> "PromptSet":
        """The same prompts without these rows, which count as too long; raises `DataError` if none is left."""
        other = copy.copy(self)
        other._keep([index for index in self._kept if index not in indices])
        return other

    def _keep(self, indices: Sequence[int]) -> None:
        if not indices:
            raise DataError(
                f"{self._rows.spec}: all {len(self._rows)} rows are too long (data.max_prompt_tokens is "
                f"{self._data.max_prompt_tokens}, and the model has its own limit), so none is left; shorten the texts "
                "or raise the limit."
            )
        self._kept = array("q", indices)
        self.num_dropped_long = len(self._rows) - len(indices)
        data = self._data
        rendering = [self._rows.fingerprint, data.answer_after, data.prompt_template, data.as_chat, data.system]
        self.fingerprint = hashlib.sha256(json.dumps(rendering).encode() + self._kept.tobytes()).hexdigest()

    def _short_enough(self) -> list[int]:
        limit = self._data.max_prompt_tokens
        kept = []
        for prompt in self.in_order():
            if not limit or len(prompt.token_ids) <= limit:
                kept.append(prompt.index)
            elif self._data.on_long == "refuse":
                raise DataError(
                    f"{self.where(prompt.index)}: the prompt has {len(prompt.token_ids)} tokens, but "
                    f"data.max_prompt_tokens is {limit}; shorten it, raise the limit, or set data.on_long: drop."
                )
        return kept

    def _render(self, indices: Sequence[int]) -> list[Prompt]:
        """The prompts of these rows, with ordinal 0."""
        rendered = [self._text(index) for index in indices]
        token_ids: list[Sequence[int]] = [()] * len(indices)
        for is_chat in (False, True):
            places = [i for i, (_, messages) in enumerate(rendered) if bool(messages) is is_chat]
            if places:
                texts = [rendered[i][0] for i in places]
                encoded = self._tokenizer(
                    texts, add_special_tokens=not is_chat, return_attention_mask=False, verbose=False
                )["input_ids"]
                for i, ids in zip(places, encoded, strict=True):
                    token_ids[i] = ids
        return [
            self._prompt(index, text, ids, messages)
            for index, (text, messages), ids in zip(indices, rendered, token_ids, strict=True)
        ]

    def _prompt(self, index: int, text: str, token_ids: Sequence[int], messages: Sequence[dict[str, Any]]) -> Prompt:
        if not token_ids:
            raise DataError(f"{self.where(index)}: the prompt has no tokens; give it some text, or remove the row.")
        row = {name: value for name, value in self._rows.values[index].items() if name not in ("prompt", "answer")}
        return Prompt(0, index, text, as_token_ids(token_ids), self._answer(index), row, tuple(messages))

    def _text(self, index: int) -> tuple[str, Sequence[dict[str, Any]]]:
        """The text of a prompt, and the chat from which it was rendered; () for none."""
        data, value, where = self._data, self._rows.values[index].get("prompt"), self.where(index)
        if isinstance(value, str):
            if not value.strip():
                raise DataError(f"{where}: the prompt is empty; give it text, or remove the row.")
            text = data.prompt_template.replace("{prompt}", value) if data.prompt_template else value
            if not data.as_chat:
                return text, ()
            messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
        else:
            messages = check_messages(value, where)
            if data.prompt_template:
                raise DataError(f"{where}: the prompt is a chat, so data.prompt_template does not apply; remove it.")
        if data.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": data.system}, *messages]
        return render_chat(self._tokenizer, messages, where), messages

    def _answer(self, index: int) -> str:
        value = self._rows.values[index].get("answer")
        if value is None:
            return ""
        answer = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if not self._data.answer_after:
            return answer
        _, found, after = answer.rpartition(self._data.answer_after)
        if not found:
            raise DataError(
                f"{self.where(index)}: the answer does not contain '{self._data.answer_after}' (data.answer_after); "
                "fix the row, or remove data.answer_after."
            )
        return after.strip()


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_rows: int) -> Sequence[int]:
    """A permutation of range(num_rows), sorted by the hash of (seed, epoch, row).

    It never changes, whereas `random.shuffle` may differ between versions of Python.
    """

    def key(row: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{epoch}/{row}".encode(), digest_size=16).digest()

    return array("q", sorted(range(num_rows), key=key))
