"""Evaluate a model without training it (`volley eval`)."""

from volley.cluster.launch.start import start_engine
from volley.cluster.loop.evaluate import evaluate
from volley.cluster.loop.interfaces import Evaluation
from volley.cluster.loop.rollout import Rollout
from volley.cluster.recipe.prepare import RunParts
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.engines.pool import RolloutPool


async def evaluate_model(parts: RunParts) -> Evaluation:
    """Start an engine with the recipe's model, evaluate it on the test data, and stop the engine."""
    recipe = parts.recipe
    async with Scorer(recipe.rewards, recipe.scorer) as scorer:
        pool = RolloutPool([start_engine(parts)])
        try:
            rollout = Rollout(pool, scorer, recipe.seed)
            return await evaluate(
                rollout, parts.test_prompts, recipe.eval, recipe.rollout.max_tokens, recipe.rollout.stop
            )
        finally:
            await pool.close()
