"""A pool of scoring processes that are killed on a time limit and replaced.

    submit() --> waiting --> batch --> process, item by item --> Work.done

The time limit of an item starts when work on it starts. A process that exceeds it, or dies, is killed with everything
it started, and replaced. Only the item in progress becomes unscorable; the others of its batch return to the front of
the queue. Nothing here blocks the event loop except starting a process, which takes milliseconds.
"""

import asyncio
import math
import os
import subprocess
import time
from collections import deque
from collections.abc import Sequence

from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.scoring.child_handle import LOW_WATER_MARK, Child, Work
from volley.rewards.scoring.launch import START_TIMEOUT_S, kill, launch, too_slow_loading
from volley.rollout.errors import RewardError

MAX_BATCH = 16
CLOSE_TIMEOUT_S = 5.0
MAX_FAILED_STARTS = 3
REAP_EVERY_S = 0.02


class ProcessPool:
    """Computes terms of items in `config.num_workers` processes."""

    def __init__(self, terms: Sequence[RewardConfig], config: ScorerConfig, network: bool) -> None:
        """network: whether the processes may use the network."""
        self._terms = terms
        self._labels = [term.label for term in terms]
        self._config = config
        self._network = network
        self._cores = len(os.sched_getaffinity(0))
        self._waiting: deque[Work] = deque()
        self._children: list[Child] = []
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._supervisors: list[asyncio.Task[None]] = []
        self._broken: Exception | None = None
        self._closed = False
        self._dispatch_is_due = False

    async def start(self) -> None:
        """Start the processes. Raises RewardError if one cannot load a reward within `START_TIMEOUT_S`."""
        loop = asyncio.get_running_loop()
        ready: list[asyncio.Future[None]] = [loop.create_future() for _ in range(self._config.num_workers)]
        self._supervisors = [asyncio.ensure_future(self._supervise(each)) for each in ready]
        await asyncio.gather(*ready)

    async def close(self) -> None:
        """Kill the processes and cancel waiting items, within `CLOSE_TIMEOUT_S`. May be called twice."""
        self._closed = True
        for process in self._processes:
            kill(process)
        for supervisor in self._supervisors:
            supervisor.cancel()
        for child in self._children:
            child.end()
            self._waiting.extend(child.work)
        for work in self._waiting:
            work.done.cancel()
        self._waiting.clear()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        if self._supervisors:
            await asyncio.wait(self._supervisors, timeout=CLOSE_TIMEOUT_S)
        while self._reap() and time.monotonic() < deadline:
            await asyncio.sleep(REAP_EVERY_S)

    def check_running(self) -> None:
        """Raise RuntimeError unless the pool is running, and RewardError if no process can be started any more."""
        if self._broken:
            raise self._broken
        if self._closed or not self._supervisors:
            raise RuntimeError("the scorer is not running; use it as 'async with Scorer(...) as scorer'")

    def submit(self, work: Work) -> None:
        """Queue an item. `work.done` is set when a process has computed it."""
        self._waiting.append(work)
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        """Dispatch at the end of this event-loop turn, so that items submitted together are sent together."""
        if not self._dispatch_is_due and not self._closed:
            self._dispatch_is_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_is_due = False
        # Unless there is enough work for all, no item should wait behind another while some process may soon be idle.
        limit = LOW_WATER_MARK if len(self._waiting) >= MAX_BATCH * len(self._children) else 0
        for child in [each for each in self._children if each.is_up and len(each.work) <= limit]:
            size = min(MAX_BATCH, math.ceil(len(self._waiting) / (2 * len(self._children))))
            batch: list[Work] = []
            while self._waiting and len(batch) < size:
                work = self._waiting.popleft()
                if not work.done.done():
                    batch.append(work)
            if batch:
                child.send(batch)

    async def _supervise(self, ready: "asyncio.Future[None]") -> None:
        """Keep one process running: start it, wait for its end, take back its work, and start a replacement."""
        try:
            child = await self._start_child()
            ready.set_result(None)
            while True:
                self._children.append(child)
                self._dispatch_soon()
                await child.ended.wait()
                self._children.remove(child)
                self._waiting.extendleft(reversed(child.work))
                self._dispatch_soon()
                child = await self._replace()
        except Exception as error:
            if not ready.done():
                ready.set_exception(error)
            elif all(each.done() for each in self._supervisors if each is not asyncio.current_task()):
                self._fail_waiting(error)

    async def _replace(self) -> Child:
        for attempt in range(1, MAX_FAILED_STARTS + 1):
            try:
                return await self._start_child()
            except RewardError:
                if attempt == MAX_FAILED_STARTS:
                    raise
        raise AssertionError("unreachable")

    def _fail_waiting(self, error: Exception) -> None:
        """The last process has ended and cannot be replaced."""
        self._broken = error
        for work in self._waiting:
            if not work.done.done():
                work.done.set_exception(error)
        self._waiting.clear()

    async def _start_child(self) -> Child:
        self._reap()
        cpu_s = math.ceil(self._config.timeout_s) * self._cores + 1
        try:
            process, connection = launch(self._terms, None, cpu_s, self._config.memory_bytes, self._network)
        except OSError as error:
            raise RewardError(f"rewards: a scoring process cannot be started ({error}).") from None
        self._processes.add(process)
        connection.setblocking(False)
        child = Child(process, self._labels, self._config.timeout_s, self._dispatch_soon)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.get_running_loop().create_unix_connection(lambda: child, sock=connection)
                await child.ready
        except TimeoutError:
            raise too_slow_loading(child.loading, START_TIMEOUT_S) from None
        finally:
            if not child.is_up:
                child.end()
        return child

    def _reap(self) -> bool:
        """Collect processes that have ended. Returns whether some are still running."""
        self._processes = {process for process in self._processes if process.poll() is None}
        return bool(self._processes)
