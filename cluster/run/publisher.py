"""Pushing weights to the engines, and measuring that both sides agree on log-probs."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from volley.cluster.launch.protocol import Launcher
from volley.cluster.recipe.prepare import RunParts
from volley.cluster.storage.directory import RunDirectory
from volley.rollout.errors import EngineLost, ModelError
from volley.rollout.types import ScoredGroup

NUM_PARITY_SEQUENCES = 8


class WeightPublisher:
    """The `loop.interfaces.Publisher` of a run."""

    def __init__(self, parts: RunParts, launcher: Launcher, directory: RunDirectory) -> None:
        self._parts = parts
        self._recipe = parts.recipe
        self._launcher = launcher
        self._directory = directory
        self._metrics: dict[str, float] = {}
        self.version = 0

    async def publish(self, groups: Sequence[ScoredGroup]) -> None:
        """Push as the next version, and measure parity if it is due."""
        self.version += 1
        await self._launcher.push(self.version)
        self._metrics |= self._launcher.metrics()
        if self._parts.needs_engine and self._recipe.publish_every > 1:
            await self._keep_served()
        parity = self._recipe.parity
        if self.version <= parity.first_pushes or (parity.every and self.version % parity.every == 0):
            await self._check_parity(groups)

    def metrics(self) -> dict[str, float]:
        """What the pushes since the last call measured."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    async def _keep_served(self) -> None:
        """Keep the learner's state as the engines have it: checkpoints need it until the next push."""
        new = self._directory.served.with_suffix(".new")
        await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
        await self._launcher.learner.save(new)
        await asyncio.to_thread(_replace, new, self._directory)

    async def _check_parity(self, groups: Sequence[ScoredGroup]) -> None:
        """Compare both sides' log-probs of the newest samples: whole sequences, at temperature 1."""
        sequences = [np.concatenate([group.prompt.token_ids, group.completions[0].token_ids]) for group in groups]
        sequences = [ids for ids in sequences if len(ids) > 1][:NUM_PARITY_SEQUENCES]
        engines = self._launcher.pool.engines
        ours = await self._launcher.learner.logprobs(sequences) if engines else []
        for engine in engines:
            try:
                theirs = await engine.logprobs(sequences)
            except EngineLost:
                continue
            gaps = np.abs(np.concatenate(ours).astype(np.float64) - np.concatenate(theirs))
            mean, largest = float(gaps.mean()), float(gaps.max())
            self._metrics |= {"parity_mean": mean, "parity_max": largest}
            if not mean <= self._recipe.parity.bound:
                raise ModelError(
                    f"parity: after push {self.version} the log-probs of learner and vLLM differ by {mean:.4f} nats on "
                    f"average (bound {self._recipe.parity.bound}, largest {largest:.3f}), so rollouts would come from "
                    "another policy than the one being trained; report the model, or raise parity.bound if its "
                    "architecture is known to round differently."
                )


def _replace(new: Path, directory: RunDirectory) -> None:
    shutil.rmtree(directory.served, ignore_errors=True)
    new.rename(directory.served)
