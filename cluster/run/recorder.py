"""What a run records of every step: metrics, samples, progress; and the clock of its phases."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from volley.cluster.loop.group_metrics import group_metrics
from volley.cluster.loop.interfaces import Evaluation, MetricSource, Step
from volley.cluster.loop.rounds import distinguishability
from volley.cluster.recipe.config import Recipe
from volley.cluster.run.progress import Progress
from volley.cluster.storage.directory import RunDirectory
from volley.cluster.storage.metrics import METRICS, RunLog, read_rows
from volley.cluster.storage.writer import Writer
from volley.rollout.data.parquet import write_groups


class RunRecorder:
    """The `loop.interfaces.Recorder` of a run. All files are written by `writer`."""

    def __init__(
        self,
        directory: RunDirectory,
        recipe: Recipe,
        writer: Writer,
        done: int = 0,
        on_row: Callable[[dict[str, float]], None] = lambda row: None,
    ) -> None:
        """done: steps that a resumed run has already finished. on_row: called with each step's row."""
        self._directory = directory
        self._recipe = recipe
        self._writer = writer
        self._on_row = on_row
        self._sources: list[MetricSource] = []
        self._log = RunLog(directory.path, recipe, done)
        for path in directory.samples:
            if int(path.stem.removeprefix("step-")) > done:
                path.unlink()
        first = read_rows(directory.path / METRICS)[:1]
        self._start_length = _known(first[0] if first else {}, "response_length_mean")
        self._progress = Progress(recipe.steps, done)
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()
        self._step_started = self._started
        self.last_evaluation: dict[str, float] = {}
        self.evaluated_step = -1

    def collect_from(self, sources: Iterable[MetricSource]) -> None:
        """Ask these for columns at every step."""
        self._sources += sources

    @property
    def wall_s(self) -> float:
        """Seconds since the start of the run, without the time between a stop and its resume."""
        return time.perf_counter() - self._started

    def restore(self, wall_s: float) -> None:
        """Add the seconds that the run took before it was resumed."""
        self._started -= wall_s

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """Time a part of a step, under the recipe's deadline."""
        started = time.perf_counter()
        try:
            # Waiting for groups has a separate deadline, which restarts with every arrival.
            async with self.deadline(name, math.inf if name == "wait" else None):
                yield
        finally:
            self._seconds[name] = time.perf_counter() - started

    @asynccontextmanager
    async def deadline(self, name: str, seconds: float | None = None) -> AsyncIterator[None]:
        """Raise `TimeoutError` with this name if the block takes longer than `seconds` (default: `deadline_s`)."""
        seconds = self._recipe.deadline_s if seconds is None else seconds
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds) as limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"{name}: not done after {seconds:g} s (deadline_s)") from None
            raise

    async def step(self, done: Step) -> None:
        """Record a step. Its row is on disk when this returns; its samples are before the next checkpoint."""
        row = self._row(done)
        await self._writer.run(self._log.step, row)
        self._on_row(row)
        self._progress.step(row)
        if self._recipe.save_rollouts:
            path = self._directory.rollouts / f"step-{done.number:06d}.parquet"
            self._writer.submit(write_groups, path, done.groups, done.number)

    async def distinguishability(self, num_steps: int) -> float:
        """See `rounds.distinguishability`. It is computed from the file, which a resumed run also has."""
        return distinguishability((await self._writer.run(read_rows, self._directory.path / METRICS))[-num_steps:])

    async def evaluation(self, step: int, result: Evaluation) -> None:
        """Record an evaluation. Its time does not count as time of a step."""
        self.last_evaluation, self.evaluated_step = result.metrics, step
        await self._writer.run(self._log.evaluation, step, result.metrics)
        self._progress.evaluation(result.metrics)
        self._step_started = time.perf_counter()

    async def close(self) -> None:
        """Finish writing."""
        self._progress.close()
        try:
            await self._writer.close()
        finally:
            self._log.close()

    def _row(self, done: Step) -> dict[str, float]:
        now = time.perf_counter()
        taken, self._step_started = now - self._step_started, now
        seconds, self._seconds = self._seconds, {}
        collected = {name: value for source in self._sources for name, value in source.metrics().items()}
        samples = group_metrics(done.groups, done.trained)
        learning = seconds.get("update", 0.0) + seconds.get("publish", 0.0)
        length = samples.get("response_length_mean", math.nan)
        if math.isnan(self._start_length):
            self._start_length = length
        refreshed = self._recipe.reference.refresh_every
        return {
            "step": done.number,
            "weight_version": done.served,
            "wall_s": self.wall_s,
            **{f"seconds/{name}": value for name, value in seconds.items()},
            "samples_per_s": samples["samples"] / taken,
            "rollout_idle_share": max(0.0, 1.0 - collected.get("seconds/generate", 0.0) / taken),
            "learner_idle_share": max(0.0, 1.0 - learning / taken),
            **samples,
            # Relative to the first step, because preference losses are known to make responses longer.
            **({"response_length_ratio": length / self._start_length} if "response_length_mean" in samples else {}),
            # Steps since the reference was the policy.
            **({"reference_age": float((done.number - 1) % refreshed)} if refreshed else {}),
            **dict.fromkeys(("logprob_mismatch_mean", "logprob_mismatch_max"), math.nan),
            # The KL to the reference if there is one, otherwise to the policy that sampled.
            "kl": done.update.metrics.get("kl_behaviour", math.nan),
            **done.update.metrics,
            **collected,
        }


def _known(row: dict[str, float | None], name: str) -> float:
    value = row.get(name)
    return math.nan if value is None else value
