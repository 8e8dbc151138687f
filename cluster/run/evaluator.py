"""The evaluations of a run: answers to test prompts, or a loss on held-out data."""

import asyncio

from volley.cluster.launch.protocol import Launcher
from volley.cluster.loop.evaluate import evaluate
from volley.cluster.loop.interfaces import Evaluation
from volley.cluster.loop.rollout import Rollout
from volley.cluster.loop.win_rate import InitialPolicy
from volley.cluster.recipe.prepare import RunParts
from volley.learner.signals.batch import Batch, make_batch


class RunEvaluator:
    """The `loop.interfaces.Evaluator` of a run."""

    def __init__(self, parts: RunParts, launcher: Launcher, rollout: Rollout, initial: InitialPolicy) -> None:
        self._parts = parts
        self._launcher = launcher
        self._rollout = rollout
        self._initial = initial

    async def evaluate(self) -> Evaluation:
        """Evaluate the weights that the engines serve, or the learner's own where a data set is measured."""
        recipe, parts, learner = self._parts.recipe, self._parts, self._launcher.learner
        if parts.test_dataset is not None:
            return Evaluation(await learner.evaluate(await asyncio.to_thread(held_out_batch, parts)), ())
        result = await evaluate(
            self._rollout, parts.test_prompts, recipe.eval, recipe.rollout.max_tokens, recipe.rollout.stop
        )
        compared = await self._initial.compare(learner.step, result.greedy, self._rollout)
        return Evaluation(result.metrics | compared, result.greedy)


def held_out_batch(parts: RunParts) -> Batch:
    """The held-out rows as one batch."""
    recipe, dataset = parts.recipe, parts.test_dataset
    assert dataset is not None
    number = min(len(dataset), recipe.eval.max_prompts or len(dataset))
    groups = [dataset.group_at(i, 0) for i in range(number)]
    return make_batch(groups, parts.loss, 0, recipe.signal)
