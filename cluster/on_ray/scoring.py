"""Score completions in actors on the nodes of the rollout workers, instead of in processes of the driver's machine.

Each actor runs a `ProcessScorer` with `scorer.workers` processes, so results and time limits are those of a local run.
The driver only distributes: items of one turn of the event loop travel together to the actor with the fewest items, and
scores come back as they are finished. Scoring has no side effects, so the unfinished items of an actor that died are
simply scored again. Group terms are not scored here; they stay in the driver.

Left out: actors on nodes that get their first rollout worker after the start, by `volley scale` or a restart.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from volley.cluster.on_ray.actors import await_actor, first_line
from volley.cluster.recipe.config import Recipe
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Item
from volley.rewards.scoring.process_scorer import ProcessScorer
from volley.rollout.errors import LostError, RewardError
from volley.rollout.types import Score

LINGER_S = 0.005
"""How long an actor waits for more finished items before it returns some, so that a message carries several."""
HEARTBEAT_S = 5.0
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

    async def start(self) -> None:
        """Load the rewards. Raises `RewardError`."""
        await self._scorer.start()

    async def score(self, items: Sequence[Item]) -> AsyncIterator[list[tuple[int, Score]]]:
        """The scores of all items, in the order in which they are finished: (index of the item, score)."""
        indices = {asyncio.ensure_future(self._scorer.score(item)): index for index, item in enumerate(items)}
        pending = set(indices)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                await asyncio.sleep(LINGER_S)
                more = {task for task in pending if task.done()}
                done, pending = done | more, pending - more
            yield [(indices[task], task.result()) for task in done]

    async def heartbeat(self) -> None:
        """Returns unless the process hangs."""


@dataclass(eq=False)
class _Waiting:
    """An item and the future of its score."""

    item: Item
    score: "asyncio.Future[Score]"


class _Host:
    """One scoring actor, and its successors on the same node."""

    def __init__(self, index: int, node: str) -> None:
        self.index = index
        self.node = node
        """Id of the preferred node."""
        self.actor: Any = None
        self.is_up = False
        self.load = 0
        """Items that the actor is scoring."""
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
        self._waiting: list[_Waiting] = []
        self._local: ProcessScorer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._closing = False

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
        for host in self._hosts:
            self._spawn(self._watch(host))

    async def close(self) -> None:
        """End the actors, and cancel waiting items. May be called twice."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._waiting:
            waiting.score.cancel()
        if self._local is not None:
            await self._local.close()
        await asyncio.to_thread(self._kill_actors)

    async def score(self, item: Item) -> Score:
        """As `ItemScorer.score`. Raises `LostError` once no actor can be started any more."""
        if self._local is not None:
            return await self._local.score(item)
        if self._error is not None:
            raise self._error
        waiting = _Waiting(item, asyncio.get_running_loop().create_future())
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.append(waiting)
        return await waiting.score

    def _send(self) -> None:
        """Distribute the waiting items among the actors. Without an actor they wait until one is started."""
        self._waiting = batch = [each for each in self._waiting if not each.score.done()]
        if self._error is not None:
            for waiting in batch:
                waiting.score.set_exception(self._error)
            self._waiting = []
        up = [host for host in self._hosts if host.is_up]
        if not self._waiting or not up or self._closing:
            return
        self._waiting = []
        share = math.ceil(len(batch) / len(up))
        for host in sorted(up, key=lambda host: host.load):
            part, batch = batch[:share], batch[share:]
            if part:
                host.load += len(part)
                self._spawn(self._score_in(host, host.actor, part))

    async def _score_in(self, host: _Host, actor: Any, batch: list[_Waiting]) -> None:
        """Score a batch in one actor. What it does not finish is scored again by another."""
        try:
            async for reference in actor.score.options(num_returns="streaming").remote([each.item for each in batch]):
                for index, score in await await_actor(f"scoring actor {host.index}: score", reference):
                    if not batch[index].score.done():
                        batch[index].score.set_result(score)
        except (LostError, ray.exceptions.RayError) as error:
            self._on_lost(host, actor, first_line(error))
        except RewardError as error:
            self._fail(error)
        finally:
            if host.actor is actor:
                host.load -= len(batch)
            self._waiting = [each for each in batch if not each.score.done()] + self._waiting
            self._send()

    async def _start_actor(self, host: _Host) -> None:
        """Start the host's actor and wait until its rewards are loaded. Raises `LostError` or `RewardError`."""
        start_s, name = self._recipe.cluster.start_s, f"scoring actor {host.index}"
        host.load, host.started_at = 0, time.monotonic()
        host.actor = (
            ray.remote(ScoringActor)
            .options(
                name=f"{self._recipe.name}:scoring-{host.index}.{host.generation}",
                num_cpus=self._cpus,
                max_concurrency=100_000,
                scheduling_strategy=NodeAffinitySchedulingStrategy(host.node, soft=True),
            )
            .remote(self._spec)
        )
        try:
            async with asyncio.timeout(start_s):
                await await_actor(f"{name}: start", host.actor.start.remote())
        except TimeoutError:
            raise LostError(f"{name}: start: no answer within {start_s:g} s") from None
        host.is_up = True
        self._send()

    async def _watch(self, host: _Host) -> None:
        """Notice when the host's actor dies or hangs, whether or not it is scoring."""
        deadline_s = self._recipe.cluster.stall_s
        while host in self._hosts:
            await asyncio.sleep(HEARTBEAT_S)
            if not host.is_up:
                continue
            actor = host.actor
            try:
                async with asyncio.timeout(deadline_s):
                    await await_actor("heartbeat", actor.heartbeat.remote())
            except TimeoutError:
                self._on_lost(host, actor, f"no heartbeat for {deadline_s:g} s")
            except LostError as error:
                self._on_lost(host, actor, first_line(error))

    def _on_lost(self, host: _Host, actor: Any, reason: str) -> None:
        """The actor is lost: kill it, and start another in its place."""
        if self._closing or host.actor is not actor or not host.is_up:
            return
        host.is_up = False
        self._notify(f"lost: scoring actor {host.index}: {reason}; starting another")
        with contextlib.suppress(Exception):
            ray.kill(actor)
        self._spawn(self._replace(host))

    async def _replace(self, host: _Host) -> None:
        if time.monotonic() - host.started_at > HEALTHY_S:
            host.failures = 0
        while True:
            host.failures += 1
            host.generation += 1
            if host.failures > self._recipe.cluster.max_restarts:
                self._notify(f"scoring actor {host.index} failed {host.failures} times in a row; continuing without it")
                self._hosts.remove(host)
                if not self._hosts:
                    self._fail(LostError("scoring: no scoring actor is left"))
                return
            await asyncio.sleep(min(30.0, 0.5 * 2 ** (host.failures - 1)))
            try:
                await self._start_actor(host)
            except (LostError, RewardError):
                with contextlib.suppress(Exception):
                    ray.kill(host.actor)
            else:
                return

    def _fail(self, error: BaseException) -> None:
        """No item can be scored any more."""
        self._error = error
        self._send()

    def _kill_actors(self) -> None:
        for host in self._hosts:
            with contextlib.suppress(Exception):
                ray.kill(host.actor)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._closing:
            self._fail(error)
