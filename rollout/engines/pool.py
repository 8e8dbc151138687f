"""Several engines as one: each request goes to the engine with the fewest samples in flight, oldest first.

An engine may be lost at any time. Its unfinished samples are sent to the other engines one by one, with the same seeds,
so callers do not notice. Without any engine left they wait until one is added.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from volley.rollout.engines.engine import Engine
from volley.rollout.errors import EngineLost
from volley.rollout.types import Completion, Sampling, TokenIds


@dataclass(frozen=True, slots=True)
class _Job:
    """Samples of one prompt that are sent to one engine together."""

    token_ids: TokenIds
    sampling: Sampling
    seed: int
    futures: list["asyncio.Future[Completion]"]
    """One per sample."""


class RolloutPool:
    """An `Engine` that distributes requests over engines, which may come and go."""

    def __init__(self, engines: Iterable[Engine] = ()) -> None:
        self._loads: dict[Engine, int] = dict.fromkeys(engines, 0)
        self._waiting: deque[_Job] = deque()
        self.num_resent = 0
        """Samples that were sent again because their engine was lost."""

    @property
    def engines(self) -> Sequence[Engine]:
        return list(self._loads)

    @property
    def num_waiting(self) -> int:
        """Samples that no engine has received yet."""
        return sum(len(job.futures) for job in self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Samples that engines are working on."""
        return sum(self._loads.values())

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list["asyncio.Future[Completion]"]:
        """See `Engine.submit`."""
        loop = asyncio.get_running_loop()
        job = _Job(token_ids, sampling, seed, [loop.create_future() for _ in range(sampling.num_samples)])
        self._waiting.append(job)
        self._dispatch()
        return job.futures

    def add(self, engine: Engine) -> None:
        """Start to use an engine."""
        self._loads[engine] = 0
        self._dispatch()

    def remove(self, engine: Engine) -> None:
        """Stop to use an engine; its samples in flight are not cancelled."""
        self._loads.pop(engine, None)

    async def close(self) -> None:
        """Close all engines."""
        await asyncio.gather(*(engine.close() for engine in self._loads), return_exceptions=True)
        for job in self._waiting:
            for future in job.futures:
                future.cancel()

    def _dispatch(self, freed: Engine | None = None) -> None:
        """Send waiting jobs, in order, to engines with free capacity; a group larger than any capacity goes to an idle
        engine. freed: the only engine that may have gained capacity, if known."""
        while self._waiting and self._loads:
            engine = min(self._loads, key=self._loads.__getitem__) if freed is None else freed
            job = self._waiting[0]
            if all(future.done() for future in job.futures):  # cancelled while waiting
                self._waiting.popleft()
                continue
            room = engine.capacity - self._loads[engine]
            if len(job.futures) > room and self._loads[engine]:
                return
            self._waiting.popleft()
            self._start(engine, job)

    def _start(self, engine: Engine, job: _Job) -> None:
        try:
            inner = engine.submit(job.token_ids, job.sampling, job.seed)
        except EngineLost:
            self.remove(engine)
            self._resend(job, range(len(job.futures)))
            return
        self._loads[engine] += len(inner)
        for sample, (future, outer) in enumerate(zip(inner, job.futures, strict=True)):
            outer.add_done_callback(partial(_cancel_too, future))
            future.add_done_callback(partial(self._finish, engine, job, sample))

    def _finish(self, engine: Engine, job: _Job, sample: int, done: "asyncio.Future[Completion]") -> None:
        if engine in self._loads:
            self._loads[engine] -= 1
        outer = job.futures[sample]
        if not outer.done():
            if done.cancelled():
                outer.cancel()
            elif isinstance(done.exception(), EngineLost):
                self.remove(engine)
                self._resend(job, [sample])
            elif done.exception() is not None:
                outer.set_exception(done.exception())  # type: ignore[arg-type]
            else:
                outer.set_result(done.result())
        if self._waiting:
            self._dispatch(engine if engine in self._loads else None)

    def _resend(self, job: _Job, samples: Iterable[int]) -> None:
        """Send single samples again, before all others, because they have waited longest."""
        one = replace(job.sampling, num_samples=1)
        jobs = [_Job(job.token_ids, one, job.seed + i, [job.futures[i]]) for i in samples if not job.futures[i].done()]
        self.num_resent += len(jobs)
        self._waiting.extendleft(reversed(jobs))
        self._dispatch()


def _cancel_too(inner: "asyncio.Future[Any]", outer: "asyncio.Future[Any]") -> None:
    if outer.cancelled():
        inner.cancel()
