"""The reference's log-probs of all rows of a run, computed once before the first step."""

import asyncio
import hashlib
from pathlib import Path

from volley.cluster.recipe.config import RUNS
from volley.cluster.recipe.prepare import RunParts
from volley.cluster.run.evaluator import held_out_batch
from volley.learner.ranks.group import LearnerGroup
from volley.learner.signals.batch import make_batch
from volley.learner.signals.rows import Rows
from volley.rollout.model_files import weights_fingerprint


async def record_reference(parts: RunParts, learner: LearnerGroup) -> None:
    """Compute the log-probs of all rows, or read them from where an earlier run left them."""
    rows, file = await asyncio.to_thread(_rows_and_file, parts)
    await learner.record_reference(rows, file)


def _rows_and_file(parts: RunParts) -> tuple[Rows, Path]:
    recipe = parts.recipe
    assert parts.dataset is not None
    batches = [held_out_batch(parts)] if parts.test_dataset is not None else []
    for step in range(recipe.steps):
        first = step * recipe.groups_per_step
        groups = [parts.dataset.group_at(first + i, 0) for i in range(recipe.groups_per_step)]
        batches.append(make_batch(groups, parts.loss, 0, recipe.signal))
    rows = [batch.rows for batch in batches]
    rows += [batch.signal.auxiliary for batch in batches if batch.signal.auxiliary is not None]
    # Everything that the numbers depend on is in the name of the file.
    exactly = f"{weights_fingerprint(parts.model)}/{recipe.learner.dtype}/{recipe.rollout.temperature}"
    name = f"{hashlib.sha256(exactly.encode()).hexdigest()[:16]}-{parts.lineage['data']}.parquet"
    return Rows.joined(rows), RUNS / ".reference" / name
