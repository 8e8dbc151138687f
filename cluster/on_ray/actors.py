"""What runs in the processes of a Ray cluster: a rollout worker, a learner rank; and how they are called."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from volley.cluster.launch.environment import environment, tune_interpreter
from volley.cluster.launch.start import start_rank
from volley.cluster.recipe.config import Recipe
from volley.rollout.engines.worker import RolloutWorker
from volley.rollout.errors import LostError


class WorkerActor:
    """A `RolloutWorker` as an actor; asynchronous, so all calls run on one event loop."""

    def __init__(
        self, model: str, tokenizer: Any, recipe: Any, max_model_len: int, transport: str, metrics: bool
    ) -> None:
        from volley.rollout.engines.vllm import dtype_of

        def build() -> Any:
            from volley.rollout.engines.async_vllm import AsyncVllmEngine

            dtype = dtype_of(recipe.rollout, recipe.learner.dtype)
            tune_interpreter()
            engine = (model, tokenizer, recipe.rollout, dtype, max_model_len, recipe.seed, transport)
            return AsyncVllmEngine(*engine, ray_metrics=metrics)

        self._worker = RolloutWorker(build, ray.util.get_node_ip_address())

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._worker, method)(*arguments)

    async def last(self) -> None:
        """Never returns: whoever waits for it learns when the actor dies."""
        await asyncio.Event().wait()


class RankActor:
    """A `LearnerRank` as an actor."""

    def __init__(self) -> None:
        self._rank: Any = None
        self._address = ray.util.get_node_ip_address()
        self._listener: Any = None

    def meet(self) -> tuple[str, int]:
        """On rank 0: where all ranks will meet."""
        from volley.rollout.transport.stream import listen

        self._listener = listen(self._address)
        return self._listener.getsockname()[:2]

    def start(
        self, recipe: Any, loss: Any, model: Path, records_reference: bool, rank: int, address: str, port: int
    ) -> None:
        tune_interpreter()
        self._rank = start_rank(
            recipe,
            loss,
            model,
            records_reference,
            rank=rank,
            num_ranks=recipe.learner.ranks,
            address=address,
            port=port,
            own_address=self._address,
            listener=self._listener,
        )

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._rank, method)(*arguments)

    @ray.method(concurrency_group="watch")
    def beat(self) -> None:
        """A sign of life, which a frozen process does not give."""

    @ray.method(concurrency_group="watch")
    def last(self) -> None:
        """See `WorkerActor.last`; in a thread of its own."""
        threading.Event().wait()


class ControlActor:
    """Where `volley scale` leaves word for a run's driver: how many rollout workers are wanted."""

    def __init__(self) -> None:
        self._workers: int | None = None

    def ask(self, workers: int) -> None:
        self._workers = workers

    def take(self) -> int | None:
        """What was asked for since the last call, None for nothing."""
        workers, self._workers = self._workers, None
        return workers


def control_name(run: str) -> str:
    """Of a run's `ControlActor`."""
    return f"{run}:control"


async def call(name: str, actor: Any, method: str, *arguments: Any) -> Any:
    return await answer(f"{name}: {method}", actor.call.remote(method, *arguments))


async def call_beside(name: str, actor: Any, method: str, *arguments: Any) -> Any:
    """As `call`, of a `RankActor` that is busy."""
    remote = actor.call.options(concurrency_group="watch").remote
    return await answer(f"{name}: {method}", remote(method, *arguments))


async def answer(what: str, reference: Any) -> Any:
    """The result of an actor's call; what it raised there is raised here, its death is a `LostError`."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        raise LostError(f"{what}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reserve(bundles: list[dict[str, float]], strategy: str) -> PlacementGroup:
    """Places for actors; a resource of 0 is not asked for."""
    return placement_group([{name: n for name, n in bundle.items() if n} for bundle in bundles], strategy=strategy)


def actor_options(
    recipe: Recipe, role: str, cpus: float, gpus: float, group: PlacementGroup, bundle: int, num_processes: int = 1
) -> dict[str, Any]:
    """Of an actor in a reserved place, with a name that says run and role, and threads for the cores that it owns.
    num_processes: that compute side by side in it and share these cores."""
    variables = {**environment(recipe, max(1, int(cpus / num_processes))), "VLLM_LOGGING_LEVEL": "ERROR"}
    return {
        "name": f"{recipe.name}:{role}",
        "num_cpus": cpus,
        "num_gpus": gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, bundle),
        "runtime_env": {"env_vars": variables},
    }
