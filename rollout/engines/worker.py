"""A rollout worker: an engine in its own process, called remotely. A plain class; Ray turns it into an actor.

Requests arrive in batches and are identified by number. Finished completions are fetched by long poll and kept until
their receipt is confirmed. A call that is repeated, or whose reply is lost, therefore changes nothing.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from volley.rollout.engines.engine import WorkerEngine
from volley.rollout.engines.messages import Collected, Finished, RequestBatch
from volley.rollout.transport.protocol import VerbResult
from volley.rollout.transport.stream import TransportError
from volley.rollout.types import Completion, Logprobs, TokenIds

LINGER_S = 0.003
"""How long a poll waits for more completions after the first one, so that few messages carry many."""
LINGER_FROM = 8
"""Number of unfinished requests from which that wait pays off."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker reports once its model is loaded."""

    process_ids: tuple[int, ...]
    """The worker's own, then those of its engine."""
    capacity: float
    """Samples that run at once."""


class RolloutWorker:
    """Holds an engine and serves the calls of a `RemoteEngine`."""

    def __init__(self, build: Callable[[], WorkerEngine]) -> None:
        """build: creates the engine; it is called on the worker's event loop."""
        self._build = build
        self._loaded: WorkerEngine | None = None
        self._unconfirmed: dict[int, int] = {}  # number -> samples whose receipt is not confirmed yet
        self._finished: dict[tuple[int, int], Finished] = {}
        self._arrival: asyncio.Future[None] | None = None
        self._dead = ""

    @property
    def _engine(self) -> WorkerEngine:
        assert self._loaded is not None, "the worker was not started"
        return self._loaded

    async def start(self) -> WorkerInfo:
        """Load the model. May be called again."""
        if self._loaded is None:
            self._loaded = self._build()
        return WorkerInfo((os.getpid(), *await self._engine.process_ids()), self._engine.capacity)

    async def submit(self, requests: RequestBatch) -> None:
        """Start every request that is not known yet."""
        for request in requests.unpack():
            if request.number not in self._unconfirmed:
                self._unconfirmed[request.number] = request.sampling.num_samples
                futures = self._engine.submit(request.token_ids, request.sampling, request.seed)
                for sample, future in enumerate(futures):
                    future.add_done_callback(partial(self._finish, request.number, sample))

    async def collect(self, confirmed: Sequence[tuple[int, int]], wait_s: float) -> Collected:
        """The finished samples that are not confirmed yet; waits up to `wait_s` seconds for the first one.

        confirmed: (request number, sample) of those that have arrived.
        """
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
        return Collected.pack(list(self._finished.values()), self._engine.num_steps, self._dead)

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """See `Engine.logprobs`."""
        return list(await self._engine.logprobs(sequences))

    async def transfer(self, verb: str, *arguments: Any) -> VerbResult:
        """Call a verb of a push (a method of `ReceiverEnd`) in the engine."""
        try:
            return VerbResult(await getattr(self._engine, verb)(*arguments))
        except TransportError as error:
            return VerbResult(None, str(error))

    async def close(self) -> None:
        """Free the engine."""
        if self._loaded is not None:
            await self._loaded.close()

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
