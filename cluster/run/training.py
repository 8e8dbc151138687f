"""One training run from checked parts to an exported model: start, resume, train, save, close."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable

from volley.cluster.launch.environment import tune_interpreter
from volley.cluster.launch.protocol import Launcher
from volley.cluster.loop.buffer import BufferConfig, GroupBuffer
from volley.cluster.loop.dataset_source import DatasetSource
from volley.cluster.loop.interfaces import Source
from volley.cluster.loop.loop import LoopParts, train
from volley.cluster.loop.rollout import Rollout, TrainingRollout
from volley.cluster.loop.signal_check import LossSignalCheck
from volley.cluster.loop.win_rate import InitialPolicy, run_warnings
from volley.cluster.recipe.prepare import RunParts
from volley.cluster.report.report import write_report
from volley.cluster.run.checkpoints import RunCheckpoints, check_lineage, rounding_fingerprint
from volley.cluster.run.diagnose import diagnose, explain
from volley.cluster.run.evaluator import RunEvaluator
from volley.cluster.run.publisher import WeightPublisher
from volley.cluster.run.recorder import RunRecorder
from volley.cluster.run.reference import record_reference
from volley.cluster.storage import checkpoint
from volley.cluster.storage.directory import RunDirectory
from volley.cluster.storage.metrics import EVALUATIONS, METRICS, read_rows
from volley.cluster.storage.writer import Writer
from volley.rewards.scoring.scorer import Scorer

INITIAL = "start.parquet"
CLOSE_TIMEOUT_S = 10.0


class Training:
    """Puts the parts of a run together, and runs it. Use `run()`."""

    def __init__(
        self, parts: RunParts, launcher: Launcher, directory: RunDirectory, notify: Callable[[str], None]
    ) -> None:
        self._parts = parts
        self._recipe = parts.recipe
        self._launcher = launcher
        self._directory = directory
        self._notify = notify
        self._stop = asyncio.Event()

    async def run(self, resume: bool) -> dict[str, float]:
        """Train to the end. Returns the metrics of the last evaluation, {} if there was none."""
        tune_interpreter()
        recipe, launcher = self._recipe, self._launcher
        restored = checkpoint.latest(self._directory.checkpoints, self._notify) if resume else None
        if restored is not None:
            check_lineage(self._parts, restored)
        await launcher.prepare()
        self._directory.open(recipe)
        async with Scorer(recipe.rewards, recipe.scorer, launcher.item_scorer()) as scorer:
            try:
                await launcher.start()
                # Not earlier: while models load, Ctrl-C should simply end the process.
                self._handle_signals()
                writer = Writer()
                done = restored.step if restored else 0
                recorder = RunRecorder(self._directory, recipe, writer, done, launcher.on_row)
                try:
                    # Whatever the run waits for from here on, it also watches for losses and failed writes.
                    async with asyncio.TaskGroup() as tasks:
                        watching = [tasks.create_task(launcher.watch()), tasks.create_task(writer.watch())]
                        await self._run_watched(scorer, recorder, writer, restored)
                        for task in watching:
                            task.cancel()
                finally:
                    await recorder.close()
                return recorder.last_evaluation
            finally:
                # An engine that hangs must not keep a failed run from ending.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await launcher.close()

    async def _run_watched(
        self, scorer: Scorer, recorder: RunRecorder, writer: Writer, restored: checkpoint.Checkpoint | None
    ) -> None:
        """From loaded models to the exported one."""
        parts, recipe, launcher, learner = self._parts, self._recipe, self._launcher, self._launcher.learner
        rollout = Rollout(launcher.pool, scorer, recipe.seed)
        publisher = WeightPublisher(parts, launcher, self._directory)
        source = make_source(parts, rollout, publisher)
        initial = InitialPolicy(self._directory.path / INITIAL, recipe.eval.length_buckets)
        evaluator = RunEvaluator(parts, launcher, rollout, initial)
        recorder.collect_from([rollout, publisher, source])
        async with recorder.deadline("rounding"):
            rounding = await rounding_fingerprint(parts, launcher.pool)
        checkpoints = RunCheckpoints(parts, self._directory, launcher, source, publisher, recorder, writer, rounding)
        if parts.records_reference:
            # All rows of the run in one call: as long as its updates may take together.
            async with recorder.deadline("record_reference", recipe.deadline_s * (recipe.steps + 1)):
                await record_reference(parts, learner)
        if restored is not None:
            async with recorder.deadline("restore"):
                await checkpoints.restore(restored, self._notify)
        if learner.step == 0 and recipe.data.test:
            await self._evaluate(evaluator, recorder)
        await train(
            recipe,
            LoopParts(source, parts.loss, learner, publisher, evaluator, checkpoints, recorder),
            self._stop,
        )
        # The last checkpoint has a copy, if it needs one.
        await writer.run(shutil.rmtree, self._directory.served, ignore_errors=True)
        if recipe.data.test and recorder.evaluated_step != learner.step and not self._stop.is_set():
            await self._evaluate(evaluator, recorder)
        if self._stop.is_set():
            self._notify(f"stopped at step {learner.step} with a checkpoint; continue with --resume")
        elif learner.step < recipe.steps:
            self._notify(f"stop_at is reached at step {learner.step}")
        async with recorder.deadline("export"):
            await learner.export(self._directory.model, parts.tokenizer)
        await self._summarize(writer)

    async def _evaluate(self, evaluator: RunEvaluator, recorder: RunRecorder) -> None:
        async with recorder.deadline("evaluate"):
            result = await evaluator.evaluate()
        await recorder.evaluation(self._launcher.learner.step, result)

    async def _summarize(self, writer: Writer) -> None:
        """Print where time went and what the user should know, and write the report."""
        recipe, path = self._recipe, self._directory.path
        rows = await writer.run(read_rows, path / METRICS)
        evaluations = await writer.run(read_rows, path / EVALUATIONS)
        found = diagnose(rows)
        for line in explain(found, recipe.max_staleness, recipe.launcher != "local") if found else ():
            self._notify(line)
        for warning in run_warnings(rows, evaluations, recipe.loss.name):
            self._notify(f"warning: {warning}")
        report = await writer.run(write_report, path)
        self._notify(f"model {self._directory.model}  report {report}")

    def _handle_signals(self) -> None:
        """The first Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint; the second at once."""

        def interrupt() -> None:
            if self._stop.is_set():
                os._exit(130)
            self._stop.set()
            self._notify("stopping after this step, with a checkpoint; press again to quit at once")

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupt)


def make_source(parts: RunParts, rollout: Rollout, publisher: WeightPublisher) -> Source:
    """Where the run's groups come from: a data set, or rollouts."""
    recipe, dataset = parts.recipe, parts.dataset
    if dataset is not None and not parts.is_sampled:
        return DatasetSource(dataset, lambda: publisher.version)
    return GroupBuffer(
        (dataset or parts.prompts).prompt_at,
        TrainingRollout(rollout, recipe.rollout.sampling, dataset),
        LossSignalCheck(parts.loss, recipe.signal, joins_dataset=dataset is not None),
        BufferConfig(
            recipe.groups_per_step,
            recipe.max_staleness,
            round(recipe.rollout.max_replacements * recipe.groups_per_step),
            recipe.deadline_s,
        ),
    )
