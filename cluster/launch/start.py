"""Create a learner rank or an engine in this process, as the recipe describes it."""

from typing import TYPE_CHECKING

from volley.cluster.recipe.prepare import RunParts
from volley.learner.ranks.spec import RankPlace, RankSpec

if TYPE_CHECKING:
    from volley.learner.ranks.rank import LearnerRank
    from volley.rollout.engines.vllm import VllmEngine


def rank_spec(parts: RunParts) -> RankSpec:
    """What every learner rank of a run computes."""
    recipe = parts.recipe
    return RankSpec(
        recipe.learner,
        parts.loss,
        parts.model.path,
        recipe.steps,
        recipe.rollout.temperature,
        recipe.seed,
        trust_remote_code=recipe.trust_remote_code,
        records_reference=parts.records_reference,
    )


def start_rank(spec: RankSpec, place: RankPlace | None = None) -> "LearnerRank":
    """Load the model into one learner rank. place: by default it is the only one."""
    from volley.learner.ranks.rank import LearnerRank

    return LearnerRank(spec, place)


def start_engine(parts: RunParts) -> "VllmEngine":
    """Load the model into an engine."""
    from volley.rollout.engines.vllm import EngineSpec, VllmEngine, dtype_of

    recipe = parts.recipe
    dtype = dtype_of(recipe.rollout, recipe.learner.dtype)
    model, length = str(parts.model.path), parts.max_model_len
    return VllmEngine(EngineSpec(model, parts.tokenizer, recipe.rollout, dtype, length, recipe.seed))
