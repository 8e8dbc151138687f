"""Saving a run and restoring it."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from volley.cluster.launch.protocol import Launcher
from volley.cluster.loop.interfaces import Source
from volley.cluster.recipe.prepare import RunParts
from volley.cluster.run.publisher import WeightPublisher
from volley.cluster.run.recorder import RunRecorder
from volley.cluster.storage import checkpoint
from volley.cluster.storage.directory import RunDirectory
from volley.cluster.storage.writer import Writer
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.errors import CheckpointError
from volley.rollout.types import Sampling

NUM_FINGERPRINT_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class RunCheckpoints:
    """The `loop.interfaces.Checkpointer` of a run."""

    parts: RunParts
    directory: RunDirectory
    launcher: Launcher
    source: Source
    publisher: WeightPublisher
    recorder: RunRecorder
    writer: Writer
    """Hashes, syncs and deletes the files."""
    rounding: str
    """See `rounding_fingerprint`."""

    async def save(self, step: int) -> None:
        recipe, publisher = self.parts.recipe, self.publisher
        state = {
            "weight_version": publisher.version,
            "source": self.source.state(),
            "lineage": self.parts.lineage,
            "rounding": self.rounding,
            "wall_s": self.recorder.wall_s,
        }
        is_behind = self.parts.needs_engine and publisher.version > 0 and step % recipe.publish_every > 0
        await checkpoint.write(
            self.directory.checkpoints,
            step,
            state,
            self.launcher.learner.save,
            recipe.keep_checkpoints,
            served=self.directory.served if is_behind else None,
            run=self.writer.run,
        )

    async def restore(self, restored: checkpoint.Checkpoint, notify: Callable[[str], None]) -> None:
        """Bring learner, engines, source and recorder to where the checkpoint was written."""
        recipe, learner = self.parts.recipe, self.launcher.learner
        if restored.state.get("rounding", self.rounding) != self.rounding:
            notify(
                "numerical results differ slightly from the process that wrote the checkpoint, so the resumed run is "
                "not bit-exact; stop it and --resume again to try another process"
            )
        self.publisher.version = restored.state["weight_version"]
        is_pushed = self.parts.needs_engine and self.publisher.version > 0
        since = restored.step % recipe.publish_every if is_pushed else 0
        served = restored.served if since else restored.learner
        await learner.load(served, restored.step - since)
        if is_pushed:
            await self.launcher.push(self.publisher.version)
            if recipe.publish_every > 1:
                await self.writer.run(checkpoint.copy, served, self.directory.served)
        if since:
            await learner.load(restored.learner, restored.step)
        self.source.restore(restored.state["source"])
        self.recorder.restore(restored.state["wall_s"])
        notify(f"resumed from {restored.directory.name}")


def check_lineage(parts: RunParts, restored: checkpoint.Checkpoint) -> None:
    """Refuse to resume with another model, other data or another seed. Raises `CheckpointError`."""
    for name, current in parts.lineage.items():
        saved = restored.state["lineage"].get(name)
        if saved != current:
            raise CheckpointError(
                f"--resume: the checkpoint was made with other {name} than the recipe names now ({saved} in the "
                f"checkpoint, {current} in the recipe); resume with the same {name}, or start a run under another name."
            )


async def rounding_fingerprint(parts: RunParts, pool: RolloutPool) -> str:
    """A hash of the bits that the engine computes for fixed requests under the initial model; "" for asynchronous runs.

    A synchronous run is a pure function of its recipe as long as the engine's processes round the same way. On CPUs
    about one process in some dozens does not (differences of 1e-6, cause unknown). With the fingerprint a resume can
    report that it is not bit-exact.
    """
    if parts.recipe.max_staleness or not pool.engines:
        return ""
    prompt = parts.prompts.prompt_at(0).token_ids
    sampling = Sampling(NUM_FINGERPRINT_SAMPLES, 1.0, max_tokens=min(16, parts.recipe.rollout.max_tokens))
    engine = pool.engines[0]
    drawn = await asyncio.gather(*engine.submit(prompt, sampling, 0))
    read = await engine.logprobs([np.concatenate([prompt, completion.token_ids]) for completion in drawn])
    values = [tuple(completion.logprobs.tolist()) for completion in drawn], [each.tolist() for each in read]
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
