"""A remote engine and its worker without Ray: calls that fail, repeat or hang, and engines that hang."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from volley.rollout.engines import remote as remote_engine
from volley.rollout.engines.fake import FakeEngine
from volley.rollout.engines.messages import Collected, Finished
from volley.rollout.engines.remote import RemoteEngine
from volley.rollout.engines.worker import RolloutWorker
from volley.rollout.errors import EngineLost
from volley.rollout.transport.protocol import ReceiverEnd
from volley.rollout.transport.stream import TensorMeta, TransportError
from volley.rollout.types import LoadedWeights, Sampling, as_token_ids


class Wire:
    """Carries calls to a worker in this process. before: called before each call, to make it fail or hang."""

    def __init__(self, delay: float = 0.002) -> None:
        self.engine = FakeEngine(lambda ids, number: ([number % 50], str(number)), lambda number: delay)
        self.worker = RolloutWorker(lambda: self.engine)
        self.calls: list[str] = []
        self.before: Any = None
        self.lost: list[str] = []

    async def __call__(self, method: str, *arguments: Any) -> Any:
        self.calls.append(method)
        if self.before is not None:
            await self.before(method)
        return await getattr(self.worker, method)(*arguments)

    def remote(self, stall_s: float = 5.0) -> RemoteEngine:
        return RemoteEngine("0.0", self, stall_s, lambda engine, reason: self.lost.append(reason))


def futures(engine: RemoteEngine, prompts: int, size: int = 3) -> list[asyncio.Future[Any]]:
    return [future for p in range(prompts) for future in engine.submit(as_token_ids([p]), Sampling(size), 10 * p)]


def test_samples_equal_the_engines_and_travel_in_batches() -> None:
    async def everything() -> None:
        wire = Wire()
        engine = wire.remote()
        await engine.start(5)
        ours = await asyncio.gather(*futures(engine, 20))
        direct = FakeEngine(lambda ids, number: ([number % 50], str(number)))
        submitted = [direct.submit(as_token_ids([p]), Sampling(3), 10 * p) for p in range(20)]
        assert ours == await asyncio.gather(*(future for group in submitted for future in group))
        assert wire.calls.count("submit") == 1
        assert wire.calls.count("collect") < 20
        await engine.close()

    asyncio.run(everything())


def test_repeated_calls_change_nothing() -> None:
    """Every call is made twice, and every third answer of `collect` is lost."""

    async def everything() -> None:
        wire = Wire()
        numbers = random.Random(0)

        async def twice(method: str, *arguments: Any) -> Any:
            first = await wire(method, *arguments)
            if method == "collect" and numbers.random() < 0.3:
                return Collected.pack([], first.num_steps)
            return await wire(method, *arguments) if method == "submit" else first

        engine = RemoteEngine("0.0", twice)
        await engine.start(5)
        assert len(await asyncio.gather(*futures(engine, 30))) == 90
        assert wire.engine.num_requests == 30
        await engine.close()

    asyncio.run(everything())


def test_a_completion_delivered_twice_counts_once() -> None:
    """Every answer of `collect` repeats all earlier ones."""

    async def everything() -> None:
        wire = Wire()
        delivered: list[Finished] = []

        async def again(method: str, *arguments: Any) -> Any:
            answer = await wire(method, *arguments)
            if method != "collect":
                return answer
            earlier = [replace(each, completion=None, error="a second delivery was read") for each in delivered]
            arrived = answer.finished()
            delivered.extend(arrived)
            return Collected.pack([*earlier, *arrived, *arrived], answer.num_steps)

        engine = RemoteEngine("0.0", again)
        await engine.start(5)
        first = await asyncio.gather(*futures(engine, 5))
        second = await asyncio.gather(*futures(engine, 5))
        assert first == second
        assert len(delivered) == len({(each.number, each.sample) for each in delivered}) == 30
        assert wire.engine.num_requests == 10
        assert not engine._futures
        assert not wire.lost
        await engine.close()

    asyncio.run(everything())


def test_version_and_digest_come_from_the_engine() -> None:
    async def everything() -> None:
        wire = Wire()
        engine = wire.remote()
        await engine.start(5)
        assert await engine.transfer(None, ReceiverEnd.receive, []) == "fake"
        assert await engine.transfer(5, ReceiverEnd.commit, 3) == LoadedWeights(3, "fake")
        assert wire.engine.version == 0
        assert await engine.transfer(5, ReceiverEnd.resume) == wire.engine.version == 3
        await engine.close()

    asyncio.run(everything())


def test_waiting_between_commit_and_resume_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "POLL_S", 0.05)

    class Paused(FakeEngine):
        num_steps = 7  # type: ignore[assignment]

    async def everything() -> None:
        wire = Wire()
        wire.engine = Paused(lambda ids, number: ([1], ""), lambda number: 1.0)
        engine = wire.remote(stall_s=0.3)
        await engine.start(5)
        waiting = futures(engine, 1)
        await engine.transfer(5, ReceiverEnd.commit, 1)
        assert len(await asyncio.gather(*waiting)) == 3
        await engine.close()

    asyncio.run(everything())


def test_a_failed_call_loses_the_worker_with_its_name_and_phase() -> None:
    async def everything() -> None:
        wire = Wire(delay=10)
        engine = wire.remote()
        await engine.start(5)
        waiting = futures(engine, 2)

        async def die(method: str) -> None:
            raise ConnectionError("the actor died")

        await asyncio.sleep(0.01)
        wire.before = die
        with pytest.raises(EngineLost, match=r"rollout worker 0\.0: commit: ConnectionError: the actor died"):
            await engine.transfer(1.0, ReceiverEnd.commit, 3)
        for future in waiting:
            with pytest.raises(EngineLost, match="commit"):
                await future
        assert len(wire.lost) == 1
        with pytest.raises(EngineLost):
            engine.submit(as_token_ids([1]), Sampling(1), 0)

    asyncio.run(everything())


def test_an_engine_without_steps_is_lost_and_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "POLL_S", 0.05)

    class Frozen(FakeEngine):
        num_steps = 7  # type: ignore[assignment]

    async def everything(kind: type[FakeEngine]) -> list[Any]:
        wire = Wire()
        wire.engine = kind(lambda ids, number: ([1], ""), lambda number: 0.6)
        engine = wire.remote(stall_s=0.3)
        await engine.start(5)
        result = await asyncio.gather(*futures(engine, 1), return_exceptions=True)
        await engine.close()
        return result

    frozen = asyncio.run(everything(Frozen))
    assert all(isinstance(each, EngineLost) for each in frozen)
    assert "made no step for 0.3 s; waiting for requests [1]" in str(frozen[0])
    assert not any(isinstance(each, BaseException) for each in asyncio.run(everything(FakeEngine)))


def test_a_worker_that_does_not_answer_is_lost() -> None:
    async def everything() -> None:
        wire = Wire()
        engine = wire.remote()

        async def hang(method: str) -> None:
            await asyncio.sleep(60)

        wire.before = hang
        with pytest.raises(EngineLost, match=r"start: no answer within 0.05 s"):
            await engine.start(0.05)
        assert wire.lost

    asyncio.run(everything())


def test_a_dead_engine_inside_the_worker_is_detected() -> None:
    class Dying(FakeEngine):
        async def _sample(self, *args: object) -> Any:
            self.is_dead = True
            raise RuntimeError("core died")

    async def everything() -> None:
        wire = Wire()
        wire.engine = Dying(lambda ids, number: ([1], ""))
        engine = wire.remote()
        await engine.start(5)
        with pytest.raises(EngineLost, match=r"its engine died .*core died"):
            await asyncio.gather(*futures(engine, 1))

    asyncio.run(everything())


def test_failed_transfer_is_raised_and_does_not_lose_the_worker() -> None:
    class CutOff(FakeEngine):
        async def receive(self, metas: Sequence[TensorMeta]) -> str:
            raise TransportError("receive: at tensor w")

    async def everything() -> None:
        wire = Wire()
        wire.engine = CutOff(lambda ids, number: ([1], ""))
        engine = wire.remote()
        await engine.start(5)
        with pytest.raises(TransportError, match="receive: at tensor w"):
            await engine.transfer(None, ReceiverEnd.receive, [])
        assert (engine.lost, wire.lost) == ("", [])
        await engine.close()

    asyncio.run(everything())
