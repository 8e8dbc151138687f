"""Score completions in actors on the nodes of the rollout workers, instead of in processes of the driver's machine.

Each actor runs a `ProcessScorer` with `scorer.workers` processes, so results and time limits are those of a local run.
The driver only distributes. While an actor has items, there is one call to it at a time, which brings it new items and
returns finished scores after `EXCHANGE_S`; so the driver's cost depends little on the number of items. Scoring has no
side effects, so the unfinished items of an actor that is lost are simply scored again. Group terms are not scored
here; they stay in the driver.

Left out: actors on nodes that get their first rollout worker after the start, by `volley scale` or a restart.
"""

import asyncio
import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from volley.cluster.on_ray.actors import await_actor
from volley.cluster.recipe.config import Recipe
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Item
from volley.rewards.scoring.process_scorer import ProcessScorer
from volley.rollout.errors import LostError, RewardError
from volley.rollout.types import Score

EXCHANGE_S = 0.02
"""How long an actor collects finished items before it returns them, unless it has finished all."""
MAX_ITEMS = 1024
"""Items in one actor at a time. The rest waits in the driver, where any actor can take it."""
HEALTHY_S = 300.0
"""After this lifetime of an actor, its count of consecutive failures starts again from zero."""


@dataclass(frozen=True)
class ScoringSpec:
    """What a scoring actor needs to score."""

    terms: Sequence[RewardConfig]
    """The plain terms."""
    config: ScorerConfig
    directory: str
    """Working directory of the run, where functions of the user are found."""


class ScoringActor:
    """A `ProcessScorer` as an actor."""

    def __init__(self, spec: ScoringSpec) -> None:
        # If the directory does not exist on this node, this is the copy of it that Ray made for the job.
        with contextlib.suppress(OSError):
            os.chdir(spec.directory)
        self._scorer = ProcessScorer(spec.terms, spec.config)
        self._tasks: dict[int, asyncio.Task[Score]] = {}

    async def start(self) -> None:
        """Load the rewards. Raises `RewardError`."""
        await self._scorer.start()

    async def exchange(self, items: Sequence[tuple[int, Item]]) -> list[tuple[int, Score]]:
        """Start scoring these numbered items; returns the scores that were finished since the last call."""
        for number, item in items:
            self._tasks[number] = asyncio.ensure_future(self._scorer.score(item))
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=EXCHANGE_S)
        finished = [number for number, task in self._tasks.items() if task.done()]
        return [(number, self._tasks.pop(number).result()) for number in finished]


@dataclass(eq=False)
class _Work:
    """An item and the future of its score."""

    number: int
    item: Item
    score: "asyncio.Future[Score]"


class _Host:
    """One scoring actor, and its successors on the same node."""

    def __init__(self, index: int, node: str) -> None:
        self.index = index
        self.node = node
        """Id of the preferred node."""
        self.name = f"scoring actor {index}"
        self.actor: Any = None
        self.work: dict[int, _Work] = {}
        """What the actor has not finished."""
        self.generation = 0
        """How many actors were started before the current one."""
        self.failures = 0
        """Consecutive failures."""
        self.started_at = 0.0


class ActorScorer:
    """An `ItemScorer` that distributes items among scoring actors. Use it on one event loop."""

    def __init__(
        self,
        recipe: Recipe,
        spec: ScoringSpec,
        cpus: float,
        nodes: Callable[[], Awaitable[Sequence[str]]],
        notify: Callable[[str], None],
    ) -> None:
        """cpus: that each actor reserves. nodes: the ids of the nodes to place actors on, one each."""
        self._recipe = recipe
        self._spec = spec
        self._cpus = cpus
        self._nodes = nodes
        self._notify = notify
        self._hosts: list[_Host] = []
        self._waiting: deque[_Work] = deque()
        self._arrival = asyncio.Event()
        self._num_items = 0
        self._local: ProcessScorer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._error: BaseException | None = None

    async def start(self) -> None:
        """Start the actors. If that fails, scoring processes on this machine take their place."""
        self._hosts = [_Host(index, node) for index, node in enumerate(await self._nodes())]
        try:
            await asyncio.gather(*(self._start_actor(host) for host in self._hosts))
        except (LostError, RewardError) as error:
            self._kill_actors()
            self._notify(f"warning: scoring actors did not start ({error}); scoring on the driver's machine")
            self._local = ProcessScorer(self._spec.terms, self._spec.config)
            await self._local.start()
            return
        self._tasks = [asyncio.create_task(self._serve(host), name=host.name) for host in self._hosts]

    async def close(self) -> None:
        """Kill the actors, and cancel waiting items. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for work in [*self._waiting, *(work for host in self._hosts for work in host.work.values())]:
            work.score.cancel()
        if self._local is not None:
            await self._local.close()
        await asyncio.to_thread(self._kill_actors)
        self._hosts, self._tasks = [], []

    async def score(self, item: Item) -> Score:
        """As `ItemScorer.score`. Raises `LostError` once no actor can be started any more."""
        if self._local is not None:
            return await self._local.score(item)
        if self._error is not None:
            raise self._error
        self._num_items += 1
        work = _Work(self._num_items, item, asyncio.get_running_loop().create_future())
        self._waiting.append(work)
        self._arrival.set()
        return await work.score

    async def _serve(self, host: _Host) -> None:
        """Keep the host's actor busy, and replace it when it is lost."""
        try:
            while True:
                if not host.work and not self._waiting:
                    self._arrival.clear()
                    await self._arrival.wait()
                    # Items of the same turn of the event loop travel together.
                    await asyncio.sleep(0)
                    continue
                try:
                    await self._exchange(host)
                except LostError as error:
                    self._notify(f"lost: {host.name}: {error}; starting another")
                    self._waiting.extendleft(reversed(host.work.values()))
                    host.work = {}
                    self._arrival.set()
                    if not await self._replace(host):
                        return
        except Exception as error:
            self._fail(error)

    async def _exchange(self, host: _Host) -> None:
        """Send new items to the actor, and take finished scores. Raises `LostError` if it died or hangs."""
        share = math.ceil(len(self._waiting) / len(self._hosts))
        new: list[_Work] = []
        while self._waiting and len(new) < min(share, MAX_ITEMS - len(host.work)):
            work = self._waiting.popleft()
            if not work.score.done():
                new.append(work)
        host.work |= {work.number: work for work in new}
        deadline_s = self._recipe.cluster.stall_s
        call = host.actor.exchange.remote([(work.number, work.item) for work in new])
        try:
            async with asyncio.timeout(deadline_s):
                finished = await await_actor("score", call)
        except TimeoutError:
            raise LostError(f"score: no answer within {deadline_s:g} s") from None
        for number, score in finished:
            work = host.work.pop(number)
            if not work.score.done():
                work.score.set_result(score)

    async def _start_actor(self, host: _Host) -> None:
        """Start the host's actor and wait until its rewards are loaded. Raises `LostError` or `RewardError`."""
        start_s = self._recipe.cluster.start_s
        host.started_at = time.monotonic()
        host.actor = (
            ray.remote(ScoringActor)
            .options(
                name=f"{self._recipe.name}:scoring-{host.index}.{host.generation}",
                num_cpus=self._cpus,
                max_concurrency=100,
                scheduling_strategy=NodeAffinitySchedulingStrategy(host.node, soft=True),
            )
            .remote(self._spec)
        )
        try:
            async with asyncio.timeout(start_s):
                await await_actor(f"{host.name}: start", host.actor.start.remote())
        except TimeoutError:
            raise LostError(f"{host.name}: start: no answer within {start_s:g} s") from None

    async def _replace(self, host: _Host) -> bool:
        """Kill the host's actor and start another. Returns whether the host is still in use."""
        if time.monotonic() - host.started_at > HEALTHY_S:
            host.failures = 0
        while True:
            with contextlib.suppress(Exception):
                ray.kill(host.actor)
            host.failures += 1
            host.generation += 1
            if host.failures > self._recipe.cluster.max_restarts:
                self._notify(f"{host.name} failed {host.failures} times in a row; continuing without it")
                self._hosts.remove(host)
                if not self._hosts:
                    self._fail(LostError("scoring: no scoring actor is left"))
                return False
            await asyncio.sleep(min(30.0, 0.5 * 2 ** (host.failures - 1)))
            with contextlib.suppress(LostError, RewardError):
                await self._start_actor(host)
                return True

    def _fail(self, error: BaseException) -> None:
        """No item can be scored any more."""
        self._error = error
        for work in [*self._waiting, *(work for host in self._hosts for work in host.work.values())]:
            if not work.score.done():
                work.score.set_exception(error)
        self._waiting.clear()

    def _kill_actors(self) -> None:
        for host in self._hosts:
            with contextlib.suppress(Exception):
                ray.kill(host.actor)
