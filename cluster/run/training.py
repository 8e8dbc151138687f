"""One training run from checked parts to an exported model: start, resume, train, save, leave cleanly."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from volley.cluster.launch.environment import tune_interpreter
from volley.cluster.launch.protocol import Launcher
from volley.cluster.loop.against_start import Start, warnings
from volley.cluster.loop.buffer import GroupBuffer
from volley.cluster.loop.dataset_source import DatasetSource
from volley.cluster.loop.evaluate import Evaluation, evaluate
from volley.cluster.loop.loop import Source, train
from volley.cluster.loop.roller import Roller
from volley.cluster.recipe.build import Parts
from volley.cluster.recipe.config import RUNS
from volley.cluster.report.report import write_report
from volley.cluster.run.diagnose import diagnose, explain
from volley.cluster.run.recorder import Record
from volley.cluster.storage import checkpoint
from volley.cluster.storage.directory import RunDirectory
from volley.cluster.storage.metrics import EVALUATIONS, METRICS, read_rows
from volley.learner.signals.batch import Batch, make_batch
from volley.learner.signals.rows import Rows
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.data.dataset_groups import DatasetGroups
from volley.rollout.errors import CheckpointError, EngineLost, ModelError
from volley.rollout.model_files import weights_fingerprint
from volley.rollout.types import Prompt, Sampling, ScoredGroup

START = "start.parquet"
NUM_PARITY_SEQUENCES = 8
CLOSE_TIMEOUT_S = 10.0


class Training:
    """The parts of a run, put together. Use `run()`."""

    def __init__(self, parts: Parts, launcher: Launcher, directory: RunDirectory, say: Callable[[str], None]) -> None:
        self._parts = parts
        self._launcher = launcher
        self._recipe = parts.recipe
        self._directory = directory
        self._say = say
        self._stop = asyncio.Event()
        self._version = 0
        self._start = Start(directory.path / START, parts.recipe.eval.length_buckets)

    async def run(self, resume: bool) -> dict[str, float]:
        """Train to the end. Returns the last evaluation's metrics, {} where none was made."""
        tune_interpreter()
        recipe, parts = self._recipe, self._parts
        restored = checkpoint.latest(self._directory.checkpoints, self._say) if resume else None
        if restored is not None:
            self._check_lineage(restored.state)
        await self._launcher.prepare()
        self._directory.open(recipe)
        async with Scorer(recipe.rewards, recipe.scorer, self._launcher.item_scorer()) as scorer:
            try:
                await self._launcher.start()
                self._learner, self._pool = self._launcher.learner, self._launcher.pool
                self._roller = Roller(self._pool, scorer, recipe.seed)
                self._source = self._make_source()
                self._rounding = await self._measure_rounding()
                done = restored.step if restored else 0
                self._record = Record(self._directory, recipe, self._roller, done, self._launcher.show)
                # Not before: while models load, Ctrl-C should simply end the process.
                self._handle_signals()
                try:
                    if parts.records_reference:
                        await self._record_reference()
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
        if self._learner.step == 0 and recipe.data.test:
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
        shutil.rmtree(self._directory.served, ignore_errors=True)  # the last checkpoint has it, if it needs it
        if recipe.data.test and self._record.evaluated_step != self._learner.step and not self._stop.is_set():
            self._record.evaluation(self._learner.step, await self._evaluate())
        if self._stop.is_set():
            self._say(f"stopped at step {self._learner.step} with a checkpoint; go on with --resume")
        elif self._learner.step < recipe.steps:
            self._say(f"stop_at is reached at step {self._learner.step}")
        await self._learner.export(self._directory.model, self._parts.tokenizer)
        rows = read_rows(self._directory.path / METRICS)
        found = diagnose(rows)
        for line in explain(found, recipe.max_staleness, recipe.launcher != "local") if found else ():
            self._say(line)
        for warning in warnings(rows, read_rows(self._directory.path / EVALUATIONS), recipe.loss.name):
            self._say(f"warning: {warning}")
        self._say(f"model {self._directory.model}  report {write_report(self._directory.path)}")
        return self._record.last_evaluation

    def _make_source(self) -> Source:
        recipe, parts = self._recipe, self._parts
        if parts.dataset is not None and not parts.is_sampled:
            return DatasetSource(parts.dataset, lambda: self._version)
        return GroupBuffer(
            (parts.dataset or parts.prompts).prompt_at,
            self._roll,
            recipe.groups_per_step,
            recipe.max_staleness,
            self._reason_against,
            round(recipe.rollout.max_replacements * recipe.groups_per_step),
            recipe.deadline_s,
        )

    def _reason_against(self, group: ScoredGroup) -> str:
        reason = self._parts.loss.signal.reason_against(group, self._recipe.signal)
        # A policy that says just what the data says is no bad draw: it is how a self-play run comes to its end.
        return "" if reason == "same" and self._parts.dataset is not None else reason

    async def _roll(self, prompt: Prompt) -> ScoredGroup:
        group = await self._roller(prompt, self._recipe.rollout.sampling)
        if self._parts.dataset is None:
            return group
        shown = self._parts.dataset.group_of(prompt, group.first_version)
        own = tuple(replace(score, reward=0.0) for score in group.scores)
        return ScoredGroup(prompt, shown.completions + group.completions, shown.scores + own)

    async def _record_reference(self) -> None:
        """Have the reference's log-probs of all rows of the run computed, or read where an earlier run left them."""
        parts, recipe = self._parts, self._recipe
        assert parts.dataset is not None
        batches = [self._held_out_batch(parts.test_dataset)] if parts.test_dataset is not None else []
        for step in range(recipe.steps):
            first = step * recipe.groups_per_step
            groups = [parts.dataset.group_at(first + i, 0) for i in range(recipe.groups_per_step)]
            batches.append(make_batch(groups, parts.loss, 0, recipe.signal))
        rows = [batch.rows for batch in batches]
        rows += [batch.signal.auxiliary for batch in batches if batch.signal.auxiliary is not None]
        exactly = f"{weights_fingerprint(parts.model)}/{recipe.learner.dtype}/{recipe.rollout.temperature}"
        file = f"{hashlib.sha256(exactly.encode()).hexdigest()[:16]}-{parts.lineage['data']}.parquet"
        await self._learner.record_reference(Rows.joined(rows), RUNS / ".reference" / file)

    async def _publish(self, groups: Sequence[ScoredGroup]) -> int:
        self._version += 1
        await self._launcher.push(self._version)
        self._record.extra |= self._launcher.metrics()
        if self._parts.needs_engine and self._recipe.publish_every > 1:
            await self._keep_served()
        parity = self._recipe.parity
        if self._version <= parity.first_pushes or (parity.every and self._version % parity.every == 0):
            await self._check_parity(groups)
        return self._version

    async def _keep_served(self) -> None:
        """What the engines serve until the next push, for checkpoints until then."""
        new = self._directory.served.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        await self._learner.save(new)
        shutil.rmtree(self._directory.served, ignore_errors=True)
        new.rename(self._directory.served)

    async def _check_parity(self, groups: Sequence[ScoredGroup]) -> None:
        """Both sides' log-probs of the newest samples, whole sequences, at temperature 1."""
        sequences = [np.concatenate([group.prompt.token_ids, group.completions[0].token_ids]) for group in groups]
        sequences = [ids for ids in sequences if len(ids) > 1][:NUM_PARITY_SEQUENCES]
        ours = await self._learner.logprobs([ids.tolist() for ids in sequences]) if self._pool.engines else []
        for engine in self._pool.engines:
            try:
                theirs = await engine.logprobs(sequences)
            except EngineLost:
                continue
            gaps = np.abs(np.concatenate(ours).astype(np.float64) - np.concatenate(theirs))
            mean, largest = float(gaps.mean()), float(gaps.max())
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
        if parts.test_dataset is not None:
            return Evaluation(await self._learner.evaluate(self._held_out_batch(parts.test_dataset)), ())
        result = await evaluate(
            self._roller, parts.test_prompts, recipe.eval, recipe.rollout.max_tokens, recipe.rollout.stop
        )
        against_start = await self._start.compare(self._learner.step, result.greedy, self._roller)
        return Evaluation(result.metrics | against_start, result.greedy)

    def _held_out_batch(self, dataset: DatasetGroups) -> Batch:
        number = min(len(dataset), self._recipe.eval.max_prompts or len(dataset))
        groups = [dataset.group_at(i, 0) for i in range(number)]
        return make_batch(groups, self._parts.loss, 0, self._recipe.signal)

    async def _save(self, step: int) -> None:
        state = {
            "weight_version": self._version,
            "source": self._source.state(),
            "lineage": self._parts.lineage,
            "rounding": self._rounding,
            "wall_s": self._record.wall_s,
        }
        keep = self._recipe.keep_checkpoints
        is_behind = self._parts.needs_engine and self._version > 0 and step % self._recipe.publish_every > 0
        served = self._directory.served if is_behind else None
        await checkpoint.write(self._directory.checkpoints, step, state, self._learner.save, keep, served)

    async def _measure_rounding(self) -> str:
        """The bits that the engine computes for fixed requests under the model's own weights; "" for asynchronous runs.

        A synchronous run is a pure function of its recipe as long as the engine's processes round alike. On CPUs one in
        some dozens was seen not to (by 1e-6, cause unknown), and a resume should not be silently inexact.
        """
        if self._recipe.max_staleness or not self._pool.engines:
            return ""
        prompt = self._parts.prompts.prompt_at(0).token_ids
        sampling = Sampling(NUM_PARITY_SEQUENCES, 1.0, max_tokens=min(16, self._recipe.rollout.max_tokens))
        engine = self._pool.engines[0]
        drawn = await asyncio.gather(*engine.submit(prompt, sampling, 0))
        read = await engine.logprobs([np.concatenate([prompt, completion.token_ids]) for completion in drawn])
        values = [tuple(completion.logprobs.tolist()) for completion in drawn], [each.tolist() for each in read]
        return hashlib.sha256(repr(values).encode()).hexdigest()[:16]

    async def _restore(self, restored: checkpoint.Checkpoint) -> None:
        if restored.state.get("rounding", self._rounding) != self._rounding:
            self._say(
                "this process's engine rounds otherwise than the one that wrote the checkpoint, so the run goes on "
                "close to but not exactly as it would have; stop it and --resume again for a process that rounds alike"
            )
        self._version = restored.state["weight_version"]
        is_pushed = self._parts.needs_engine and self._version > 0
        since = restored.step % self._recipe.publish_every if is_pushed else 0
        served = restored.served if since else restored.learner
        await self._learner.load(served, restored.step - since)
        if is_pushed:
            await self._launcher.push(self._version)
            if self._recipe.publish_every > 1:
                checkpoint.copy(served, self._directory.served)
        if since:
            await self._learner.load(restored.learner, restored.step)
        self._source.restore(restored.state["source"])
        self._record.restore(restored.state["wall_s"])
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
