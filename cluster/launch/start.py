"""Create a learner rank or an engine in this process, as the recipe describes it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from volley.cluster.recipe.build import Parts
from volley.cluster.recipe.config import Recipe
from volley.learner.losses.common import Loss

if TYPE_CHECKING:
    from volley.learner.ranks.rank import LearnerRank
    from volley.rollout.engines.vllm import VllmEngine


def start_rank(recipe: Recipe, loss: Loss, model: Path, records_reference: bool, **place: Any) -> "LearnerRank":
    """Load the model into one learner rank.

    model: a directory. records_reference, place: see `LearnerRank`.
    """
    from volley.learner.ranks.rank import LearnerRank

    return LearnerRank(
        recipe.learner,
        loss,
        model,
        recipe.steps,
        recipe.rollout.temperature,
        recipe.seed,
        trust_remote_code=recipe.trust_remote_code,
        records_reference=records_reference,
        **place,
    )


def start_engine(parts: Parts) -> "VllmEngine":
    """Load the model into an engine."""
    from volley.rollout.engines.vllm import VllmEngine, dtype_of

    recipe = parts.recipe
    dtype = dtype_of(recipe.rollout, recipe.learner.dtype)
    return VllmEngine(str(parts.model.path), parts.tokenizer, recipe.rollout, dtype, parts.max_model_len, recipe.seed)
