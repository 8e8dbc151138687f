"""One training run from checked parts to an exported model: start, resume, train, save, leave cleanly."""

import asyncio
import contextlib
import gc
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cluster import checkpoint
from cluster.buffer import GroupBuffer
from cluster.build import Parts
from cluster.config import Recipe
from cluster.dataset_source import DatasetSource
from cluster.diagnose import diagnose, explain
from cluster.evaluate import Evaluation, evaluate
from cluster.launcher import make_launcher
from cluster.loop import Source, Step, train
from cluster.metrics import METRICS, RunLog, group_metrics, read_rows, residual
from cluster.progress import Progress
from cluster.report import write_report
from cluster.roll import Roller
from cluster.run_directory import RunDirectory
from rewards.scorer import Scorer
from rollout.arrow import write_groups
from rollout.engine import EngineLost
from rollout.errors import CheckpointError, ModelError
from rollout.types import ScoredGroup

NUM_PARITY_SEQUENCES = 8
CLOSE_TIMEOUT_S = 10.0
SWITCH_INTERVAL_S = 2e-4
"""How long a thread may be kept waiting for the interpreter. Learner and engine call thousands of short kernels and
come back for it after each; with Python's 5 ms they spend much of the step waiting for each other."""


def tune_interpreter() -> None:
    """For a process of many short-lived objects beside large lasting ones: see SWITCH_INTERVAL_S; and the garbage
    collector looks less often, and never at what is there already (twice as many trajectories/s in the controller)."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


class Training:
    """The parts of a run, put together. Use `run()`."""

    def __init__(self, parts: Parts, directory: RunDirectory, say: Callable[[str], None]) -> None:
        self._parts = parts
        self._recipe = parts.recipe
        self._directory = directory
        self._say = say
        self._stop = asyncio.Event()
        self._version = 0

    async def run(self, resume: bool) -> dict[str, float]:
        """Train to the end. Returns the last evaluation's metrics, {} where none was made."""
        tune_interpreter()
        recipe, parts = self._recipe, self._parts
        restored = checkpoint.latest(self._directory.checkpoints, self._say) if resume else None
        if restored is not None:
            self._check_lineage(restored.state)
        self._directory.open(recipe)
        async with Scorer(recipe.rewards, recipe.scorer) as scorer:
            self._launcher = make_launcher(parts, self._say)
            try:
                await self._launcher.start()
                self._learner, self._pool = self._launcher.learner, self._launcher.pool
                self._roller = Roller(self._pool, scorer, recipe.seed)
                self._source = self._make_source()
                done = restored.step if restored else 0
                self._record = Record(self._directory, recipe, self._roller, done, self._launcher.show)
                # Not before: while models load, Ctrl-C should simply end the process.
                self._handle_signals()
                try:
                    if restored is not None:
                        await self._restore(restored)
                    return await self._train()
                finally:
                    self._record.close()
            finally:
                # A wedged engine must not keep a failed run from ending.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await self._launcher.close()

    async def _train(self) -> dict[str, float]:
        recipe = self._recipe
        if self._learner.step == 0 and recipe.data.test and recipe.eval_every:
            self._record.evaluation(0, await self._evaluate())
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._launcher.watch())
            await train(
                recipe,
                self._parts.loss,
                self._source,
                self._learner,
                self._publish,
                self._evaluate,
                self._save,
                self._record,
                self._stop,
                self._version,
            )
            watching.cancel()
        if self._parts.test_prompts and self._record.evaluated_step != self._learner.step and not self._stop.is_set():
            self._record.evaluation(self._learner.step, await self._evaluate())
        if self._stop.is_set():
            self._say(f"stopped at step {self._learner.step} with a checkpoint; go on with --resume")
        await self._learner.export(self._directory.model, self._parts.tokenizer)
        found = diagnose(read_rows(self._directory.path / METRICS))
        for line in explain(found, recipe.max_staleness, recipe.launcher != "local") if found else ():
            self._say(line)
        self._say(f"model {self._directory.model}  report {write_report(self._directory.path)}")
        return self._record.last_evaluation

    def _make_source(self) -> Source:
        recipe, parts = self._recipe, self._parts
        if parts.demonstrations is not None:
            return DatasetSource(parts.demonstrations, lambda: self._version)
        sampling = recipe.rollout.sampling
        return GroupBuffer(
            parts.prompts.prompt_at,
            lambda prompt: self._roller(prompt, sampling),
            recipe.groups_per_step,
            recipe.max_staleness,
            lambda group: parts.loss.min_group_size == 1 or group.has_signal,
            round(recipe.rollout.max_replacements * recipe.groups_per_step),
            recipe.deadline_s,
        )

    async def _publish(self, groups: Sequence[ScoredGroup]) -> int:
        self._version += 1
        await self._launcher.push(self._version)
        self._record.extra |= self._launcher.metrics()
        parity = self._recipe.parity
        if self._version <= parity.first_pushes or (parity.every and self._version % parity.every == 0):
            await self._check_parity(groups)
        return self._version

    async def _check_parity(self, groups: Sequence[ScoredGroup]) -> None:
        """Both sides' log-probs of the newest samples, whole sequences, at temperature 1."""
        sequences = [group.prompt.token_ids + group.completions[0].token_ids for group in groups]
        sequences = [ids for ids in sequences if len(ids) > 1][:NUM_PARITY_SEQUENCES]
        ours = await self._learner.logprobs(sequences) if self._pool.engines else []
        for engine in self._pool.engines:
            try:
                theirs = await engine.logprobs(sequences)
            except EngineLost:
                continue
            gaps = [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
            mean, largest = math.fsum(gaps) / len(gaps), max(gaps)
            self._record.extra |= {"parity_mean": mean, "parity_max": largest}
            if not mean <= self._recipe.parity.bound:
                raise ModelError(
                    f"parity: after push {self._version} log-probs of learner and vLLM differ by {mean:.4f} nats on "
                    f"average (bound {self._recipe.parity.bound}, largest {largest:.3f}), so rollouts would come from "
                    "another policy than the one being trained; report the model, or raise parity.bound if its "
                    "architecture is known to round differently."
                )

    async def _evaluate(self) -> Evaluation:
        recipe, parts = self._recipe, self._parts
        return await evaluate(
            self._roller, parts.test_prompts, recipe.eval, recipe.rollout.max_tokens, recipe.rollout.stop
        )

    async def _save(self, step: int) -> None:
        state = {
            "weight_version": self._version,
            "source": self._source.state(),
            "lineage": self._parts.lineage,
            "wall_s": self._record.wall_s,
        }
        keep = self._recipe.keep_checkpoints
        await checkpoint.write(self._directory.checkpoints, step, state, self._learner.save, keep)

    async def _restore(self, restored: checkpoint.Checkpoint) -> None:
        await self._learner.load(restored.learner, restored.step)
        self._source.restore(restored.state["source"])
        self._version = restored.state["weight_version"]
        self._record.restore(restored.state["wall_s"])
        if self._parts.needs_engine:
            # Between two pushes of an iterative run the engine served older weights, which nobody has kept.
            self._version += restored.step % self._recipe.publish_every > 0
            await self._launcher.push(self._version)
        self._say(f"resumed from {restored.directory.name}")

    def _check_lineage(self, state: dict[str, Any]) -> None:
        for what, mine in self._parts.lineage.items():
            if state["lineage"].get(what) != mine:
                raise CheckpointError(
                    f"--resume: the checkpoint was made with other {what} than the recipe names now "
                    f"({state['lineage'].get(what)} there, {mine} here); resume with the same {what}, or start a run "
                    "under another name."
                )

    def _handle_signals(self) -> None:
        """The first Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint; the second at once."""

        def interrupt() -> None:
            if self._stop.is_set():
                os._exit(130)
            self._stop.set()
            self._say("stopping after this step, with a checkpoint; once more to leave at once")

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupt)


class Record:
    """What the run leaves behind of every step: metrics, samples, progress."""

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
        for path in directory.rollouts.glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) > done:
                path.unlink()
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
        row = {
            "step": done.number,
            "weight_version": done.served,
            "wall_s": self.wall_s,
            **{f"seconds/{name}": value for name, value in seconds.items()},
            "samples_per_s": samples["samples"] / taken,
            "rollout_idle_share": max(0.0, 1.0 - seconds["generate"] / taken),
            "learner_idle_share": max(0.0, 1.0 - learning / taken),
            **samples,
            **dict.fromkeys(("logprob_mismatch_mean", "logprob_mismatch_max"), math.nan),
            # To the reference where there is one, else to the policy that sampled.
            "kl": done.update.metrics.get("kl_behaviour", math.nan),
            **done.update.metrics,
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

    def evaluation(self, step: int, result: Evaluation) -> None:
        self.last_evaluation, self.evaluated_step = result.metrics, step
        self._log.evaluation(step, result.metrics)
        self._progress.evaluation(result.metrics)
        self._step_started = time.perf_counter()

    def close(self) -> None:
        self._progress.close()
        self._log.close()
