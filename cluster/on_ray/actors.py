"""The actors of a run on Ray (rollout worker, learner rank, control), and how to call and place them."""

import asyncio
import threading
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from volley.cluster.launch.environment import environment, tune_interpreter
from volley.cluster.launch.start import start_rank
from volley.cluster.recipe.config import Recipe
from volley.learner.ranks.spec import RankPlace, RankSpec
from volley.rollout.engines.worker import RolloutWorker
from volley.rollout.errors import LostError


@dataclass(frozen=True)
class EngineSpec:
    """What a rollout worker needs to build its engine."""

    recipe: Recipe
    model: str
    """Directory of the model."""
    tokenizer: Any
    max_model_len: int
    """Prompt and completion tokens at most."""
    transport: str
    """Weight-transfer backend: "gloo" or "nccl"."""
    exports_metrics: bool
    """Whether vLLM's own metrics are exported through Ray."""


class WorkerActor:
    """A `RolloutWorker` as an actor; asynchronous, so all calls run on one event loop."""

    def __init__(self, spec: EngineSpec) -> None:
        from volley.rollout.engines.vllm import EngineSpec, dtype_of

        recipe = spec.recipe

        def build() -> Any:
            from volley.rollout.engines.async_vllm import AsyncVllmEngine

            dtype = dtype_of(recipe.rollout, recipe.learner.dtype)
            tune_interpreter()
            engine = EngineSpec(spec.model, spec.tokenizer, recipe.rollout, dtype, spec.max_model_len, recipe.seed)
            return AsyncVllmEngine(
                engine, transport=spec.transport, exports_metrics=spec.exports_metrics, address=address
            )

        address = ray.util.get_node_ip_address()
        self._worker = RolloutWorker(build)

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._worker, method)(*arguments)

    async def block(self) -> None:
        """Never returns; the call fails when the actor dies."""
        await asyncio.Event().wait()


class RankActor:
    """A `LearnerRank` as an actor."""

    def __init__(self) -> None:
        self._rank: Any = None
        self._address = ray.util.get_node_ip_address()
        self._listener: Any = None

    def open_rendezvous(self) -> tuple[str, int]:
        """On rank 0: open the port where all ranks will meet; returns its address."""
        from volley.rollout.transport.stream import listen

        self._listener = listen(self._address)
        return self._listener.getsockname()[:2]

    def start(self, spec: RankSpec, place: RankPlace) -> None:
        """Load the model. place: without what only this machine knows."""
        tune_interpreter()
        self._rank = start_rank(spec, replace(place, own_address=self._address, listener=self._listener))

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._rank, method)(*arguments)

    @ray.method(concurrency_group="watch")
    def heartbeat(self) -> None:
        """Returns unless the process hangs."""

    @ray.method(concurrency_group="watch")
    def block(self) -> None:
        """See `WorkerActor.block`. It runs in a separate thread."""
        threading.Event().wait()


class ControlActor:
    """Holds the number of rollout workers that `volley scale` asked for until the run's driver reads it."""

    def __init__(self) -> None:
        self._workers: int | None = None

    def request(self, workers: int) -> None:
        self._workers = workers

    def take(self) -> int | None:
        """The number requested since the last call; None if there was no request."""
        workers, self._workers = self._workers, None
        return workers


def control_name(run: str) -> str:
    """The actor name of a run's `ControlActor`."""
    return f"{run}:control"


async def call_actor(name: str, actor: Any, method: str, *arguments: Any) -> Any:
    """The result of a method of the actor's worker or rank. name: of the actor, for errors."""
    return await await_actor(f"{name}: {method}", actor.call.remote(method, *arguments))


async def call_busy_rank(name: str, actor: Any, method: str, *arguments: Any) -> Any:
    """As `call_actor`, for a `RankActor` that is busy in another call: the call runs in a separate thread."""
    remote = actor.call.options(concurrency_group="watch").remote
    return await await_actor(f"{name}: {method}", remote(method, *arguments))


async def await_actor(what: str, reference: Any) -> Any:
    """The result of an actor's call. An exception in the actor is raised here; its death raises `LostError`."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        raise LostError(f"{what}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reserve(bundles: list[dict[str, float]], strategy: str) -> PlacementGroup:
    """Reserve resources for actors; resources of 0 are left out."""
    return placement_group([{name: n for name, n in bundle.items() if n} for bundle in bundles], strategy=strategy)


@dataclass(frozen=True)
class Place:
    """A reserved place for one actor."""

    group: PlacementGroup
    bundle: int
    """Index of the bundle in the group."""
    cpus: float
    gpus: float
    num_processes: int = 1
    """Processes of the actor that compute at the same time and share its CPUs."""


def actor_options(recipe: Recipe, role: str, place: Place) -> dict[str, Any]:
    """Ray options of an actor: its place, a name made of run and role, and one thread per CPU that it owns."""
    threads = max(1, int(place.cpus / place.num_processes))
    variables = {**environment(recipe, threads), "VLLM_LOGGING_LEVEL": "ERROR"}
    return {
        "name": f"{recipe.name}:{role}",
        "num_cpus": place.cpus,
        "num_gpus": place.gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(place.group, place.bundle),
        "runtime_env": {"env_vars": variables},
    }
