"""An engine in another process: an `Engine` on this side, a `RolloutWorker` on the other.

Every submitted request either finishes or fails with `EngineLost`, whose message names the worker, the phase, and what
the call was waiting for. A worker counts as lost when a call to it fails, when it reports that its engine died, when it
does not answer, or when its engine makes no step for `stall_s` while requests are in flight. The step counter is
needed because a hung engine still answers every cheaper probe.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

from volley.rollout.engines.messages import Collected, Request, RequestBatch
from volley.rollout.engines.worker import WorkerInfo
from volley.rollout.errors import EngineLost
from volley.rollout.transport.protocol import ReceiverEnd, VerbResult
from volley.rollout.transport.stream import TransportError
from volley.rollout.types import Completion, Logprobs, Sampling, TokenIds

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

POLL_S = 1.0
IDLE_POLL_S = 10.0
ANSWER_S = 30.0
"""How long a worker may take to answer a call that needs no work."""


class RemoteEngine:
    """Samples through a `RolloutWorker` in another process."""

    def __init__(
        self,
        name: str,
        call: Callable[..., Awaitable[Any]],
        stall_s: float = 120.0,
        on_lost: "Callable[[RemoteEngine, str], None]" = lambda engine, reason: None,
        num_ranks: int = 1,
    ) -> None:
        """name: appears in every error. call: calls (method, *arguments) on the worker. stall_s: see the module.
        on_lost: called once, with this engine and the reason. num_ranks: processes of the engine."""
        self.name = name
        self.version = 0
        self.capacity: float = 1
        self.num_ranks = num_ranks
        self.lost = ""
        self.process_ids: tuple[int, ...] = ()
        self._call = call
        self._stall_s = stall_s
        self._on_lost = on_lost
        self._num_requests = 0
        self._queued: list[Request] = []
        self._futures: dict[tuple[int, int], asyncio.Future[Completion]] = {}
        self._num_steps = -1
        self._progress_at = 0.0
        self._pushing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._collector: asyncio.Task[None] | None = None

    async def start(self, deadline_s: float) -> None:
        """Wait until the worker's model is loaded. Raises `EngineLost`."""
        info: WorkerInfo = await self._ask("start", deadline_s, "start")
        self.process_ids, self.capacity = info.process_ids, info.capacity

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        """See `Engine.submit`. Requests submitted in one turn of the event loop are sent together."""
        if self.lost:
            raise EngineLost(self.lost)
        loop = asyncio.get_running_loop()
        self._num_requests += 1
        if not self._queued:
            self._spawn(self._flush())
        if not self._futures:
            self._progress_at = loop.time()
        self._queued.append(Request(self._num_requests, token_ids, sampling, seed))
        futures: list[asyncio.Future[Completion]] = [loop.create_future() for _ in range(sampling.num_samples)]
        self._futures |= {(self._num_requests, sample): future for sample, future in enumerate(futures)}
        if self._collector is None:
            self._collector = loop.create_task(self._collect(), name=f"collect from {self.name}")
        return futures

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """See `Engine.logprobs`."""
        return list(await self._ask("logprobs", self._stall_s, "logprobs", sequences))

    async def transfer(
        self, deadline_s: float | None, verb: Callable[[ReceiverEnd, *Ts], Awaitable[T]], *arguments: *Ts
    ) -> T:
        """Call a verb of a push in the engine; see `RemoteReceiver`."""
        name = verb.__name__
        is_joining = name == ReceiverEnd.connect.__name__
        # The engine may make no step while it receives or loads, and makes none between `commit` and `resume`.
        self._pushing = self._pushing or not is_joining
        try:
            result: VerbResult = await self._ask(name, deadline_s, "transfer", name, *arguments)
        finally:
            if name in (ReceiverEnd.receive.__name__, ReceiverEnd.resume.__name__):
                self._pushed()
        if result.error:
            raise TransportError(result.error)
        value: T = result.value
        return value

    def lose(self, reason: str) -> None:
        """Treat the worker as lost: everything in flight fails with `EngineLost`."""
        if self.lost:
            return
        self.lost = f"rollout worker {self.name}: {reason}"
        error = EngineLost(self.lost)
        self._stop()
        futures, self._futures = self._futures, {}
        for future in futures.values():
            if not future.done():
                future.set_exception(error)
        self._on_lost(self, self.lost)

    async def close(self) -> None:
        """Stop polling. The code that started the worker also ends it."""
        self._stop()
        for future in self._futures.values():
            future.cancel()

    async def _ask(self, phase: str, deadline_s: float | None, method: str, *arguments: Any) -> Any:
        if self.lost:
            raise EngineLost(self.lost)
        try:
            async with asyncio.timeout(deadline_s):
                return await self._call(method, *arguments)
        except TimeoutError:
            self.lose(f"{phase}: no answer within {deadline_s:g} s")
        except Exception as error:
            self.lose(f"{phase}: {_first_line(error)}")
        raise EngineLost(self.lost)

    async def _flush(self) -> None:
        await asyncio.sleep(0)
        queued, self._queued = self._queued, []
        with contextlib.suppress(EngineLost):
            await self._ask("submit", ANSWER_S, "submit", RequestBatch.pack(queued))

    async def _collect(self) -> None:
        confirmed: tuple[tuple[int, int], ...] = ()
        while not self.lost:
            wait_s = POLL_S if self._futures else IDLE_POLL_S
            try:
                collected: Collected = await self._ask("collect", wait_s + ANSWER_S, "collect", confirmed, wait_s)
            except EngineLost:
                return
            finished_samples = collected.finished()
            for finished in finished_samples:
                # A sample may be delivered twice; the second time its future is gone.
                future = self._futures.pop((finished.number, finished.sample), None)
                if future is None or future.done():
                    continue
                if finished.completion is None:
                    future.set_exception(RuntimeError(f"rollout worker {self.name}: {finished.error}"))
                else:
                    future.set_result(finished.completion)
            confirmed = tuple((finished.number, finished.sample) for finished in finished_samples)
            self._watch(collected)

    def _watch(self, collected: Collected) -> None:
        now = asyncio.get_running_loop().time()
        if collected.dead:
            self.lose(f"generate: its engine died ({collected.dead})")
        elif collected.num_steps != self._num_steps or not self._futures or self._pushing:
            self._num_steps, self._progress_at = collected.num_steps, now
        elif now - self._progress_at > self._stall_s:
            waiting = sorted({number for number, _ in self._futures})[:5]
            self.lose(f"generate: its engine made no step for {self._stall_s:g} s; waiting for requests {waiting}")

    def _pushed(self) -> None:
        self._pushing = False
        self._progress_at = asyncio.get_running_loop().time()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self) -> None:
        current = asyncio.current_task()
        for task in (self._collector, *self._tasks):
            if task is not None and task is not current:
                task.cancel()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
