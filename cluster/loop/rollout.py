"""From a prompt to a scored group: sample, score, and join with a data set's completion if the method asks for it.

Each completion is scored as soon as it ends, while the others are still generating. Rewards that need the whole group
follow when all completions have ended.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from volley.cluster.loop.interfaces import GroupScorer
from volley.rewards.terms import all_of
from volley.rollout.data.dataset_groups import DatasetGroups
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.types import Completion, Prompt, Sampling, Score, ScoredGroup


class BusyTime:
    """Seconds during which at least one of many overlapping activities was running."""

    def __init__(self) -> None:
        self._active = 0
        self._since = 0.0
        self._total = 0.0
        self._reported = 0.0

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

    def since_last_call(self) -> float:
        """Busy seconds since the previous call of this method."""
        before, self._reported = self._reported, self.seconds
        return self._reported - before


class Rollout:
    """Samples completions of a prompt and scores them.

    A sample's seed depends on the run's seed, the prompt's place in the order, and the sample's number, and on nothing
    else.
    """

    def __init__(self, pool: RolloutPool, scorer: GroupScorer, seed: int) -> None:
        self._pool = pool
        self._scorer = scorer
        self._seed = seed
        self._generating = BusyTime()
        self._scoring = BusyTime()

    async def __call__(self, prompt: Prompt, sampling: Sampling, purpose: str = "train") -> ScoredGroup:
        """Sample and score one group. `purpose` separates the random numbers of training and evaluation."""
        seed = derive_seed(self._seed, purpose, prompt.ordinal)
        futures = self._pool.submit(prompt.token_ids, sampling, seed)
        done = await gather_or_cancel(*(self._complete(prompt, future) for future in futures))
        completions = tuple(completion for completion, _ in done)
        with self._scoring():
            scores = await self._scorer.score_group(prompt, completions, [score for _, score in done])
        return ScoredGroup(prompt, completions, scores)

    @property
    def compares(self) -> bool:
        """True if rewards are comparable only within a group, so not between two groups of the same prompt."""
        return self._scorer.compares

    async def score_as_group(self, prompt: Prompt, completions: Sequence[Completion]) -> ScoredGroup:
        """Score completions that come from different groups as one group."""
        with self._scoring():
            scores = await all_of([self._scorer.score(prompt, each) for each in completions])
            return ScoredGroup(prompt, tuple(completions), await self._scorer.score_group(prompt, completions, scores))

    def metrics(self) -> dict[str, float]:
        """Seconds of generation and scoring, and the scorer's own metrics, since the last call."""
        return {
            "seconds/generate": self._generating.since_last_call(),
            "seconds/score": self._scoring.since_last_call(),
            **self._scorer.metrics(),
        }

    async def _complete(self, prompt: Prompt, future: "asyncio.Future[Completion]") -> tuple[Completion, Score]:
        with self._generating():
            completion = await future
        with self._scoring():
            return completion, await self._scorer.score(prompt, completion)


@dataclass(frozen=True, slots=True)
class TrainingRollout:
    """Makes the groups that are trained on."""

    rollout: Rollout
    sampling: Sampling
    dataset: DatasetGroups | None
    """Its completions join the policy's in each group (SPIN): reward 1 for the data's, 0 for the policy's."""

    async def __call__(self, prompt: Prompt) -> ScoredGroup:
        group = await self.rollout(prompt, self.sampling)
        if self.dataset is None:
            return group
        data = self.dataset.group_of(prompt, group.first_version)
        own = tuple(replace(score, reward=0.0) for score in group.scores)
        return ScoredGroup(prompt, data.completions + group.completions, data.scores + own)


async def gather_or_cancel(*work: Awaitable[tuple[Completion, Score]]) -> list[tuple[Completion, Score]]:
    """`asyncio.gather` that leaves nothing running if one fails or the caller is cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def derive_seed(seed: int, purpose: str, number: int) -> int:
    """A 62-bit seed: a pure function of its arguments that is the same on every machine and in every version."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
