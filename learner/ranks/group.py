"""All learner ranks as one: what the loop calls the learner, wherever the ranks are."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from volley.learner.signals.batch import Batch, Row, Update
from volley.rollout.transport.protocol import CONCURRENT_VERBS, SenderEnd

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Call = Callable[..., Awaitable[Any]]
"""(method of a `LearnerRank`, *arguments) -> its result."""


class LearnerGroup:
    """calls: how to reach each rank, rank 0 first. share: makes of a large argument what travels once for all ranks.
    beside: how to reach rank 0 while it is busy with such a call.

    step: optimizer steps done. pushed_step: the step whose weights were sent last. Every method is a collective of all
    ranks; the failure of one is the failure of the call.
    """

    def __init__(
        self, calls: Sequence[Call], share: Callable[[Any], Any] = lambda value: value, beside: Call | None = None
    ) -> None:
        self._calls = calls
        self._share = share
        self._beside = beside or calls[0]
        self._turn = asyncio.Lock()
        self.step = 0
        self.pushed_step = 0

    @property
    def is_busy(self) -> bool:
        """Whether it does anything, so that `step` may be about to change."""
        return self._turn.locked()

    async def update(self, batch: Batch) -> Update:
        """One optimizer step."""
        updates = await self._all("update", self._share(batch))
        self.step += 1
        result: Update = updates[0]
        return result

    async def measure(self, batch: Batch) -> dict[str, float]:
        """See `LearnerRank.measure`."""
        return dict((await self._all("measure", self._share(batch)))[0])

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `LearnerRank.logprobs`."""
        return list((await self._all("logprobs", sequences))[0])

    async def record_reference(self, rows: Sequence[Row], file: Path) -> None:
        """Make the policy as it is now the reference of `rows`."""
        await self._all("record_reference", self._share(rows), file.absolute())

    async def refresh_reference(self) -> None:
        """Make the current policy the reference."""
        await self._all("refresh_reference")

    async def save(self, directory: Path) -> None:
        """Write every rank's state."""
        await self._all("save", directory.absolute())

    async def load(self, directory: Path, step: int) -> None:
        """Restore what `save` wrote after `step`."""
        await self._all("load", directory.absolute(), step)
        self.step = step

    async def export(self, directory: Path, tokenizer: Any) -> None:
        """Write a Hugging Face checkpoint."""
        await self._all("export", directory.absolute(), tokenizer)

    def exclusive(self) -> AbstractAsyncContextManager[Any]:
        """The learner's turn for a whole push, whose calls follow within: no update comes between them, nor is it
        counted into their deadlines."""
        return self._turn

    async def transfer(self, verb: Callable[[SenderEnd, *Ts], T], *arguments: *Ts) -> T:
        """Call a verb of a push on all ranks (see `RemoteSender`); returns rank 0's result."""
        name, step = verb.__name__, self.step
        if name in CONCURRENT_VERBS:
            result: T = await self._beside("transfer", name, *arguments)
            return result
        result = (await self._each("transfer", name, *arguments))[0]
        if name == SenderEnd.send.__name__:
            self.pushed_step = step
        return result

    async def close(self) -> None:
        """Free the ranks."""
        await self._all("close")

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        # One collective at a time, in the same order on all ranks.
        async with self._turn:
            return await self._each(method, *arguments)

    async def _each(self, method: str, *arguments: Any) -> list[Any]:
        running = [asyncio.ensure_future(call(method, *arguments)) for call in self._calls]
        try:
            return list(await asyncio.gather(*running))
        finally:
            for each in running:
                each.cancel()
