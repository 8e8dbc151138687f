"""The Ray launcher: rollout workers and learner ranks as actors, kept alive, with weights over the wire.

A rollout worker that dies or hangs is taken out of the pool (its requests go to the others), killed, and started again
in its place; it serves after a push that was verified. That happens at the next push of the loop, or at once when the
learner stands where it last pushed, so that a run whose workers all died goes on by itself. A learner rank that dies
ends the run: its state is in the last checkpoint.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import ray_cluster
from cluster.build import Parts
from cluster.launcher import environment
from cluster.ray_actors import RankActor, WorkerActor, answer, call, first_line
from cluster.ray_metrics import RayMetrics
from cluster.ray_token import cluster_address
from learner.group import Call, LearnerGroup
from rollout.errors import ConfigError, LostError
from rollout.pool import RolloutPool
from rollout.remote_engine import RemoteEngine
from rollout.transport.client import WeightClient

HEALTHY_S = 300.0
"""A worker that lived so long has its restarts counted anew."""


class _Slot:
    """A place for a rollout worker, and who is in it."""

    def __init__(self, index: int, group: PlacementGroup) -> None:
        self.index = index
        self.group = group
        self.actor: Any = None
        self.engine: RemoteEngine | None = None
        self.generation = 0
        self.failures = 0
        self.started_at = 0.0


class RayLauncher:
    """`Launcher` on a Ray cluster. say: tells the user of losses and restarts."""

    learner: LearnerGroup

    def __init__(self, parts: Parts, say: Callable[[str], None]) -> None:
        self._parts = parts
        self._recipe = parts.recipe
        self._say = say
        self.pool = RolloutPool()
        self._slots: list[_Slot] = []
        self._groups: list[PlacementGroup] = []
        self._joining: list[RemoteEngine] = []
        self._ranks: list[Any] = []
        self._version = 0
        self._push_turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._vital: asyncio.Future[None] | None = None
        self._restarts = 0
        self._push: dict[str, float] = {}
        self._closing = False
        # A private cluster has no dashboard, so nobody would look.
        self._shows_metrics = self._recipe.cluster.metrics and bool(cluster_address(self._recipe))
        self._metrics = RayMetrics(self._recipe.name) if self._shows_metrics else None

    async def prepare(self) -> None:
        """Connect, and see whether the cluster is large enough."""
        await asyncio.to_thread(ray_cluster.connect, self._recipe)
        try:
            self._needs = ray_cluster.needs_of(self._recipe)
        except ConfigError:
            ray_cluster.disconnect()
            raise
        self._transport = ray_cluster.transport_of(self._recipe, self._needs)

    async def start(self) -> None:
        """Reserve what the run needs, and load the model everywhere at once."""
        self._vital = asyncio.get_running_loop().create_future()
        needs = self._needs
        rank_bundle = {"CPU": needs.rank_cpus, "GPU": needs.rank_gpus}
        ranks_at = self._reserve([rank_bundle] * needs.ranks, "PACK")
        num_workers = needs.workers if self._parts.needs_engine else 0
        worker_bundle = {"CPU": needs.worker_cpus, "GPU": needs.worker_gpus}
        for index in range(num_workers):
            self._slots.append(_Slot(index, self._reserve([worker_bundle], "STRICT_PACK")))
        await self._wait_reserved()
        await asyncio.gather(self._start_ranks(ranks_at), *(self._start_worker(slot) for slot in self._slots))
        for slot in self._slots:
            assert slot.engine is not None
            # Fresh engines hold what the learner starts with, from the same files.
            self.pool.add(slot.engine)
        self._client = WeightClient(self.learner, self._transport, self._recipe.transfer)

    async def push(self, version: int) -> None:
        """Send the learner's weights to all workers that live, also to those that wait to join."""
        if not self._parts.needs_engine:
            return
        async with self._push_turn:
            self._version = version
            await self._push_now()

    async def watch(self) -> None:
        """Raises `LostError` when a learner rank or too many workers are gone for good."""
        assert self._vital is not None
        await self._vital

    def metrics(self) -> dict[str, float]:
        return {
            **self._push,
            "rollout_workers": len(self.pool.engines),
            "rollout_restarts": self._restarts,
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
        for task in self._tasks:
            task.cancel()
        await self.pool.close()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        for actor in [*self._ranks, *(slot.actor for slot in self._slots if slot.actor is not None)]:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        for group in self._groups:
            with contextlib.suppress(Exception):
                remove_placement_group(group)
        ray_cluster.disconnect()

    def _reserve(self, bundles: list[dict[str, float]], strategy: str) -> PlacementGroup:
        kept = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
        group = placement_group(kept, strategy=strategy)
        self._groups.append(group)
        return group

    async def _wait_reserved(self) -> None:
        try:
            async with asyncio.timeout(self._recipe.cluster.start_s):
                for group in self._groups:
                    await group.ready()
        except TimeoutError:
            needs = self._needs
            raise LostError(
                f"cluster: {needs.cpus:g} CPUs and {needs.gpus} GPUs for {needs.workers} rollout workers and "
                f"{needs.ranks} learner ranks were not free within {self._recipe.cluster.start_s:g} s; wait for other "
                "jobs, or ask for less."
            ) from None

    def _options(self, role: str, cpus: float, gpus: float, group: PlacementGroup, bundle: int) -> dict[str, Any]:
        return {
            "name": f"{self._recipe.name}:{role}",
            "num_cpus": cpus,
            "num_gpus": gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, bundle),
            "runtime_env": {
                "env_vars": {**environment(self._recipe, max(1, int(cpus))), "VLLM_LOGGING_LEVEL": "ERROR"}
            },
        }

    async def _start_ranks(self, group: PlacementGroup) -> None:
        recipe, needs = self._recipe, self._needs
        actor_class = ray.remote(concurrency_groups={"watch": 1})(RankActor)
        for rank in range(needs.ranks):
            options = self._options(f"learner-{rank}", needs.rank_cpus, needs.rank_gpus, group, rank)
            self._ranks.append(actor_class.options(**options).remote())
        for rank, actor in enumerate(self._ranks):
            self._spawn(self._await_death(f"learner rank {rank}", actor))
        address, port = await answer("learner rank 0: meet", self._ranks[0].meet.remote())
        try:
            async with asyncio.timeout(recipe.cluster.start_s):
                await asyncio.gather(
                    *(
                        answer(
                            f"learner rank {rank}: start",
                            actor.start.remote(recipe, self._parts.loss, self._parts.model.path, rank, address, port),
                        )
                        for rank, actor in enumerate(self._ranks)
                    )
                )
        except TimeoutError:
            raise LostError(f"learner: start: the model was not loaded within {recipe.cluster.start_s:g} s") from None
        calls: list[Call] = [partial(call, f"learner rank {r}", actor) for r, actor in enumerate(self._ranks)]
        self.learner = LearnerGroup(calls, share=ray.put)

    async def _start_worker(self, slot: _Slot) -> None:
        """Start a worker in the slot and wait until its model is loaded. Raises `EngineLost`."""
        recipe, needs = self._recipe, self._needs
        name = f"{slot.index}.{slot.generation}"
        slot.started_at = time.monotonic()
        slot.actor = (
            ray.remote(WorkerActor)
            .options(
                **self._options(f"rollout-{name}", needs.worker_cpus, needs.worker_gpus, slot.group, 0),
                max_concurrency=100_000,
            )
            .remote(
                str(self._parts.model.path),
                self._parts.tokenizer,
                recipe,
                self._parts.max_model_len,
                self._transport,
                self._shows_metrics,
            )
        )
        slot.engine = RemoteEngine(
            name,
            partial(call, f"rollout worker {name}", slot.actor),
            recipe.cluster.stall_s,
            lambda engine, reason: self._lost(slot, reason),
            recipe.rollout.tensor_parallel,
        )
        await slot.engine.start(recipe.cluster.start_s)

    def _lost(self, slot: _Slot, reason: str) -> None:
        """A worker is gone: take it out, make sure that it is, and start another in its place."""
        if self._closing:
            return
        assert slot.engine is not None
        self._say(f"lost: {reason}; starting another")
        self.pool.remove(slot.engine)
        with contextlib.suppress(ValueError):
            self._joining.remove(slot.engine)
        with contextlib.suppress(Exception):
            ray.kill(slot.actor)
        self._spawn(self._replace(slot))

    async def _replace(self, slot: _Slot) -> None:
        assert self._vital is not None
        lived = time.monotonic() - slot.started_at
        slot.failures = 1 if lived > HEALTHY_S else slot.failures + 1
        slot.generation += 1
        if slot.failures > self._recipe.cluster.max_restarts:
            self._say(f"rollout worker {slot.index} failed {slot.failures} times in a row; going on without it")
            if sum(each.failures <= self._recipe.cluster.max_restarts for each in self._slots) < (
                self._recipe.rollout.min_workers
            ):
                assert slot.engine is not None
                self._give_up(LostError(f"{slot.engine.lost}; it failed {slot.failures} times in a row"))
            return
        await asyncio.sleep(min(30.0, 0.5 * 2**slot.failures))
        self._restarts += 1
        try:
            await self._start_worker(slot)
        except LostError:
            return  # `_lost` has been told, and tries again
        assert slot.engine is not None
        self._joining.append(slot.engine)
        async with self._push_turn:
            if slot.engine in self._joining and (
                self.learner.step == self.learner.pushed_step or not self.pool.engines
            ):
                await self._push_now()

    async def _push_now(self) -> None:
        live = [slot.engine for slot in self._slots if slot.engine is not None and slot.engine in self.pool.engines]
        report = await self._client.push([*live, *self._joining], self._version)
        for engine in report.committed:
            if engine in self._joining:
                self._joining.remove(engine)
                self.pool.add(engine)
                self._say(f"rollout worker {engine.name} serves version {self._version}")
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

    def _give_up(self, error: LostError) -> None:
        if self._vital is not None and not self._vital.done():
            self._vital.set_exception(error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
