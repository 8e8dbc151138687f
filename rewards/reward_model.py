"""A learned reward model as a term: a Hugging Face sequence-classification model with one output.

    reward = the logit of prompt + response (for Bradley-Terry models any real number, of which only differences within
    a prompt are meaningful)

Requests of concurrent groups are collected while the model is busy, and scored together: sorted by length and
right-padded with an attention mask. The model runs on `device` in its own thread of the driver process. Chat prompts
and their responses go through the reward model's own chat template; text prompts and responses are concatenated.

Left out: models with custom code, process rewards, and bit-exact results. Which responses share a batch depends on
timing, and padding changes the last bits of a sum.
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Outcome
from volley.rewards.terms import all_of, read_options
from volley.rollout.errors import RewardError

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class RewardModelOptions:
    """Options of the reward `reward_model`."""

    model: str
    """A directory or the name of a model on the Hugging Face Hub."""
    device: str = "cpu"
    """The torch device."""
    batch_size: int = 8
    """Number of sequences per forward pass."""
    max_tokens: int = 2048
    """Length limit of prompt and response together. Longer ones lose their beginning and are counted."""
    dtype: str = "fp32"
    """fp32 or bf16."""


class RewardModel:
    """The `GroupTerm` of a reward model. Raises RewardError for wrong options."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._options = options = read_options(RewardModelOptions, config.options, config.name)
        for name in ("batch_size", "max_tokens"):
            if getattr(options, name) < 1:
                raise self._error(f"{name} is {getattr(options, name)}; it must be at least 1")
        if options.dtype not in DTYPES:
            raise self._error(f"dtype is '{options.dtype}'; it must be one of {', '.join(DTYPES)}")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward-model")
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._working: asyncio.Task[None] | None = None
        self._scored = self._truncated = self._batches = 0

    @property
    def compares(self) -> bool:
        """False: each response is scored alone."""
        return False

    async def check(self, group_size: int) -> None:
        """Check the model's configuration; no weights are loaded."""
        from transformers import AutoConfig

        model = self._options.model
        try:
            config = AutoConfig.from_pretrained(model)
        except Exception as error:  # files and hub raise many types
            raise self._error(
                f"'{model}' is not a model directory or hub name that can be loaded ({_line(error)})"
            ) from None
        kinds = config.architectures or ["model of unknown type"]
        if not any("SequenceClassification" in kind for kind in kinds):
            raise self._error(f"'{model}' is a {kinds[0]}; it must be a sequence-classification model with one output")
        if config.num_labels != 1:
            raise self._error(f"'{model}' has {config.num_labels} outputs; a reward model must have one")

    async def start(self) -> None:
        """Load the model. Raises RewardError if that fails."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def close(self) -> None:
        """Cancel waiting requests and release the thread."""
        if self._working is not None:
            self._working.cancel()
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def score_group(self, items: Sequence[Item]) -> list[Outcome]:
        """Raises RewardError if the model itself fails, for example because memory runs out."""
        futures = [asyncio.get_running_loop().create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if self._working is None or self._working.done():
            self._working = asyncio.ensure_future(self._work())
        return await all_of(futures)

    def metrics(self) -> dict[str, float]:
        """Metrics since the previous call.

        scored, truncated: numbers of responses. batch_mean: mean number of sequences per forward pass.
        """
        scored, truncated, batches = self._scored, self._truncated, self._batches
        self._scored = self._truncated = self._batches = 0
        return {
            "scored": float(scored),
            "truncated": float(truncated),
            "batch_mean": scored / batches if batches else math.nan,
        }

    async def _work(self) -> None:
        """Score everything that is waiting, until nothing is left."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # collect all requests of this event-loop turn
        while self._waiting:
            taken = [(item, future) for item, future in self._waiting if not future.done()]
            self._waiting.clear()
            try:
                outcomes = await loop.run_in_executor(self._thread, self._score, [item for item, _ in taken])
            except Exception as error:
                failure = error if isinstance(error, RewardError) else self._failed(error)
                for _, future in [*taken, *self._waiting]:
                    if not future.done():
                        future.set_exception(failure)
                self._waiting.clear()
                return
            for (_, future), outcome in zip(taken, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        options = self._options
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                options.model, dtype=getattr(torch, DTYPES[options.dtype]), output_loading_info=True
            )
            self._model: Any = model.to(options.device).eval()
        except Exception as error:  # files, hub and device raise many types
            raise self._error(f"'{options.model}' cannot be loaded ({_line(error)})") from None
        if info["missing_keys"]:
            # transformers would initialize them randomly.
            raise self._error(f"'{options.model}' has no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
        self._pad_id: int | None = model.config.get_text_config().pad_token_id

    def _score(self, items: Sequence[Item]) -> list[Outcome]:
        """Outcomes of the items, in order, computed in batches of similar length. Runs in the thread."""
        outcomes: list[Outcome] = [Outcome(math.nan)] * len(items)
        token_ids: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            try:
                token_ids[place] = self._encode(item)
            except Exception as error:  # a chat template is code that comes with the model
                outcomes[place] = self._unscorable(f"the text cannot be encoded ({_line(error)})")
        order = sorted(token_ids, key=lambda place: len(token_ids[place]))
        for start in range(0, len(order), self._options.batch_size):
            places = order[start : start + self._options.batch_size]
            for place, value in zip(places, self._forward([token_ids[each] for each in places]), strict=True):
                finite = math.isfinite(value)
                outcomes[place] = Outcome(value) if finite else self._unscorable(f"the model's output is {value}")
        return outcomes

    def _encode(self, item: Item) -> list[int]:
        """Token ids of prompt and response. If they are too long, the end is kept, which holds the response."""
        is_chat = bool(item.messages and getattr(self._tokenizer, "chat_template", None))
        if is_chat:
            chat = [*item.messages, {"role": "assistant", "content": item.response}]
            text = self._tokenizer.apply_chat_template(chat, tokenize=False)
        else:
            text = item.prompt + item.response
        ids: list[int] = self._tokenizer(text, add_special_tokens=not is_chat, verbose=False)["input_ids"]
        if not ids:
            raise ValueError("prompt and response have no tokens")
        self._scored += 1
        self._truncated += len(ids) > self._options.max_tokens
        return ids[-self._options.max_tokens :]

    def _forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        import torch

        self._batches += 1
        pad_id = self._pad_id
        if pad_id is None:
            # transformers takes the output at the last token that is not padding, so pad with an id that ends no
            # sequence.
            pad_id = next(number for number in range(len(sequences) + 1) if all(ids[-1] != number for ids in sequences))
            self._model.config.get_text_config().pad_token_id = pad_id
        token_ids = torch.full((len(sequences), max(map(len, sequences))), pad_id)
        mask = torch.zeros_like(token_ids)
        for row, ids in enumerate(sequences):
            token_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        device = self._options.device
        with torch.inference_mode():
            logits = self._model(input_ids=token_ids.to(device), attention_mask=mask.to(device)).logits
        values: list[float] = logits[:, 0].float().cpu().tolist()
        return values

    def _unscorable(self, reason: str) -> Outcome:
        return Outcome(math.nan, f"reward '{self.config.label}': {reason}")

    def _failed(self, error: Exception) -> RewardError:
        return self._error(
            f"'{self._options.model}' failed on {self._options.device} ({_line(error)}); if memory ran out, lower "
            "batch_size or max_tokens"
        )

    def _error(self, what: str) -> RewardError:
        return RewardError(f"reward '{self.config.name}': {what}.")


def _line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:200] + "..."
