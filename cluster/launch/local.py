"""The local launcher: everything in one process, the engine in one thread and the learner in another.

With max_staleness 0 generation and learning take turns, and each uses all cores. With more they run at the same time on
half of the cores each. (Measured: two threads in turn are slower than one each at the same time, because generation
gains little from the second core.)
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from volley.cluster.launch.start import rank_spec, start_engine, start_rank
from volley.cluster.recipe.prepare import RunParts
from volley.learner.compute.model import is_slow_in_bf16
from volley.learner.ranks.group import Call, LearnerGroup
from volley.rewards.scoring.interfaces import ItemScorer
from volley.rollout.engines.pool import RolloutPool

if TYPE_CHECKING:
    from volley.learner.ranks.rank import LearnerRank
    from volley.rollout.engines.vllm import VllmEngine


class LocalLauncher:
    """A `Launcher` that runs everything in this process."""

    learner: LearnerGroup

    def __init__(self, parts: RunParts, notify: Callable[[str], None]) -> None:
        self._parts = parts
        self._notify = notify
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._engine: VllmEngine | None = None
        self.pool = RolloutPool()

    async def prepare(self) -> None:
        """Refuse nothing, but warn if the learner would be extremely slow."""
        if self._parts.recipe.learner.dtype == "bf16" and is_slow_in_bf16():
            self._notify(
                "warning: this processor has no bf16 instructions, so bf16 takes tens of times as long as fp32; "
                "set learner.dtype: fp32."
            )

    def item_scorer(self) -> ItemScorer | None:
        """Processes on this machine score."""
        return None

    async def start(self) -> None:
        """Load the model into the learner, then into the engine: vLLM joins the learner's process group."""
        parts = self._parts
        self._rank = self._thread.submit(start_rank, rank_spec(parts)).result()
        max_tokens = parts.recipe.learner.max_tokens_per_micro_batch
        self.learner = LearnerGroup([_in_thread(self._thread, self._rank)], parts.loss, max_tokens)
        if parts.needs_engine:
            self._engine = start_engine(parts)
            self.pool.add(self._engine)

    async def watch(self) -> None:
        """Wait forever: nothing can be lost but the whole process."""
        await asyncio.Event().wait()

    async def push(self, version: int) -> None:
        """Copy the weights in place. The engine reads live views of them, which is safe while no update runs."""
        if self._engine is not None:
            await self._engine.load_weights(self._rank.named_weights(), version)

    def metrics(self) -> dict[str, float]:
        return {}

    def on_row(self, row: dict[str, float]) -> None:
        """Nothing to do: progress, metrics.jsonl and TensorBoard already have the row."""

    async def close(self) -> None:
        await self.pool.close()


def _in_thread(thread: ThreadPoolExecutor, rank: "LearnerRank") -> Call:
    """Send calls to the learner's own thread, so that event loop and engine keep running while it works."""

    async def call(method: str, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, getattr(rank, method), *arguments)

    return call
