"""The door to whatever samples: one small protocol, implemented by vLLM (in process or not) and by a fake.

Asynchronous by design: `submit` queues a request and returns at once, so that requests submitted in the same turn of
the event loop always start in the same engine step; that is what makes a synchronous run repeatable bit for bit.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from volley.rollout.types import Completion, Logprobs, Sampling, TokenIds


class Engine(Protocol):
    """Samples completions under versioned weights."""

    version: int
    """Weight version being served: 0 for the weights it was started with."""
    capacity: float
    """Samples that it works on at once; beyond that it should be sent none."""

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        """Queue one prompt; returns `sampling.num_samples` futures, each done as its completion ends.

        Sample i is drawn with its own generator seeded by seed + i, so it does not depend on what else is in
        flight. Must be called on the event loop. A future fails with the engine's error if the engine dies.
        """
        ...

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """Teacher-forced log-probs at temperature 1: for a sequence of T tokens, T - 1 numbers (the first token has
        none). For the parity measurement."""
        ...

    async def close(self) -> None:
        """Fail what is in flight and free the engine."""
        ...
