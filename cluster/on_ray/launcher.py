"""The Ray launcher: rollout workers and learner ranks as actors, with weights over the wire.

Workers that are lost are replaced (`ray_fleet`); a new one serves after a push that was verified. That happens at the
next push of the loop, or at once when the learner stands where it last pushed, so that a run whose workers all died
goes on by itself. A learner rank that dies ends the run: its state is in the last checkpoint.
"""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from volley.cluster.on_ray import connection as ray_cluster
from volley.cluster.on_ray.actors import RankActor, actor_options, answer, call, call_beside, first_line, reserve
from volley.cluster.on_ray.fleet import RayFleet
from volley.cluster.on_ray.metrics import RayMetrics
from volley.cluster.on_ray.placement import needs_of, transport_of
from volley.cluster.on_ray.token import cluster_address
from volley.cluster.recipe.build import Parts
from volley.learner.ranks.group import Call, LearnerGroup
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.errors import ConfigError, LostError
from volley.rollout.transport.client import WeightClient

BEAT_S = 5.0
LEAST_SILENCE_S = 30.0
"""How often a learner rank is asked for a sign of life, and how long it may at least take: it may be busy in a long
call that lets no other thread of its process run."""
DEATH_S = 5.0
"""How long after a rank's failure the death of another may become known that was its cause."""


class RayLauncher:
    """`Launcher` on a Ray cluster. say: tells the user of losses and restarts."""

    learner: LearnerGroup
    pool: RolloutPool

    def __init__(self, parts: Parts, say: Callable[[str], None]) -> None:
        self._parts = parts
        self._recipe = parts.recipe
        self._say = say
        self._ranks: list[Any] = []
        self._groups: list[PlacementGroup] = []
        self._fleet: RayFleet | None = None
        self._version = 0
        self._push_turn = asyncio.Lock()
        self._deaths: set[asyncio.Task[None]] = set()
        self._push: dict[str, float] = {}
        self._closing = False
        # A private cluster has no dashboard, so nobody would look.
        self._shows_metrics = self._recipe.cluster.metrics and bool(cluster_address(self._recipe))
        self._metrics = RayMetrics(self._recipe.name) if self._shows_metrics else None

    async def prepare(self) -> None:
        """Connect, and see whether the name is free and the cluster large enough."""
        self._vital: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await asyncio.to_thread(ray_cluster.connect, self._recipe)
        try:
            await asyncio.to_thread(ray_cluster.wait_for_name, self._recipe.name)
            self._needs = needs_of(self._recipe, ray_cluster.nodes(), self._parts.needs_engine)
        except ConfigError:
            ray_cluster.disconnect()
            raise

    async def start(self) -> None:
        """Reserve what the run needs, and load the model everywhere at once."""
        needs = self._needs
        transport = transport_of(self._recipe, needs)
        ranks_at = reserve([{"CPU": needs.rank_cpus, "GPU": needs.rank_gpus}] * needs.ranks, "PACK")
        self._fleet = RayFleet(
            self._parts, needs, transport, self._shows_metrics, self._say, self._push_to_joining, self._give_up
        )
        self.pool = self._fleet.pool
        self._groups = [ranks_at]
        await self._wait_reserved([ranks_at, *self._fleet.groups])
        await asyncio.gather(self._start_ranks(ranks_at), self._fleet.start())
        self._client = WeightClient(self.learner, transport, self._recipe.transfer)

    async def push(self, version: int) -> None:
        """Send the learner's weights to all workers that live, also to those that wait to join."""
        if not self._parts.needs_engine:
            return
        async with self._push_turn:
            self._version = version
            await self._push_now()

    async def watch(self) -> None:
        """Raises `LostError` when a learner rank or too many workers are gone for good."""
        await self._vital

    def metrics(self) -> dict[str, float]:
        assert self._fleet is not None
        return {
            **self._push,
            "rollout_workers": len(self.pool.engines),
            "rollout_restarts": self._fleet.restarts,
            "samples_resent": self.pool.num_resent,
            "samples_in_flight": self.pool.num_in_flight,
            "samples_waiting": self.pool.num_waiting,
        }

    def show(self, row: dict[str, float]) -> None:
        """Put the row into Ray's metrics."""
        if self._metrics is not None:
            self._metrics.step(row)

    async def close(self) -> None:
        """End all actors and give the reservations back."""
        self._closing = True
        for task in self._deaths:
            task.cancel()
        if self._fleet is not None:
            await self._fleet.close()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        if self._fleet is not None:
            self._fleet.kill()
        for actor in self._ranks:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        for group in self._groups:
            with contextlib.suppress(Exception):
                remove_placement_group(group)
        ray_cluster.disconnect()

    async def _wait_reserved(self, groups: list[PlacementGroup]) -> None:
        try:
            async with asyncio.timeout(self._recipe.cluster.start_s):
                for group in groups:
                    await group.ready()
        except TimeoutError:
            needs = self._needs
            raise LostError(
                f"cluster: {needs.cpus:g} CPUs and {needs.gpus} GPUs for {needs.workers} rollout workers and "
                f"{needs.ranks} learner ranks were not free within {self._recipe.cluster.start_s:g} s; wait for other "
                "jobs, or ask for less."
            ) from None

    async def _start_ranks(self, group: PlacementGroup) -> None:
        parts, recipe, needs = self._parts, self._recipe, self._needs
        actor_class = ray.remote(concurrency_groups={"watch": 4})(RankActor)
        for rank in range(needs.ranks):
            options = actor_options(recipe, f"learner-{rank}", needs.rank_cpus, needs.rank_gpus, group, rank)
            self._ranks.append(actor_class.options(**options).remote())
        for rank, actor in enumerate(self._ranks):
            self._deaths.add(asyncio.create_task(self._await_death(f"learner rank {rank}", actor)))
        address, port = await answer("learner rank 0: meet", self._ranks[0].meet.remote())
        try:
            async with asyncio.timeout(recipe.cluster.start_s):
                await asyncio.gather(
                    *(
                        answer(
                            f"learner rank {rank}: start",
                            actor.start.remote(
                                recipe, parts.loss, parts.model.path, parts.records_reference, rank, address, port
                            ),
                        )
                        for rank, actor in enumerate(self._ranks)
                    )
                )
        except TimeoutError:
            raise LostError(f"learner: start: the model was not loaded within {recipe.cluster.start_s:g} s") from None
        calls: list[Call] = []
        for rank, actor in enumerate(self._ranks):
            name = f"learner rank {rank}"
            self._deaths.add(asyncio.create_task(self._await_silence(name, actor)))
            calls.append(partial(self._call_rank, name, actor))
        self.learner = LearnerGroup(calls, ray.put, partial(call_beside, "learner rank 0", self._ranks[0]))

    async def _call_rank(self, name: str, actor: Any, method: str, *arguments: Any) -> Any:
        try:
            return await call(name, actor, method, *arguments)
        except RuntimeError:
            # A collective fails so when another rank died in it, and then that is what to tell.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEATH_S):
                    await asyncio.shield(self._vital)
            raise

    async def _push_to_joining(self) -> None:
        """A worker waits to join: let it, where the learner stands where it last pushed, or nobody else is left."""
        assert self._fleet is not None
        async with self._push_turn:
            is_clean = self.learner.step == self.learner.pushed_step and not self.learner.is_busy
            if self._fleet.joining and (is_clean or not self.pool.engines):
                await self._push_now()

    async def _push_now(self) -> None:
        assert self._fleet is not None
        report = await self._client.push([*self._fleet.live, *self._fleet.joining], self._version)
        for engine in report.committed:
            self._fleet.admit(engine, self._version)
        self._push = {
            "push_seconds": report.seconds,
            "push_bytes": float(report.num_bytes),
            "push_attempts": float(report.num_attempts),
        }

    async def _await_death(self, name: str, actor: Any) -> None:
        try:
            await actor.last.remote()
        except Exception as error:
            if not self._closing:
                self._give_up(LostError(f"{name}: died ({first_line(error)})"))

    async def _await_silence(self, name: str, actor: Any) -> None:
        """A frozen rank is alive to Ray, and all others would wait for it in a collective."""
        deadline_s = max(self._recipe.cluster.stall_s, LEAST_SILENCE_S)
        with contextlib.suppress(LostError):  # `_await_death` tells of it
            while True:
                await asyncio.sleep(BEAT_S)
                try:
                    async with asyncio.timeout(deadline_s):
                        await answer(f"{name}: beat", actor.beat.remote())
                except TimeoutError:
                    self._give_up(LostError(f"{name}: answered nothing for {deadline_s:g} s; its process hangs"))
                    return

    def _give_up(self, error: BaseException) -> None:
        if not self._vital.done():
            self._vital.set_exception(error)
