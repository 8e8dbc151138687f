"""All learner ranks as one: what the loop calls the learner, wherever the ranks are."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import numpy as np

from volley.learner.compute.recorded import Recorded, as_table, missing_rows, read_table, write_table
from volley.learner.losses.common import Loss
from volley.learner.ranks.shards import in_original_order, make_shards, plan_completions, planned_rows, shard_rows
from volley.learner.signals.batch import Batch, Shard, Update
from volley.learner.signals.rows import Floats, Rows
from volley.rollout.transport.protocol import CONCURRENT_VERBS, SenderEnd
from volley.rollout.types import Completion, TokenIds

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Call = Callable[..., Awaitable[Any]]
"""(method of a `LearnerRank`, *arguments) -> its result."""


class LearnerGroup:
    """All ranks of a learner. Every method is a collective of all ranks; if one rank fails, the call fails.

    step: optimizer steps done. pushed_step: the step whose weights were sent last.
    """

    def __init__(self, calls: Sequence[Call], loss: Loss, max_tokens: int, call_while_busy: Call | None = None) -> None:
        """calls: how to reach each rank, rank 0 first. max_tokens: of a micro-batch. call_while_busy: how to reach rank
        0 while it is busy with another call."""
        self._calls = calls
        self._loss = loss
        self._max_tokens = max_tokens
        self._call_while_busy = call_while_busy or calls[0]
        self._recorded: Recorded | None = None
        self._turn = asyncio.Lock()
        self.step = 0
        self.pushed_step = 0

    @property
    def is_busy(self) -> bool:
        """Whether it does anything, so that `step` may be about to change."""
        return self._turn.locked()

    async def update(self, batch: Batch) -> Update:
        """One optimizer step."""
        updates = await self._all("update", await self._shards(batch, skips_idle=not self._loss.needs_reference))
        self.step += 1
        result: Update = updates[0]
        return result

    async def evaluate(self, batch: Batch) -> dict[str, float]:
        """See `LearnerRank.evaluate`."""
        return dict((await self._all("evaluate", await self._shards(batch, skips_idle=False)))[0])

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Floats]:
        """Log-probs at temperature 1 of every token but the first, as the engine's `logprobs`; for parity."""
        rows = Rows.from_completions([_all_but_first(ids) for ids in sequences], 0)
        planned = plan_completions(rows, self._max_tokens, len(self._calls))
        parts = [planned_rows(rows, own) for own in planned.ranks]
        found = await self._all("logprobs", parts, 1.0)
        return in_original_order(planned.ranks, rows.trained_per_completion, found)

    async def record_reference(self, rows: Rows, file: Path) -> None:
        """Make the policy as it is now the reference of `rows`, which must be all that updates will read. Their
        log-probs are kept in `file`, and read from there as far as it has them."""
        table = await asyncio.to_thread(read_table, file)
        missing = await asyncio.to_thread(missing_rows, rows, table)
        if missing.num_completions:
            parts = shard_rows(missing, self._max_tokens, len(self._calls))
            for part, values_M in zip(parts, await self._all("logprobs", parts), strict=True):
                table |= as_table(part.rows, values_M)
            await asyncio.to_thread(write_table, file, table)
        self._recorded = Recorded(table)

    async def refresh_reference(self) -> None:
        """Make the current policy the reference."""
        await self._all("refresh_reference")

    async def save(self, directory: Path) -> None:
        """Write every rank's state."""
        await self._all("save", None, directory.absolute())

    async def load(self, directory: Path, step: int) -> None:
        """Restore what `save` wrote after `step`."""
        await self._all("load", None, directory.absolute(), step)
        self.step = step

    async def export(self, directory: Path, tokenizer: Any) -> None:
        """Write a Hugging Face checkpoint."""
        await self._all("export", None, directory.absolute(), tokenizer)

    def exclusive(self) -> AbstractAsyncContextManager[Any]:
        """The learner's turn for a whole push, whose calls follow within: no update comes between them, nor is it
        counted into their deadlines."""
        return self._turn

    async def transfer(self, verb: Callable[[SenderEnd, *Ts], T], *arguments: *Ts) -> T:
        """Call a verb of a push on all ranks (see `RemoteSender`); returns rank 0's result."""
        name, step = verb.__name__, self.step
        if name in CONCURRENT_VERBS:
            result: T = await self._call_while_busy("transfer", name, *arguments)
            return result
        result = (await self._each("transfer", name, *arguments))[0]
        if name == SenderEnd.send.__name__:
            self.pushed_step = step
        return result

    async def close(self) -> None:
        """Free the ranks."""
        await self._all("close")

    async def _shards(self, batch: Batch, skips_idle: bool) -> list[Shard]:
        """Plan in a thread, so that rollouts continue meanwhile."""
        return await asyncio.to_thread(
            make_shards, batch, self._max_tokens, len(self._calls), skips_idle=skips_idle, recorded=self._recorded
        )

    async def _all(self, method: str, per_rank: Sequence[Any] | None = None, *arguments: Any) -> list[Any]:
        """The results of all ranks. per_rank: an argument for each rank, before those for all."""
        # One collective at a time, in the same order on all ranks.
        async with self._turn:
            return await self._each(method, *arguments, per_rank=per_rank)

    async def _each(self, method: str, *arguments: Any, per_rank: Sequence[Any] | None = None) -> list[Any]:
        own: Sequence[tuple[Any, ...]] = [()] * len(self._calls) if per_rank is None else [(each,) for each in per_rank]
        running = [
            asyncio.ensure_future(call(method, *first, *arguments))
            for call, first in zip(self._calls, own, strict=True)
        ]
        try:
            return list(await asyncio.gather(*running))
        finally:
            for each in running:
                each.cancel()


def _all_but_first(ids: TokenIds) -> tuple[TokenIds, Completion]:
    """A sequence as a prompt of one token and its continuation."""
    return ids[:1], Completion.single(ids[1:], np.zeros(len(ids) - 1, dtype=np.float32), "", "data", 0, 0)
