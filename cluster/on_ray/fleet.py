"""The rollout workers of a run on Ray: started, watched, replaced when lost, added or removed by `volley scale`.

A worker that dies or hangs is removed from the pool (its requests go to the other workers), killed, and started again
in the same place. A new worker waits in `joining` until a verified push has reached it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from volley.cluster.on_ray.actors import (
    ControlActor,
    EngineSpec,
    Place,
    WorkerActor,
    actor_options,
    await_actor,
    call_actor,
    control_name,
    reserve,
)
from volley.cluster.on_ray.placement import ResourcePlan
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.engines.remote import RemoteEngine
from volley.rollout.errors import LostError

NOTIFY_WAITING_S = 10.0
"""How long a worker that was requested waits for its resources before the user is notified."""
HEALTHY_S = 300.0
"""After this lifetime of a worker, its count of consecutive failures starts again from zero."""
CONTROL_POLL_S = 2.0


class Slot:
    """A reserved place for a rollout worker, and the worker in it."""

    def __init__(self, index: int, group: PlacementGroup) -> None:
        self.index = index
        self.group = group
        self.actor: Any = None
        self.engine: RemoteEngine | None = None
        self.generation = 0
        """How many workers were in this slot before the current one."""
        self.failures = 0
        """Consecutive failures."""
        self.started_at = 0.0
        self.retired = False
        """Set when no further worker is to be started here, after `volley scale` or too many failures."""


@dataclass(frozen=True)
class FleetCallbacks:
    """What the fleet tells its owner."""

    notify: Callable[[str], None]
    """Shows a line to the user."""
    on_joining: Callable[[], Any]
    """Awaited when a worker begins to wait in `joining`."""
    on_fatal: Callable[[BaseException], None]
    """Called with the error that ends the run."""


class RayFleet:
    """Starts and replaces the rollout workers of one run."""

    def __init__(self, spec: EngineSpec, plan: ResourcePlan, callbacks: FleetCallbacks) -> None:
        self.pool = RolloutPool()
        """The workers that serve."""
        self.joining: list[RemoteEngine] = []
        """Workers that wait for a verified push."""
        self.restarts = 0
        """Workers restarted so far."""
        self._spec = spec
        self._recipe = spec.recipe
        self._plan = plan
        self._notify = callbacks.notify
        self._on_joining = callbacks.on_joining
        self._on_fatal = callbacks.on_fatal
        self._slots = [self._slot(index) for index in range(plan.workers)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def groups(self) -> list[PlacementGroup]:
        """The reservations of all workers."""
        return [slot.group for slot in self._slots]

    @property
    def _active(self) -> list[Slot]:
        return [slot for slot in self._slots if not slot.retired]

    @property
    def live(self) -> list[RemoteEngine]:
        """The workers that serve, in the order of their slots."""
        serving = self.pool.engines
        return [slot.engine for slot in self._slots if slot.engine is not None and slot.engine in serving]

    async def start(self) -> None:
        """Load the model into all workers. They serve at once: they load the same files as the learner."""
        await asyncio.gather(*(self._start_worker(slot) for slot in self._slots))
        for slot in self._slots:
            assert slot.engine is not None
            self.pool.add(slot.engine)
        # On the driver's node: on another node it could be lost while the run continues.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        control = ray.remote(ControlActor).options(
            name=control_name(self._recipe.name), num_cpus=0, scheduling_strategy=here
        )
        self._control = control.remote()
        self._spawn(self._follow_control())

    def admit(self, engine: RemoteEngine, version: int) -> None:
        """Let a worker that was waiting serve; it holds weights `version`."""
        if engine in self.joining:
            self.joining.remove(engine)
            self.pool.add(engine)
            self._notify(f"rollout worker {engine.name} serves version {version}")

    async def close(self) -> None:
        """Stop calling the workers."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await self.pool.close()

    def kill(self) -> None:
        """Kill all workers and release their resources."""
        for slot in self._slots:
            with contextlib.suppress(Exception):
                ray.kill(slot.actor)
            with contextlib.suppress(Exception):
                remove_placement_group(slot.group)

    def _slot(self, index: int) -> Slot:
        return Slot(index, reserve([{"CPU": self._plan.worker_cpus, "GPU": self._plan.worker_gpus}], "STRICT_PACK"))

    async def _start_worker(self, slot: Slot) -> None:
        """Start a worker in the slot and wait until its model is loaded. Raises `EngineLost`."""
        recipe, plan = self._recipe, self._plan
        name = f"{slot.index}.{slot.generation}"
        slot.started_at = time.monotonic()
        place = Place(slot.group, 0, plan.worker_cpus, plan.worker_gpus, recipe.rollout.tensor_parallel)
        options = actor_options(recipe, f"rollout-{name}", place)
        slot.actor = ray.remote(WorkerActor).options(**options, max_concurrency=100_000).remote(self._spec)
        slot.engine = RemoteEngine(
            name,
            partial(call_actor, f"rollout worker {name}", slot.actor),
            recipe.cluster.stall_s,
            lambda engine, reason: self._on_lost(slot, reason),
            recipe.rollout.tensor_parallel,
        )
        await slot.engine.start(recipe.cluster.start_s)

    def _on_lost(self, slot: Slot, reason: str) -> None:
        """A worker is lost: remove it from the pool, kill it, and start another in its slot."""
        if self._closing:
            return
        assert slot.engine is not None
        self._notify(f"{reason}; no longer needed" if slot.retired else f"lost: {reason}; starting another")
        self.pool.remove(slot.engine)
        with contextlib.suppress(ValueError):
            self.joining.remove(slot.engine)
        with contextlib.suppress(Exception):
            ray.kill(slot.actor)
        if not slot.retired:
            self._spawn(self._replace(slot))

    async def _replace(self, slot: Slot) -> None:
        lifetime_s = time.monotonic() - slot.started_at
        slot.failures = 1 if lifetime_s > HEALTHY_S else slot.failures + 1
        slot.generation += 1
        if slot.failures > self._recipe.cluster.max_restarts:
            self._notify(f"rollout worker {slot.index} failed {slot.failures} times in a row; continuing without it")
            self._retire(slot)
            if len(self._active) < self._recipe.rollout.min_workers:
                assert slot.engine is not None
                self._on_fatal(LostError(f"{slot.engine.lost}; it failed {slot.failures} times in a row"))
            return
        await asyncio.sleep(min(30.0, 0.5 * 2**slot.failures))
        if not slot.retired:
            self.restarts += 1
            await self._join(slot)

    async def _follow_control(self) -> None:
        """Carry out the requests of `volley scale`."""
        while True:
            await asyncio.sleep(CONTROL_POLL_S)
            requested = await await_actor("control", self._control.take.remote())
            if requested is not None:
                self._scale(requested)

    def _scale(self, requested: int) -> None:
        active = self._active
        if requested != len(active):
            self._notify(f"scaling from {len(active)} to {requested} rollout workers")
        for _ in range(requested - len(active)):
            self._slots.append(self._slot(len(self._slots)))
            self._spawn(self._grow(self._slots[-1]))
        for slot in active[requested:]:
            slot.retired = True
            if slot.engine is not None:
                slot.engine.lose("retired by volley scale")
            self._retire(slot)

    def _retire(self, slot: Slot) -> None:
        """Start no further worker in this slot, and release its resources."""
        slot.retired = True
        with contextlib.suppress(Exception):
            remove_placement_group(slot.group)

    async def _grow(self, slot: Slot) -> None:
        """Start a worker in a new slot once its resources are free; give the slot up when they are not in time."""
        wanted = f"{self._plan.worker_cpus:g} CPUs and {self._plan.worker_gpus} GPUs free on one node"
        start_s = self._recipe.cluster.start_s
        if not await self._has_room(slot, NOTIFY_WAITING_S) and not slot.retired:
            self._notify(f"rollout worker {slot.index} waits for {wanted}")
            if not await self._has_room(slot, start_s) and not slot.retired:
                self._notify(
                    f"no room for rollout worker {slot.index} ({wanted}) within {start_s:g} s; continuing without it"
                )
                self._retire(slot)
        if not slot.retired:
            await self._join(slot)

    async def _has_room(self, slot: Slot, seconds: float) -> bool:
        # Waiting for a reservation that is removed meanwhile raises, or never returns.
        with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
            async with asyncio.timeout(seconds):
                await slot.group.ready()
                return True
        return False

    async def _join(self, slot: Slot) -> None:
        try:
            await self._start_worker(slot)
        except LostError:
            return  # `_on_lost` was called and tries again
        assert slot.engine is not None
        self.joining.append(slot.engine)
        await self._on_joining()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._closing:
            self._on_fatal(error)
