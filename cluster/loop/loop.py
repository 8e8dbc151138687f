"""The training loop: all of Volley in one function.

    Prompt -> Group -> ScoredGroup -> Batch -> Update -> new weights -> (next Group)

A method is a recipe, never a branch in here: where groups come from is the `source` (rollouts or a data set), what is
learned from them is the loss inside the learner, and synchronous, asynchronous and iterative are the numbers
max_staleness and publish_every.

Slots are released last, after evaluation and checkpoint: with max_staleness 0 nothing is generated meanwhile, so an
evaluation or a resume cannot change what comes next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from volley.cluster.loop.evaluate import Evaluation
from volley.cluster.recipe.config import Recipe
from volley.learner.losses.common import Loss
from volley.learner.signals.batch import Batch, Update, make_batch
from volley.rollout.types import ScoredGroup


class Source(Protocol):
    """Where scored groups come from: `buffer.GroupBuffer` (rollouts) or `dataset_source.DatasetSource`."""

    def start(self, tasks: asyncio.TaskGroup) -> None: ...
    async def take(self, num_groups: int) -> list[ScoredGroup]: ...
    def replaced(self) -> Mapping[str, int]: ...
    async def release(self, num_groups: int) -> None: ...
    def stop(self) -> None: ...
    def accounting(self) -> dict[str, int]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Learner(Protocol):
    """The learner as the loop sees it, whether it is an object in this process or ranks on a cluster."""

    @property
    def step(self) -> int: ...
    async def update(self, batch: Batch) -> Update: ...
    async def refresh_reference(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step that is done. number: from 1. trained: the weight version that the update started from; served: the one
    after this step's push. accounting: of the source, in groups."""

    number: int
    trained: int
    served: int
    groups: Sequence[ScoredGroup]
    update: Update
    accounting: dict[str, int]


class Log(Protocol):
    """Keeps the run's record. `phase` times a part of a step, and raises `TimeoutError` with its name when it hangs.
    `told_apart`: how well the round of that many steps that just ended told chosen from rejected."""

    def phase(self, name: str) -> AbstractAsyncContextManager[None]: ...
    def step(self, done: Step) -> None: ...
    def told_apart(self, num_steps: int) -> float: ...
    def evaluation(self, step: int, result: Evaluation) -> None: ...


async def train(
    recipe: Recipe,
    loss: Loss,
    source: Source,
    learner: Learner,
    publish: Callable[[Sequence[ScoredGroup]], Awaitable[int]],
    evaluate: Callable[[], Awaitable[Evaluation]],
    save: Callable[[int], Awaitable[None]],
    log: Log,
    stop: asyncio.Event,
    version: int = 0,
) -> None:
    """Train until `recipe.steps`, the target of `stop_at`, or `stop` (then with a checkpoint of the last whole step).

    publish: pushes the learner's weights to every engine and returns their version; it is shown the newest samples, to
    measure on them that both sides agree. evaluate: runs the evaluation. save: writes a checkpoint of a step.
    version: the weight version that the engines serve now.
    """
    async with asyncio.TaskGroup() as tasks:
        source.start(tasks)
        saved = learner.step
        while learner.step < recipe.steps and not stop.is_set():
            async with log.phase("wait"):
                groups = await _unless(stop, source.take(recipe.groups_per_step))
            if groups is None:
                break
            async with log.phase("update"):
                update = await learner.update(make_batch(groups, loss, version, recipe.signal, source.replaced()))
            step, trained = learner.step, version
            if step % recipe.publish_every == 0:
                async with log.phase("publish"):
                    version = await publish(groups)
            ends_round = recipe.reference.refresh_every > 0 and step % recipe.reference.refresh_every == 0
            if ends_round:
                await learner.refresh_reference()
            log.step(Step(step, trained, version, groups, update, source.accounting()))
            reached = False
            if ends_round and recipe.stop_at.indistinguishable:
                reached = log.told_apart(recipe.reference.refresh_every) < recipe.stop_at.indistinguishable
            if recipe.eval_every and step % recipe.eval_every == 0:
                async with log.phase("evaluate"):
                    result = await evaluate()
                log.evaluation(step, result)
                reached |= 0 < recipe.stop_at.pass_at_1 <= result.metrics.get("pass@1", 0.0)
            if recipe.save_every and step % recipe.save_every == 0:
                async with log.phase("save"):
                    await save(step)
                saved = step
            if reached:
                break
            if step < recipe.steps:
                await source.release(len(groups))
        if learner.step > saved:
            await save(learner.step)
        source.stop()


async def _unless(stop: asyncio.Event, work: Any) -> Any:
    """The result of `work`, or None if `stop` is set before."""
    waiting, working = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(work)
    try:
        await asyncio.wait((waiting, working), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        waiting.cancel()
        working.cancel()
