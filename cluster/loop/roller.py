"""One prompt through engine and rewards: each response is scored as it ends, while the others still generate; rewards
that see the whole group follow when all have ended."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from volley.rewards.terms import all_of
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.types import Completion, Prompt, Sampling, Score, ScoredGroup


class Scores(Protocol):
    """Whatever scores a completion, and then the whole group: `Scorer`. compares: rewards mean something
    only among the completions of one group."""

    @property
    def compares(self) -> bool: ...
    async def score(self, prompt: Prompt, completion: Completion) -> Score: ...
    async def score_group(
        self, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> tuple[Score, ...]: ...
    def metrics(self) -> dict[str, float]: ...


class BusyTime:
    """Seconds during which at least one of many overlapping activities was going on."""

    def __init__(self) -> None:
        self._active = 0
        self._since = 0.0
        self._total = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._active += 1
        if self._active == 1:
            self._since = time.perf_counter()
        try:
            yield
        finally:
            self._active -= 1
            if self._active == 0:
                self._total += time.perf_counter() - self._since

    @property
    def seconds(self) -> float:
        return self._total + (time.perf_counter() - self._since if self._active else 0.0)


class Roller:
    """Makes scored groups. seed: of the run; a sample's own seed depends on it, on the prompt's place in the order,
    and on its number, and on nothing else."""

    def __init__(self, pool: RolloutPool, scores: Scores, seed: int) -> None:
        self._pool = pool
        self._scores = scores
        self._seed = seed
        self.generating = BusyTime()
        self.scoring = BusyTime()

    async def __call__(self, prompt: Prompt, sampling: Sampling, purpose: str = "train") -> ScoredGroup:
        """`purpose` keeps the random numbers of training and evaluation apart."""
        seed = derive_seed(self._seed, purpose, prompt.ordinal)
        futures = self._pool.submit(prompt.token_ids, sampling, seed)
        done = await gather_or_cancel(*(self._finish(prompt, future) for future in futures))
        completions = tuple(completion for completion, _ in done)
        with self.scoring():
            scores = await self._scores.score_group(prompt, completions, [score for _, score in done])
        return ScoredGroup(prompt, completions, scores)

    @property
    def compares(self) -> bool:
        """Whether rewards of different groups cannot be held against each other, even of the same prompt."""
        return self._scores.compares

    async def together(self, prompt: Prompt, completions: Sequence[Completion]) -> ScoredGroup:
        """Completions from different groups, scored anew as one group."""
        with self.scoring():
            scores = await all_of([self._scores.score(prompt, each) for each in completions])
            return ScoredGroup(prompt, tuple(completions), await self._scores.score_group(prompt, completions, scores))

    def metrics(self) -> dict[str, float]:
        """What the scores have to tell since the last call."""
        return self._scores.metrics()

    async def _finish(self, prompt: Prompt, future: "asyncio.Future[Completion]") -> tuple[Completion, Score]:
        with self.generating():
            completion = await future
        with self.scoring():
            return completion, await self._scores.score(prompt, completion)


async def gather_or_cancel(*work: Awaitable[tuple[Completion, Score]]) -> list[tuple[Completion, Score]]:
    """`asyncio.gather` that leaves nothing running when one fails or the caller is cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def derive_seed(seed: int, purpose: str, number: int) -> int:
    """A 62-bit seed that is a pure function of its arguments, the same on every machine and for ever."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
