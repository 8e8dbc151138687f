"""The pool: least loaded engine first, capacities respected, and nothing lost with an engine."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volley.rollout.engines.fake import FakeEngine
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.errors import EngineLost
from volley.rollout.types import Completion, Sampling, TokenIds, as_token_ids


class MortalEngine(FakeEngine):
    """Dies after `lives` requests, with everything in flight."""

    def __init__(self, lives: int = 10**9, capacity: float = 8, delay: float = 0.001) -> None:
        super().__init__(lambda ids, number: ([number % 50], str(number)), lambda number: delay, capacity=capacity)
        self.lives = lives
        self.most_in_flight = 0
        self._out: list[asyncio.Future[Completion]] = []

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        if self.num_requests >= self.lives:
            raise EngineLost("it died")
        inner = super().submit(token_ids, sampling, seed)
        outer = [asyncio.get_running_loop().create_future() for _ in inner]
        for future, task in zip(outer, inner, strict=True):
            task.add_done_callback(lambda done, f=future: f.done() or f.set_result(done.result()))
        self._out += outer
        self.most_in_flight = max(self.most_in_flight, sum(not future.done() for future in self._out))
        if self.num_requests == self.lives:
            for future in self._out:
                if not future.done():
                    future.set_exception(EngineLost("it died"))
        return outer


async def sample(pool: RolloutPool, prompts: int, size: int = 4) -> list[list[Completion]]:
    groups = [pool.submit(as_token_ids([prompt]), Sampling(size), 100 * prompt) for prompt in range(prompts)]
    return [list(await asyncio.gather(*group)) for group in groups]


def test_requests_go_to_the_least_loaded_engine() -> None:
    async def everything() -> None:
        engines = [MortalEngine(capacity=100) for _ in range(3)]
        await sample(RolloutPool(engines), 12)
        assert [engine.num_requests for engine in engines] == [4, 4, 4]

    asyncio.run(everything())


def test_capacity_is_respected_and_the_oldest_requests_start_first() -> None:
    async def everything() -> None:
        engine = MortalEngine(capacity=8)
        pool = RolloutPool([engine])
        order: list[int] = []
        groups = [pool.submit(as_token_ids([prompt]), Sampling(4), prompt) for prompt in range(10)]
        for prompt, group in enumerate(groups):
            group[0].add_done_callback(lambda done, p=prompt: order.append(p))
        assert pool.num_in_flight == 8
        assert pool.num_waiting == 32
        await asyncio.gather(*(future for group in groups for future in group))
        assert engine.most_in_flight == 8
        assert order == sorted(order)
        assert (pool.num_in_flight, pool.num_waiting) == (0, 0)

    asyncio.run(everything())


def test_a_group_larger_than_any_capacity_is_sent() -> None:
    assert len(asyncio.run(sample(RolloutPool([MortalEngine(capacity=2)]), 3, size=5))) == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 20))
def test_lost_engines_change_no_sample(lives: list[int], prompts: int) -> None:
    """Whichever engines are lost and when, the samples equal those of one engine that is never lost."""

    async def everything() -> None:
        expected = await sample(RolloutPool([MortalEngine()]), prompts)
        pool = RolloutPool([*(MortalEngine(count) for count in lives), MortalEngine()])
        assert await sample(pool, prompts) == expected

    asyncio.run(everything())


def test_without_any_engine_requests_wait_for_the_next_one() -> None:
    async def everything() -> None:
        pool = RolloutPool([MortalEngine(lives=2)])
        waiting = asyncio.create_task(sample(pool, 5))
        await asyncio.sleep(0.01)
        assert not pool.engines
        assert not waiting.done()
        pool.add(MortalEngine())
        assert len(await waiting) == 5
        assert pool.num_resent > 0

    asyncio.run(everything())


def test_other_errors_of_an_engine_are_not_retried() -> None:
    class BrokenEngine(FakeEngine):
        async def _sample(self, *args: object) -> Completion:
            raise RuntimeError("a bug")

    async def everything() -> None:
        await sample(RolloutPool([BrokenEngine(lambda ids, number: ([1], ""))]), 1)

    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(everything())


def test_cancelled_requests_stop_or_never_start() -> None:
    async def everything() -> None:
        engine = MortalEngine(capacity=4, delay=0.05)
        pool = RolloutPool([engine])
        groups = [pool.submit(as_token_ids([prompt]), Sampling(4), prompt) for prompt in range(3)]
        for future in [future for group in groups[:2] for future in group]:
            future.cancel()
        assert len(await asyncio.gather(*groups[2])) == 4
        assert engine.num_requests == 2

    asyncio.run(everything())
