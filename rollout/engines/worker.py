"""A rollout worker: an engine in a process of its own, asked from afar. A plain class; Ray makes an actor of it.

Requests come in batches and are known by number, finished completions are fetched by long poll and kept until their
receipt is confirmed: a call that is made twice, or whose answer got lost, changes nothing.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from volley.rollout.transport.protocol import VerbResult
from volley.rollout.transport.stream import TransportError
from volley.rollout.types import Completion, Logprobs, Sampling, TokenIds

LINGER_S = 0.003
LINGER_FROM = 8
"""How long a poll waits for more after the first completion, so that few messages carry many, and from how many
requests on it is worth while."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. number: unique for the worker's caller."""

    number: int
    token_ids: TokenIds
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """One sample of a request, or the error that it ended with ("" where it did not)."""

    number: int
    sample: int
    completion: Completion | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a poll brings. num_steps: of the engine so far, its sign of life. dead: why it will not answer any more."""

    finished: tuple[Finished, ...]
    num_steps: int
    dead: str = ""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """process_ids: the worker's own, then those of its engine. capacity: samples that run at once."""

    process_ids: tuple[int, ...]
    capacity: int


class RolloutWorker:
    """build: makes the engine; called on the worker's event loop."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._engine: Any = None
        self._unconfirmed: dict[int, int] = {}  # number -> samples whose receipt is not confirmed yet
        self._finished: dict[tuple[int, int], Finished] = {}
        self._arrival: asyncio.Future[None] | None = None
        self._dead = ""

    async def start(self) -> WorkerFacts:
        """Load the model. May be called again."""
        if self._engine is None:
            self._engine = self._build()
        return WorkerFacts((os.getpid(), *await self._engine.process_ids()), self._engine.capacity)

    async def submit(self, requests: Sequence[Request]) -> None:
        """Begin what is not known yet."""
        for request in requests:
            if request.number not in self._unconfirmed:
                self._unconfirmed[request.number] = request.sampling.num_samples
                futures = self._engine.submit(request.token_ids, request.sampling, request.seed)
                for sample, future in enumerate(futures):
                    future.add_done_callback(lambda done, n=request.number, i=sample: self._finish(n, i, done))

    async def collect(self, confirmed: Sequence[tuple[int, int]], wait_s: float) -> Collected:
        """What has finished since; waits up to `wait_s` seconds for it. confirmed: (number, sample) of what arrived."""
        for key in confirmed:
            if self._finished.pop(key, None) is not None:
                self._unconfirmed[key[0]] -= 1
                if not self._unconfirmed[key[0]]:
                    del self._unconfirmed[key[0]]
        if not self._finished and not self._dead:
            loop = asyncio.get_running_loop()
            self._arrival = loop.create_future()
            timer = loop.call_later(wait_s, self._wake)
            await self._arrival
            timer.cancel()
            if len(self._unconfirmed) >= LINGER_FROM:
                await asyncio.sleep(LINGER_S)
        return Collected(tuple(self._finished.values()), self._engine.num_steps, self._dead)

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """As `Engine.logprobs`."""
        return list(await self._engine.logprobs(sequences))

    async def transfer(self, verb: str, *arguments: Any) -> VerbResult:
        """Call a verb of a push (a method of `ReceiverEnd`) in the engine."""
        try:
            return VerbResult(await getattr(self._engine, verb)(*arguments))
        except TransportError as error:
            return VerbResult(None, str(error))

    async def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            await self._engine.close()

    def _finish(self, number: int, sample: int, done: "asyncio.Future[Completion]") -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is not None and self._engine.is_dead:
            self._dead = f"{type(error).__name__}: {error}"
        elif error is not None:
            self._finished[number, sample] = Finished(number, sample, None, f"{type(error).__name__}: {error}")
        else:
            self._finished[number, sample] = Finished(number, sample, done.result())
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
