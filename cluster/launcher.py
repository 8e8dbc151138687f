"""Where the parts of a run live. The local launcher: one process, the engine in one thread and the learner in another.

With max_staleness 0 generation and learning take turns, and each uses all cores; above 0 they run side by side on half
of the cores each (measured: two threads in turn are slower than one each side by side, because generation gains
little from the second).
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.config import Recipe
from learner.batch import Batch, Update
from learner.losses.common import Loss
from rollout.pool import RolloutPool

if TYPE_CHECKING:
    from learner.rank import LearnerRank

T = TypeVar("T")


def num_threads(recipe: Recipe) -> int:
    """OpenMP threads for each of engine and learner, from the cores this process owns."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2 if recipe.max_staleness else cores)


def prepare_environment(recipe: Recipe) -> None:
    """Set what must stand in the environment before torch and vLLM are imported."""
    os.environ.update(
        OMP_NUM_THREADS=str(num_threads(recipe)),
        # Idle OpenMP threads that spin starve whatever else runs on these cores.
        OMP_WAIT_POLICY="PASSIVE",
        TOKENIZERS_PARALLELISM="false",
        # oneDNN keeps a compiled primitive with its buffers for each of 1,024 shapes; every step brings new shapes.
        ONEDNN_PRIMITIVE_CACHE_CAPACITY="64",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CPU_KVCACHE_SPACE=str(max(1, round(recipe.rollout.kv_cache_gib))),
        VLLM_NO_USAGE_STATS="1",
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


class LocalLearner:
    """A `LearnerRank` in a thread of its own, so that the event loop and the engine go on while it works."""

    def __init__(self, build: "Callable[[], LearnerRank]") -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._rank = self._thread.submit(build).result()

    @property
    def step(self) -> int:
        return self._rank.step

    async def update(self, batch: Batch) -> Update:
        return await self._run(lambda: self._rank.update(batch))

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return await self._run(lambda: self._rank.logprobs(sequences))

    async def refresh_reference(self) -> None:
        await self._run(self._rank.refresh_reference)

    async def save(self, directory: Path) -> None:
        await self._run(lambda: self._rank.save(directory))

    async def load(self, directory: Path, step: int) -> None:
        await self._run(lambda: self._rank.load(directory, step))

    async def export(self, directory: Path, tokenizer: Any) -> None:
        await self._run(lambda: self._rank.export(directory, tokenizer))

    def named_weights(self) -> Iterator[tuple[str, Any]]:
        """Live views of the weights; only to be read while no update runs."""
        return self._rank.named_weights()

    def close(self) -> None:
        self._thread.submit(self._rank.close).result()
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def start_learner(recipe: Recipe, loss: Loss, model_dir: Path) -> LocalLearner:
    """Load the model into a learner. Must come before `start_engines`: vLLM joins the learner's process group."""
    from learner.rank import LearnerRank

    return LocalLearner(
        lambda: LearnerRank(
            recipe.learner,
            loss,
            model_dir,
            recipe.steps,
            recipe.rollout.temperature,
            recipe.seed,
            trust_remote_code=recipe.trust_remote_code,
        )
    )


def start_engines(recipe: Recipe, model_dir: Path, tokenizer: Any, max_model_len: int) -> RolloutPool:
    """Load the model into the rollout engine."""
    from rollout.vllm_engine import VllmEngine, dtype_of

    dtype = dtype_of(recipe.rollout, recipe.learner.dtype)
    engine = VllmEngine(str(model_dir), tokenizer, recipe.rollout, dtype, max_model_len, recipe.seed)
    return RolloutPool([engine])
