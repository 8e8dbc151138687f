"""The contract of every engine: the fake one, the same behind a remote engine, and real vLLM in this process."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from volley.rollout.engines.engine import Engine
from volley.rollout.engines.fake import FakeEngine
from volley.rollout.engines.remote import RemoteEngine
from volley.rollout.engines.worker import RolloutWorker
from volley.rollout.types import Completion, Sampling, as_token_ids

Run = Callable[[Any], Any]
PROMPT = as_token_ids([5, 6, 7, 8])


def fake() -> FakeEngine:
    return FakeEngine(lambda ids, number: ([2 + (number >> k) % 30 for k in range(40)], str(number)), lambda _: 0.001)


@pytest.fixture(params=["fake", "remote", "vllm"])
def engine(request: pytest.FixtureRequest, run: Run) -> Iterator[Engine]:
    if request.param == "vllm":
        yield request.getfixturevalue("vllm_engine")
    elif request.param == "fake":
        yield fake()
    else:
        worker = RolloutWorker(fake)
        remote = RemoteEngine("0.0", lambda method, *arguments: getattr(worker, method)(*arguments))
        run(remote.start(5))
        yield remote
        run(remote.close())


async def sample(engine: Engine, sampling: Sampling, seed: int = 3) -> list[Completion]:
    return list(await asyncio.gather(*engine.submit(PROMPT, sampling, seed)))


def test_number_and_fields_of_samples(engine: Engine, run: Run) -> None:
    for completion in run(sample(engine, Sampling(5, 1.0, max_tokens=8))):
        assert 1 <= len(completion.token_ids) == len(completion.logprobs) <= 8
        assert all(value <= 0 for value in completion.logprobs)
        assert completion.truncated == (completion.finish_reason == "length")
        assert completion.first_version <= completion.last_version == engine.version


def test_samples_depend_on_the_seed_only(engine: Engine, run: Run) -> None:
    first = run(sample(engine, Sampling(4, 1.0, max_tokens=12), seed=1))
    assert first == run(sample(engine, Sampling(4, 1.0, max_tokens=12), seed=1))
    assert first != run(sample(engine, Sampling(4, 1.0, max_tokens=12), seed=2))
    assert len({tuple(completion.token_ids) for completion in first}) > 1


def test_sample_i_has_the_seed_plus_i(engine: Engine, run: Run) -> None:
    """Therefore a lost engine's samples can be sent to another engine one by one."""
    group = run(sample(engine, Sampling(3, 1.0, max_tokens=4), seed=10))
    alone = [run(sample(engine, Sampling(1, 1.0, max_tokens=4), seed=10 + i))[0] for i in range(3)]
    assert [tuple(completion.token_ids) for completion in alone] == [
        tuple(completion.token_ids) for completion in group
    ]


def test_greedy_samples_do_not_depend_on_the_seed(engine: Engine, run: Run) -> None:
    greedy = Sampling(2, 0.0, max_tokens=6)
    first, second = run(sample(engine, greedy, seed=1)), run(sample(engine, greedy, seed=2))
    assert len({tuple(completion.token_ids) for completion in first + second}) == 1


def test_logprobs_of_all_tokens_but_the_first(engine: Engine, run: Run) -> None:
    found = run(engine.logprobs([PROMPT, as_token_ids([5, 6])]))
    assert [(len(values), values.dtype) for values in found] == [(3, np.float32), (1, np.float32)]


def test_an_engine_continues_after_cancelled_requests(engine: Engine, run: Run) -> None:
    async def cancel_then_sample() -> list[Completion]:
        for future in engine.submit(PROMPT, Sampling(4, 1.0, max_tokens=30), 1):
            future.cancel()
        await asyncio.sleep(0.02)
        return await sample(engine, Sampling(2, 1.0, max_tokens=4))

    assert len(run(cancel_then_sample())) == 2
