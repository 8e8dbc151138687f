"""Several engines as one: each request goes to the engine with the fewest samples in flight, weights go to all."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rollout.engine import Engine, Sampling
from rollout.types import Completion


class RolloutPool:
    """version: the weight version that every engine serves."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = list(engines)
        self._load = [0] * len(self._engines)

    @property
    def version(self) -> int:
        return min(engine.version for engine in self._engines)

    @property
    def engines(self) -> Sequence[Engine]:
        return self._engines

    def submit(self, token_ids: Sequence[int], sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        """As `Engine.submit`, on the least loaded engine."""
        chosen = self._load.index(min(self._load))
        self._load[chosen] += sampling.num_samples
        futures = self._engines[chosen].submit(token_ids, sampling, seed)
        for future in futures:
            future.add_done_callback(lambda _: self._done(chosen))
        return futures

    def _done(self, engine: int) -> None:
        self._load[engine] -= 1

    async def load_weights(self, weights: Callable[[], Iterable[tuple[str, Any]]], version: int) -> None:
        """Push to every engine; `weights` is called once for each."""
        await asyncio.gather(*(engine.load_weights(weights(), version) for engine in self._engines))

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self._engines), return_exceptions=True)
