"""What a run leaves behind of every step: metrics, samples, progress; and the clock of its phases."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from volley.cluster.loop.evaluate import Evaluation
from volley.cluster.loop.group_metrics import group_metrics, residual
from volley.cluster.loop.loop import Step
from volley.cluster.loop.roller import Roller
from volley.cluster.loop.rounds import told_apart
from volley.cluster.recipe.config import Recipe
from volley.cluster.run.progress import Progress
from volley.cluster.storage.directory import RunDirectory
from volley.cluster.storage.metrics import METRICS, RunLog, read_rows
from volley.rollout.data.parquet import write_groups


class Record:
    """`loop.Log` of a run. extra: what the next row should hold beside what the step says itself."""

    def __init__(
        self,
        directory: RunDirectory,
        recipe: Recipe,
        roller: Roller,
        done: int,
        show: Callable[[dict[str, float]], None],
    ) -> None:
        """done: steps that a resumed run has behind it. show: what else is to see each row."""
        self._directory = directory
        self._recipe = recipe
        self._roller = roller
        self._show = show
        self._log = RunLog(directory.path, recipe, done)
        for path in directory.samples:
            if int(path.stem.removeprefix("step-")) > done:
                path.unlink()
        first = read_rows(directory.path / METRICS)[:1]
        self._start_length = _known(first[0] if first else {}, "response_length_mean")
        self._progress = Progress(recipe.steps, done)
        self._seconds: dict[str, float] = {}
        self._busy = (0.0, 0.0)
        self._started = time.perf_counter()
        self._step_started = self._started
        self.extra: dict[str, float] = {}
        self.last_evaluation: dict[str, float] = {}
        self.evaluated_step = -1

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._started

    def restore(self, wall_s: float) -> None:
        """Count on from the seconds that the run took before."""
        self._started -= wall_s

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """Time a part of a step. Waiting for groups has its own deadline, which starts anew with every arrival."""
        started = time.perf_counter()
        deadline_s = None if name == "wait" else self._recipe.deadline_s
        try:
            async with asyncio.timeout(deadline_s) as limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"{name}: not done after {deadline_s:g} s (deadline_s)") from None
            raise
        finally:
            self._seconds[name] = time.perf_counter() - started

    def step(self, done: Step) -> None:
        now = time.perf_counter()
        busy = (self._roller.generating.seconds, self._roller.scoring.seconds)
        seconds = {"generate": busy[0] - self._busy[0], "score": busy[1] - self._busy[1], **self._seconds}
        samples = group_metrics(done.groups, done.trained)
        taken = now - self._step_started
        learning = seconds.get("update", 0.0) + seconds.get("publish", 0.0)
        length = samples.get("response_length_mean", math.nan)
        if math.isnan(self._start_length):
            self._start_length = length
        refreshed = self._recipe.reference.refresh_every
        row = {
            "step": done.number,
            "weight_version": done.served,
            "wall_s": self.wall_s,
            **{f"seconds/{name}": value for name, value in seconds.items()},
            "samples_per_s": samples["samples"] / taken,
            "rollout_idle_share": max(0.0, 1.0 - seconds["generate"] / taken),
            "learner_idle_share": max(0.0, 1.0 - learning / taken),
            **samples,
            # Against the first step: preference losses are known to lengthen. Where nothing is sampled there is none.
            **({"response_length_ratio": length / self._start_length} if "response_length_mean" in samples else {}),
            # Steps since the reference was the policy.
            **({"reference_age": float((done.number - 1) % refreshed)} if refreshed else {}),
            **dict.fromkeys(("logprob_mismatch_mean", "logprob_mismatch_max"), math.nan),
            # To the reference where there is one, else to the policy that sampled.
            "kl": done.update.metrics.get("kl_behaviour", math.nan),
            **done.update.metrics,
            **self._roller.metrics(),
            **self.extra,
            **done.accounting,
            "accounting_residual": residual(done.accounting),
        }
        self._busy, self._step_started, self._seconds, self.extra = busy, now, {}, {}
        self._log.step(row)
        self._show(row)
        self._progress.step(row)
        if self._recipe.save_rollouts:
            path = self._directory.rollouts / f"step-{done.number:06d}.parquet"
            write_groups(path, done.groups, done.number)

    def told_apart(self, num_steps: int) -> float:
        # From the file, which a resumed run has, too.
        return told_apart(read_rows(self._directory.path / METRICS)[-num_steps:])

    def evaluation(self, step: int, result: Evaluation) -> None:
        self.last_evaluation, self.evaluated_step = result.metrics, step
        self._log.evaluation(step, result.metrics)
        self._progress.evaluation(result.metrics)
        self._step_started = time.perf_counter()

    def close(self) -> None:
        self._progress.close()
        self._log.close()


def _known(row: Mapping[str, float | None], name: str) -> float:
    value = row.get(name)
    return math.nan if value is None else value
