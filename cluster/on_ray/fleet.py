"""A run's rollout workers on Ray: started, watched, replaced when lost, more or fewer when asked.

A worker that dies or hangs is taken out of the pool (its requests go to the others), killed, and started again in its
place. A new one waits in `joining` until a push that was verified has reached it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from volley.cluster.on_ray.actors import ControlActor, WorkerActor, actor_options, answer, call, control_name, reserve
from volley.cluster.on_ray.placement import Needs
from volley.cluster.recipe.build import Parts
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.engines.remote import RemoteEngine
from volley.rollout.errors import LostError

ROOM_S = 10.0
"""How long a worker that was asked for waits for its place before the user is told."""
HEALTHY_S = 300.0
"""A worker that lived so long has its restarts counted anew."""
CONTROL_POLL_S = 2.0


class Slot:
    """A place for a rollout worker, and who is in it. retired: nobody is to come after, by wish or after too many
    failures."""

    def __init__(self, index: int, group: PlacementGroup) -> None:
        self.index = index
        self.group = group
        self.actor: Any = None
        self.engine: RemoteEngine | None = None
        self.generation = 0
        self.failures = 0
        self.started_at = 0.0
        self.retired = False


class RayFleet:
    """pool: the workers that serve. joining: those that wait for a verified push. restarts: so far. on_joining: called
    when one begins to wait. give_up: called with what the run cannot go on without. say: tells the user."""

    def __init__(
        self,
        parts: Parts,
        needs: Needs,
        transport: str,
        shows_metrics: bool,
        say: Callable[[str], None],
        on_joining: Callable[[], Any],
        give_up: Callable[[BaseException], None],
    ) -> None:
        self.pool = RolloutPool()
        self.joining: list[RemoteEngine] = []
        self.restarts = 0
        self._parts = parts
        self._recipe = parts.recipe
        self._needs = needs
        self._transport = transport
        self._shows_metrics = shows_metrics
        self._say = say
        self._on_joining = on_joining
        self._give_up = give_up
        self._slots = [self._slot(index) for index in range(needs.workers)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def groups(self) -> list[PlacementGroup]:
        """What is reserved for the workers."""
        return [slot.group for slot in self._slots]

    @property
    def _active(self) -> list[Slot]:
        return [slot for slot in self._slots if not slot.retired]

    @property
    def live(self) -> list[RemoteEngine]:
        """The workers that serve, in the order of their places."""
        serving = self.pool.engines
        return [slot.engine for slot in self._slots if slot.engine is not None and slot.engine in serving]

    async def start(self) -> None:
        """Load the model into all workers. They serve at once: they hold what the learner starts with, from the same
        files."""
        await asyncio.gather(*(self._start_worker(slot) for slot in self._slots))
        for slot in self._slots:
            assert slot.engine is not None
            self.pool.add(slot.engine)
        # Beside the driver: anywhere else it could be lost alone.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        control = ray.remote(ControlActor).options(
            name=control_name(self._recipe.name), num_cpus=0, scheduling_strategy=here
        )
        self._control = control.remote()
        self._spawn(self._follow_control())

    def admit(self, engine: RemoteEngine, version: int) -> None:
        """Let one that waited serve: it holds `version`."""
        if engine in self.joining:
            self.joining.remove(engine)
            self.pool.add(engine)
            self._say(f"rollout worker {engine.name} serves version {version}")

    async def close(self) -> None:
        """Ask nothing more of anybody."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await self.pool.close()

    def kill(self) -> None:
        """End all workers and give their places back."""
        for slot in self._slots:
            with contextlib.suppress(Exception):
                ray.kill(slot.actor)
            with contextlib.suppress(Exception):
                remove_placement_group(slot.group)

    def _slot(self, index: int) -> Slot:
        return Slot(index, reserve([{"CPU": self._needs.worker_cpus, "GPU": self._needs.worker_gpus}], "STRICT_PACK"))

    async def _start_worker(self, slot: Slot) -> None:
        """Start a worker in the slot and wait until its model is loaded. Raises `EngineLost`."""
        recipe, needs = self._recipe, self._needs
        name = f"{slot.index}.{slot.generation}"
        slot.started_at = time.monotonic()
        slot.actor = (
            ray.remote(WorkerActor)
            .options(
                **actor_options(
                    recipe,
                    f"rollout-{name}",
                    needs.worker_cpus,
                    needs.worker_gpus,
                    slot.group,
                    0,
                    recipe.rollout.tensor_parallel,
                ),
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

    def _lost(self, slot: Slot, reason: str) -> None:
        """A worker is gone: take it out, make sure that it is, and start another in its place."""
        if self._closing:
            return
        assert slot.engine is not None
        self._say(f"{reason}; not needed any more" if slot.retired else f"lost: {reason}; starting another")
        self.pool.remove(slot.engine)
        with contextlib.suppress(ValueError):
            self.joining.remove(slot.engine)
        with contextlib.suppress(Exception):
            ray.kill(slot.actor)
        if not slot.retired:
            self._spawn(self._replace(slot))

    async def _replace(self, slot: Slot) -> None:
        lived = time.monotonic() - slot.started_at
        slot.failures = 1 if lived > HEALTHY_S else slot.failures + 1
        slot.generation += 1
        if slot.failures > self._recipe.cluster.max_restarts:
            self._say(f"rollout worker {slot.index} failed {slot.failures} times in a row; going on without it")
            self._retire(slot)
            if len(self._active) < self._recipe.rollout.min_workers:
                assert slot.engine is not None
                self._give_up(LostError(f"{slot.engine.lost}; it failed {slot.failures} times in a row"))
            return
        await asyncio.sleep(min(30.0, 0.5 * 2**slot.failures))
        if not slot.retired:
            self.restarts += 1
            await self._join(slot)

    async def _follow_control(self) -> None:
        """Do what `volley scale` asks for."""
        while True:
            await asyncio.sleep(CONTROL_POLL_S)
            wanted = await answer("control", self._control.take.remote())
            if wanted is not None:
                self._scale(wanted)

    def _scale(self, wanted: int) -> None:
        active = self._active
        if wanted != len(active):
            self._say(f"scaling from {len(active)} to {wanted} rollout workers")
        for _ in range(wanted - len(active)):
            self._slots.append(self._slot(len(self._slots)))
            self._spawn(self._grow(self._slots[-1]))
        for slot in active[wanted:]:
            slot.retired = True
            if slot.engine is not None:
                slot.engine.lose("retired by volley scale")
            self._retire(slot)

    def _retire(self, slot: Slot) -> None:
        """Nobody is to come after in this slot; its place is given back."""
        slot.retired = True
        with contextlib.suppress(Exception):
            remove_placement_group(slot.group)

    async def _grow(self, slot: Slot) -> None:
        """Start a worker in a new slot as soon as there is room for it; without room the run goes on as it is."""
        needs = f"{self._needs.worker_cpus:g} CPUs and {self._needs.worker_gpus} GPUs free on one node"
        start_s = self._recipe.cluster.start_s
        if not await self._has_room(slot, ROOM_S) and not slot.retired:
            self._say(f"rollout worker {slot.index} waits for {needs}")
            if not await self._has_room(slot, start_s) and not slot.retired:
                self._say(f"no room for rollout worker {slot.index} ({needs}) within {start_s:g} s; going on without")
                self._retire(slot)
        if not slot.retired:
            await self._join(slot)

    async def _has_room(self, slot: Slot, seconds: float) -> bool:
        # A place that is given back while it is waited for raises, or stays away for ever.
        with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
            async with asyncio.timeout(seconds):
                await slot.group.ready()
                return True
        return False

    async def _join(self, slot: Slot) -> None:
        try:
            await self._start_worker(slot)
        except LostError:
            return  # `_lost` has been told, and tries again
        assert slot.engine is not None
        self.joining.append(slot.engine)
        await self._on_joining()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._closing:
            self._give_up(error)
