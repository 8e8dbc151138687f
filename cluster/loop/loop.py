"""The training loop: all of Volley in one function.

    Prompt -> Group -> ScoredGroup -> Batch -> Update -> new weights -> (next Group)

The path of a sample, one small part each:

    source (buffer.GroupBuffer)      hands out prompts in a seeded order and bounds staleness
      -> rollout (rollout.py)        samples, scores, and joins with the data set's completion for SPIN
      -> check (signal_check.py)     replaces groups that teach nothing
    -> loop (this file)              takes the groups of a step
    -> make_batch                    turns groups into rows with a learning signal
    -> learner                       updates the policy

A method is a recipe, never a branch in here. Where groups come from is the `source` (rollouts or a data set). What is
learned from them is the loss. Synchronous, asynchronous and iterative training are the numbers max_staleness and
publish_every.

Slots are released last in a step, after evaluation and checkpoint. With max_staleness 0 nothing is generated during
these, so an evaluation or a resume cannot change what comes next.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from volley.cluster.loop.interfaces import (
    Checkpointer,
    Evaluator,
    Learner,
    Publisher,
    Recorder,
    Source,
    Step,
)
from volley.cluster.recipe.config import Recipe
from volley.learner.losses.common import Loss
from volley.learner.signals.batch import make_batch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoopParts:
    """What `train` works with."""

    source: Source
    loss: Loss
    learner: Learner
    publisher: Publisher
    evaluator: Evaluator
    checkpoints: Checkpointer
    recorder: Recorder


async def train(recipe: Recipe, parts: LoopParts, stop: asyncio.Event) -> None:
    """Train until `recipe.steps`, until a target of `stop_at` is reached, or until `stop` is set.

    In each case the last whole step has a checkpoint at the end.
    """
    source, learner, recorder = parts.source, parts.learner, parts.recorder
    async with asyncio.TaskGroup() as tasks:
        source.start(tasks)
        saved = learner.step
        while learner.step < recipe.steps and not stop.is_set():
            trained = parts.publisher.version
            async with recorder.phase("wait"):
                groups = await _unless(stop, source.take(recipe.groups_per_step))
            if groups is None:
                break
            async with recorder.phase("update"):
                # In a thread, so that the event loop keeps serving engines and rewards.
                batch = await asyncio.to_thread(
                    make_batch, groups, parts.loss, trained, recipe.signal, source.replaced()
                )
                update = await learner.update(batch)
            step = learner.step
            if step % recipe.publish_every == 0:
                async with recorder.phase("publish"):
                    await parts.publisher.publish(groups)
            ends_round = recipe.reference.refresh_every > 0 and step % recipe.reference.refresh_every == 0
            if ends_round:
                async with recorder.deadline("refresh_reference"):
                    await learner.refresh_reference()
            await recorder.step(Step(step, trained, parts.publisher.version, groups, update))
            reached = False
            if ends_round and recipe.stop_at.indistinguishable:
                found = await recorder.distinguishability(recipe.reference.refresh_every)
                reached = found < recipe.stop_at.indistinguishable
            if recipe.eval_every and step % recipe.eval_every == 0:
                async with recorder.phase("evaluate"):
                    result = await parts.evaluator.evaluate()
                await recorder.evaluation(step, result)
                reached |= 0 < recipe.stop_at.pass_at_1 <= result.metrics.get("pass@1", 0.0)
            if recipe.save_every and step % recipe.save_every == 0:
                async with recorder.phase("save"):
                    await parts.checkpoints.save(step)
                saved = step
            if reached:
                break
            if step < recipe.steps:
                await source.release(len(groups))
        if learner.step > saved:
            async with recorder.deadline("save"):
                await parts.checkpoints.save(learner.step)
        source.stop()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None if `stop` is set first."""
    waiting, working = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(work)
    try:
        await asyncio.wait((waiting, working), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        waiting.cancel()
        working.cancel()
