"""The Ray launcher: rollout workers and learner ranks are actors, and weights travel over the network.

Lost workers are replaced (see `fleet`); a new worker serves after a verified push. That happens at the loop's next
push, or immediately while the learner still has the weights of its last push, so a run recovers even when all of its
workers died. A learner rank that dies ends the run: its state is in the last checkpoint.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from volley.cluster.launch.start import rank_spec
from volley.cluster.on_ray import connection
from volley.cluster.on_ray.actors import (
    EngineSpec,
    Place,
    RankActor,
    actor_options,
    await_actor,
    call_actor,
    call_busy_rank,
    first_line,
    reserve,
)
from volley.cluster.on_ray.fleet import FleetCallbacks, RayFleet
from volley.cluster.on_ray.metrics import RayMetrics
from volley.cluster.on_ray.placement import choose_transport, plan_resources
from volley.cluster.on_ray.scoring import ActorScorer, ScoringSpec
from volley.cluster.on_ray.token import cluster_address
from volley.cluster.recipe.prepare import RunParts
from volley.learner.ranks.group import Call, LearnerGroup
from volley.learner.ranks.spec import RankPlace
from volley.rewards.rubric.rubric import Rubric
from volley.rewards.scoring.group_terms import plain_terms
from volley.rewards.scoring.interfaces import ItemScorer
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.errors import ConfigError, LostError
from volley.rollout.transport.client import WeightClient

HEARTBEAT_S = 5.0
"""How often every learner rank must answer."""
MIN_SILENCE_S = 30.0
"""A rank may take at least this long to answer: it may be in a call that lets no other thread of its process run."""
DEATH_S = 5.0
"""After the failure of one rank, how long to wait for the report that another rank died and caused it."""


class RayLauncher:
    """`Launcher` on a Ray cluster. notify: shows a line to the user about lost and restarted workers."""

    learner: LearnerGroup
    pool: RolloutPool

    def __init__(self, parts: RunParts, notify: Callable[[str], None]) -> None:
        self._parts = parts
        self._recipe = parts.recipe
        self._notify = notify
        self._ranks: list[Any] = []
        self._groups: list[PlacementGroup] = []
        self._fleet: RayFleet | None = None
        self._item_scorer: ActorScorer | None = None
        self._version = 0
        self._push_turn = asyncio.Lock()
        self._reserve_turn = asyncio.Lock()
        self._watchers: set[asyncio.Task[None]] = set()
        self._push_metrics: dict[str, float] = {}
        self._closing = False
        # A private cluster has no dashboard that could show metrics.
        self._exports_metrics = self._recipe.cluster.metrics and bool(cluster_address(self._recipe))
        self._ray_metrics = RayMetrics(self._recipe.name) if self._exports_metrics else None

    async def prepare(self) -> None:
        """Connect; check that the run's name is free and that the cluster is large enough."""
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await asyncio.to_thread(connection.connect, self._recipe)
        try:
            await asyncio.to_thread(connection.wait_for_name, self._recipe.name)
            self._plan_resources()
        except ConfigError:
            connection.disconnect()
            raise

    def item_scorer(self) -> ItemScorer | None:
        """Scoring actors on the nodes of the rollout workers, if the plan has any."""
        if not self._plan.scoring_cpus:
            return None
        spec = ScoringSpec(plain_terms(self._recipe.rewards), self._recipe.scorer, os.getcwd())
        cpus = self._plan.scoring_cpus
        self._item_scorer = ActorScorer(self._recipe, spec, cpus, self._worker_nodes, self._notify)
        return self._item_scorer

    async def start(self) -> None:
        """Reserve the resources of the run, and load the model into all actors at the same time."""
        fleet, rank_group = await self._reserve()
        self.pool = fleet.pool
        await asyncio.gather(self._start_ranks(rank_group), fleet.start())
        self._client = WeightClient(self.learner, self._transport, self._recipe.transfer)

    async def push(self, version: int) -> None:
        """Send the learner's weights to all live workers, including those that wait to join."""
        if not self._parts.needs_engine:
            return
        async with self._push_turn:
            self._version = version
            await self._push_now()

    async def watch(self) -> None:
        """Raises `LostError` when a learner rank is lost, or too many workers for good."""
        await self._fatal

    def metrics(self) -> dict[str, float]:
        assert self._fleet is not None
        return {
            **self._push_metrics,
            "rollout_workers": len(self.pool.engines),
            "rollout_restarts": self._fleet.restarts,
            "samples_resent": self.pool.num_resent,
            "samples_in_flight": self.pool.num_in_flight,
            "samples_waiting": self.pool.num_waiting,
        }

    def on_row(self, row: dict[str, float]) -> None:
        """Export the row through Ray's metrics."""
        if self._ray_metrics is not None:
            self._ray_metrics.export(row)

    async def close(self) -> None:
        """Kill all actors and release their resources."""
        self._closing = True
        for task in self._watchers:
            task.cancel()
        if self._item_scorer is not None:
            # Before the connection is closed: a call to Ray after that would start a new cluster.
            await self._item_scorer.close()
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
        connection.disconnect()

    def _plan_resources(self) -> None:
        recipe, nodes = self._recipe, connection.nodes()
        scores_in_processes = Rubric(plain_terms(recipe.rewards)).needs_processes
        self._plan = plan_resources(recipe, nodes, self._parts.needs_engine, scores_in_processes)
        self._transport = choose_transport(recipe, self._plan)
        if scores_in_processes and self._plan.workers and len(nodes) > 1 and not self._plan.scoring_cpus:
            self._notify(
                f"responses are scored on the driver's machine only: no {recipe.scorer.workers or 1} CPUs for scoring "
                "are left next to each rollout worker; lower cluster.worker_cpus to use scoring actors"
            )

    async def _reserve(self) -> tuple[RayFleet, PlacementGroup]:
        """The fleet and the placement group of the ranks, both reserved. May be called again."""
        async with self._reserve_turn:
            if self._fleet is None:
                plan, parts = self._plan, self._parts
                spec = EngineSpec(
                    recipe=self._recipe,
                    model=str(parts.model.path),
                    tokenizer=parts.tokenizer,
                    max_model_len=parts.max_model_len,
                    transport=self._transport,
                    exports_metrics=self._exports_metrics,
                )
                callbacks = FleetCallbacks(self._notify, self._push_to_joining, self._on_fatal)
                self._groups = [reserve([{"CPU": plan.rank_cpus, "GPU": plan.rank_gpus}] * plan.ranks, "PACK")]
                self._fleet = RayFleet(spec, plan, callbacks)
                await self._wait_reserved([*self._groups, *self._fleet.groups])
            return self._fleet, self._groups[0]

    async def _worker_nodes(self) -> list[str]:
        """Ids of the nodes that have rollout workers."""
        fleet, _ = await self._reserve()
        tables = await asyncio.gather(*(asyncio.to_thread(placement_group_table, group) for group in fleet.groups))
        return sorted({node for table in tables for node in table["bundles_to_node_id"].values()})

    async def _wait_reserved(self, groups: list[PlacementGroup]) -> None:
        try:
            async with asyncio.timeout(self._recipe.cluster.start_s):
                for group in groups:
                    await group.ready()
        except TimeoutError:
            plan = self._plan
            raise LostError(
                f"cluster: {plan.cpus:g} CPUs and {plan.gpus} GPUs for {plan.workers} rollout workers and "
                f"{plan.ranks} learner ranks were not free within {self._recipe.cluster.start_s:g} s; wait for other "
                "jobs to end, or lower the number of workers or ranks."
            ) from None

    async def _start_ranks(self, group: PlacementGroup) -> None:
        parts, recipe, plan = self._parts, self._recipe, self._plan
        actor_class = ray.remote(concurrency_groups={"watch": 4})(RankActor)
        for rank in range(plan.ranks):
            options = actor_options(recipe, f"learner-{rank}", Place(group, rank, plan.rank_cpus, plan.rank_gpus))
            self._ranks.append(actor_class.options(**options).remote())
        for rank, actor in enumerate(self._ranks):
            self._watchers.add(asyncio.create_task(self._watch_death(f"learner rank {rank}", actor)))
        address, port = await await_actor("learner rank 0: start", self._ranks[0].open_rendezvous.remote())
        spec, place = rank_spec(parts), RankPlace(0, plan.ranks, address, port)
        starts = [
            await_actor(f"learner rank {rank}: start", actor.start.remote(spec, replace(place, rank=rank)))
            for rank, actor in enumerate(self._ranks)
        ]
        try:
            async with asyncio.timeout(recipe.cluster.start_s):
                await asyncio.gather(*starts)
        except TimeoutError:
            raise LostError(f"learner: start: the model was not loaded within {recipe.cluster.start_s:g} s") from None
        calls: list[Call] = []
        for rank, actor in enumerate(self._ranks):
            name = f"learner rank {rank}"
            self._watchers.add(asyncio.create_task(self._watch_heartbeat(name, actor)))
            calls.append(partial(self._call_rank, name, actor))
        busy_call = partial(call_busy_rank, "learner rank 0", self._ranks[0])
        self.learner = LearnerGroup(calls, parts.loss, recipe.learner.max_tokens_per_micro_batch, busy_call)

    async def _call_rank(self, name: str, actor: Any, method: str, *arguments: Any) -> Any:
        try:
            return await call_actor(name, actor, method, *arguments)
        except RuntimeError:
            # A collective fails like this when another rank died in it; that death is then the error to report.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEATH_S):
                    await asyncio.shield(self._fatal)
            raise

    async def _push_to_joining(self) -> None:
        """Push to waiting workers if the weights have not changed since the last push, or no other worker is left."""
        assert self._fleet is not None
        async with self._push_turn:
            is_unchanged = self.learner.step == self.learner.pushed_step and not self.learner.is_busy
            if self._fleet.joining and (is_unchanged or not self.pool.engines):
                await self._push_now()

    async def _push_now(self) -> None:
        assert self._fleet is not None
        report = await self._client.push([*self._fleet.live, *self._fleet.joining], self._version)
        for engine in report.committed:
            self._fleet.admit(engine, self._version)
        self._push_metrics = {
            "push_seconds": report.seconds,
            "push_bytes": float(report.num_bytes),
            "push_attempts": float(report.num_attempts),
        }

    async def _watch_death(self, name: str, actor: Any) -> None:
        try:
            await actor.block.remote()
        except Exception as error:
            if not self._closing:
                self._on_fatal(LostError(f"{name}: died ({first_line(error)})"))

    async def _watch_heartbeat(self, name: str, actor: Any) -> None:
        """A frozen rank is alive to Ray, and all other ranks would wait for it in a collective."""
        deadline_s = max(self._recipe.cluster.stall_s, MIN_SILENCE_S)
        with contextlib.suppress(LostError):  # `_watch_death` reports it
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                try:
                    async with asyncio.timeout(deadline_s):
                        await await_actor(f"{name}: heartbeat", actor.heartbeat.remote())
                except TimeoutError:
                    self._on_fatal(LostError(f"{name}: no heartbeat for {deadline_s:g} s; its process hangs"))
                    return

    def _on_fatal(self, error: BaseException) -> None:
        if not self._fatal.done():
            self._fatal.set_exception(error)
