"""Where the parts of a run live. The local launcher: one process, the engine in one thread and the learner in another.

With max_staleness 0 generation and learning take turns, and each uses all cores; above 0 they run side by side on half
of the cores each (measured: two threads in turn are slower than one each side by side, because generation gains
little from the second).
"""

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from volley.cluster.on_ray.token import prepare_token
from volley.cluster.recipe.build import Parts
from volley.cluster.recipe.config import Recipe
from volley.learner.compute.model import is_slow_in_bf16
from volley.learner.losses.common import Loss
from volley.learner.ranks.group import Call, LearnerGroup
from volley.rollout.engines.pool import RolloutPool

if TYPE_CHECKING:
    from volley.learner.ranks.rank import LearnerRank
    from volley.rollout.engines.vllm import VllmEngine


SWITCH_INTERVAL_S = 2e-4
"""How long a thread may be kept waiting for the interpreter. Learner and engine call thousands of short kernels and
come back for it after each; with Python's 5 ms they spend much of the step waiting for each other."""


class Launcher(Protocol):
    """Starts learner and engines, keeps them alive, and moves the weights from one to the others.

    prepare: refuses what cannot be, before anything is written. pool: empty where the recipe needs no engine. push:
    make all engines serve the learner's weights as `version`. watch: never returns, and raises when something is lost
    without which the run cannot go on. metrics: what a step's row should hold of the launcher's doings. show: puts a
    step's row where the launcher's own monitoring is.
    """

    learner: LearnerGroup
    pool: RolloutPool

    async def prepare(self) -> None: ...
    async def start(self) -> None: ...
    async def push(self, version: int) -> None: ...
    async def watch(self) -> None: ...
    def metrics(self) -> dict[str, float]: ...
    def show(self, row: dict[str, float]) -> None: ...
    async def close(self) -> None: ...


def make_launcher(parts: Parts, say: Callable[[str], None]) -> Launcher:
    """The launcher that the recipe names."""
    if parts.recipe.launcher == "ray":
        from volley.cluster.on_ray.launcher import RayLauncher

        return RayLauncher(parts, say)
    return LocalLauncher(parts, say)


class LocalLauncher:
    """Everything in this process."""

    learner: LearnerGroup

    def __init__(self, parts: Parts, say: Callable[[str], None]) -> None:
        self._parts = parts
        self._say = say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._engine: VllmEngine | None = None
        self.pool = RolloutPool()

    async def prepare(self) -> None:
        """Refuses nothing; says so where the learner would crawl."""
        if self._parts.recipe.learner.dtype == "bf16" and is_slow_in_bf16():
            self._say(
                "warning: this processor has no instructions for bf16 and takes tens of times as long as in fp32; "
                "set learner.dtype: fp32."
            )

    async def start(self) -> None:
        """Load the model into the learner, then into the engine: vLLM joins the learner's process group."""
        parts = self._parts
        rank = self._thread.submit(
            lambda: start_rank(parts.recipe, parts.loss, parts.model.path, parts.records_reference)
        ).result()
        self._rank = rank
        self.learner = LearnerGroup([_in_thread(self._thread, rank)])
        if parts.needs_engine:
            self._engine = start_engine(parts)
            self.pool.add(self._engine)

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def push(self, version: int) -> None:
        """Copy the weights in place; live views of them are only read while no update runs."""
        if self._engine is not None:
            await self._engine.load_weights(self._rank.named_weights(), version)

    def metrics(self) -> dict[str, float]:
        return {}

    def show(self, row: dict[str, float]) -> None:
        """Progress, metrics.jsonl and TensorBoard have it already."""

    async def close(self) -> None:
        await self.pool.close()


def tune_interpreter() -> None:
    """For a process of many short-lived objects beside large lasting ones: see SWITCH_INTERVAL_S; and the garbage
    collector looks less often, and never at what is there already (twice as many trajectories/s in the controller)."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def prepare_environment(recipe: Recipe) -> None:
    """Set what must stand in the environment before torch and vLLM are imported."""
    os.environ.update(environment(recipe, num_threads(recipe)))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if recipe.launcher == "ray":
        prepare_token(recipe)


def environment(recipe: Recipe, threads: int) -> dict[str, str]:
    """Of a process with an engine or a learner in it that owns `threads` cores."""
    return {
        "OMP_NUM_THREADS": str(threads),
        # Idle OpenMP threads that spin starve whatever else runs on these cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        # oneDNN keeps a compiled primitive with its buffers for each of 1,024 shapes; every step brings new shapes.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(recipe.rollout.kv_cache_gib))),
        "VLLM_NO_USAGE_STATS": "1",
    }


def num_threads(recipe: Recipe) -> int:
    """OpenMP threads for each of engine and learner in one process, from the cores that it owns."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2 if recipe.max_staleness else cores)


def start_rank(recipe: Recipe, loss: Loss, model: Path, records_reference: bool, **place: Any) -> "LearnerRank":
    """The learner, or one rank of it. model: a directory. records_reference, place: see `LearnerRank`."""
    from volley.learner.ranks.rank import LearnerRank

    return LearnerRank(
        recipe.learner,
        loss,
        model,
        recipe.steps,
        recipe.rollout.temperature,
        recipe.seed,
        trust_remote_code=recipe.trust_remote_code,
        records_reference=records_reference,
        **place,
    )


def start_engine(parts: Parts) -> "VllmEngine":
    """Load the model into an engine in this process."""
    from volley.rollout.engines.vllm import VllmEngine, dtype_of

    recipe = parts.recipe
    dtype = dtype_of(recipe.rollout, recipe.learner.dtype)
    return VllmEngine(str(parts.model.path), parts.tokenizer, recipe.rollout, dtype, parts.max_model_len, recipe.seed)


def _in_thread(thread: ThreadPoolExecutor, rank: "LearnerRank") -> Call:
    """Calls go to the learner's own thread, so that the event loop and the engine go on while it works."""

    async def call(method: str, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, getattr(rank, method), *arguments)

    return call
